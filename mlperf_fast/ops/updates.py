"""What multi-tensor ops that update tensors in place have in common: their checks, their dispatch, their reference."""

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mlperf_fast import _C, _cuda
from mlperf_fast.errors import UserError
from mlperf_fast.ops.backend import traced
from mlperf_fast.ops.checks import FLOATS, address, check, check_scalar
from mlperf_fast.ops.lists import raise_for_odd_one, read_matching


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


def each(op: str, name: str, value, params: Sequence[Tensor]) -> list:
    """One value for each of params, from one for all or from as many."""
    if isinstance(value, (bool, int, float)):
        return [value] * len(params)
    if len(value) != len(params):
        raise UserError(f"{op}: {len(value)} values of {name}, expected one or one for each of {len(params)} params")
    return value if isinstance(value, list) else list(value)


def floats(values: Sequence[float]) -> array:
    """As float32, for native code. Where all are equal, as mostly, none of them costs time: 60 us for 2,000."""
    if values and values.count(values[0]) == len(values):
        return array("f", values[:1]) * len(values)
    return array("f", values)


def call_native(
    op: str, backend: str, lists: dict[str, Sequence[Tensor]], mixed: tuple[str, ...], *arguments: Any
) -> None:
    """Calls the native function named like the op: csrc/<op>.h has its contract.

    lists      by name, in the function's order; the first one and the copies are written. A list may be absent: ()
    mixed      those whose tensors may be stored in 16 bits; the others are float32
    arguments  what follows the lists: tensors, arrays and None are handed over as addresses

    The function gets the lists' addresses, the sizes, the number of tensors, the types of the mixed lists, arguments.
    One of _cuda that has an <op>_scratch(sizes, number of tensors) gets device memory behind, so many float64.
    """
    present = {name: tensors for name, tensors in lists.items() if tensors}
    found = dict(zip(present, read_matching(op, backend, present), strict=True))  # owns the tables until the call ends
    for name in present.keys() - mixed:
        check_stored(op, name, lists[name], (torch.float32,))
    types = [check_stored(op, name, lists[name]) for name in mixed]
    first = next(iter(present))
    for written in present.keys() & {first, "copies"}:
        torch.autograd.graph.increment_version(lists[written])
    tables = [found[name].table if name in found else 0 for name in lists]
    sizes, count = found[first].sizes.buffer_info()[0], len(lists[first])
    numbers = (*tables, sizes, count, *types, *map(_number, arguments))
    function = op.removesuffix("_")
    if backend == "cpp":
        getattr(_C, function)(*numbers)
    else:
        scratch = []
        if hasattr(_cuda, f"{function}_scratch"):
            size = getattr(_cuda, f"{function}_scratch")(sizes, count)
            scratch.append(torch.empty(size, dtype=torch.float64, device=lists[first][0].device))
        _cuda.call(getattr(_cuda, function), lists[first][0], *numbers, *map(address, scratch))


def _number(argument: Any) -> Any:
    if isinstance(argument, array):
        return argument.buffer_info()[0]
    return address(argument) if argument is None or isinstance(argument, Tensor) else argument


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
    with torch.no_grad():  # what native code does isn't recorded in any case
        raise_for_odd_one(op, lists)
        if backend == "ref":
            reference(*arguments)
        else:
            registered(*arguments, backend)


def write(x: Tensor, new: Tensor, found_inf: Tensor | None) -> None:
    """x = new, rounded to x's dtype, unless `found_inf` is set; the host doesn't look at it. For references."""
    x.copy_(new if found_inf is None else torch.where(found_inf != 0, x, new.to(x.dtype)))
