"""What multi-tensor ops that update tensors in place have in common: their checks, their dispatch, their reference."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mlperf_fast.errors import UserError
from mlperf_fast.ops.backend import traced
from mlperf_fast.ops.checks import FLOATS, check, check_scalar
from mlperf_fast.ops.lists import raise_for_odd_one


def check_update(
    op: str,
    lists: dict[str, Sequence[Tensor]],
    scalars: dict[str, Tensor],
    optional: dict[str, Tensor | None],
) -> bool:
    """UserError unless every list has a tensor for each of the first one's, and the scalars are device scalars.

    What costs time for each tensor is checked where the lists are read. False where the lists are empty.
    """
    (first, like), *others = lists.items()
    for name, tensors in others:
        if len(tensors) != len(like):
            raise UserError(f"{op}: {len(tensors)} {name}, expected one for each of {len(like)} {first}")
    if not like:
        return False
    for name, scalar in (scalars | optional).items():
        check_scalar(op, name, scalar, like[0], optional=name in optional)
    return True


def check_stored(op: str, name: str, tensors: Sequence[Tensor], dtypes: tuple[torch.dtype, ...] = FLOATS) -> int:
    """The place in FLOATS of a list's dtype, which must be one of `dtypes`: what native code takes. 0 for no list."""
    if not tensors:
        return 0
    check(op, f"{name}[0]", tensors[0], tensors[0].shape, dtypes, tensors[0])
    return FLOATS.index(tensors[0].dtype)


def update(
    op: str,
    lists: dict[str, Sequence[Tensor]],
    backend: str,
    reference: Callable[..., None],
    native: Callable[..., None],
    registered: Callable[..., None],
    arguments: tuple,
) -> None:
    """Runs a multi-tensor op that updates `lists` in place: the end of each one's public function.

    Native code is called past torch's dispatcher, which would box and unbox the lists: 0.6 ms for 2,000 pairs of
    tensors, a third of the update itself. What traces a step sees the `registered` op instead.
    """
    if backend != "ref" and not traced():
        native(*arguments, backend)
        return
    raise_for_odd_one(op, lists)
    if backend == "ref":
        reference(*arguments)
    else:
        registered(*arguments, backend)


def write(x: Tensor, new: Tensor, found_inf: Tensor | None) -> None:
    """x = new, rounded to x's dtype, unless `found_inf` is set; the host doesn't look at it. For references."""
    x.copy_(new if found_inf is None else torch.where(found_inf != 0, x, new.to(x.dtype)))
