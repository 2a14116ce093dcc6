"""Plain SGD over many tensors in one call: p -= lr * grad_scale * g."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlperf_fast import _C
from mlperf_fast.errors import UserError
from mlperf_fast.ops.backend import TRITON_DEVICES, Applies, Op, define, resolve
from mlperf_fast.ops.checks import address, check, check_contiguous, check_scalar
from mlperf_fast.ops.lists import read

# 1. The truth ---------------------------------------------------------------------------------------------------


def sgd_ref_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr: Tensor,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """What torch.optim.SGD does without momentum, weight decay or dampening; any float dtype, no host sync."""
    for p, g in zip(params, grads, strict=True):
        step = lr * (g if grad_scale is None else grad_scale * g)
        p.sub_(step if found_inf is None else torch.where(found_inf != 0, 0, step))


# 2. Who can do it, best first, and when ---------------------------------------------------------------------------

SGD = Op(
    "sgd",
    {
        "cpp": Applies(("cpu",), (torch.float32,)),
        "triton": Applies(TRITON_DEVICES, (torch.float32,)),
        "ref": Applies(),
    },
)


def _sgd(params, grads, lr, grad_scale, found_inf, backend):
    p, g = read(params), read(grads)
    if p is None or g is None or p.kind != g.kind or p.sizes != g.sizes:
        _raise_for_odd_one(params, grads)
        raise UserError(f"sgd_: backend {backend} takes plain tensors with memory of their own")
    torch.autograd.graph.increment_version(params)
    if backend == "cpp":
        tables = (table.buffer_info()[0] for table in (p.addresses, g.addresses, p.sizes))
        _C.sgd(*tables, len(params), lr.data_ptr(), address(grad_scale), address(found_inf))
    else:
        from mlperf_fast.kernels.sgd import sgd

        sgd(p.addresses, g.addresses, p.sizes, lr, grad_scale, found_inf)


def _raise_for_odd_one(params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    """UserError for the first tensor that isn't what the others are."""
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        for name, x in ((f"params[{i}]", p), (f"grads[{i}]", g)):
            check("sgd_", name, x, p.shape, (params[0].dtype,), params[0])
            check_contiguous("sgd_", name, x)


# 3. Registration. No gradient: an update is not differentiated ---------------------------------------------------

_sgd_op = define(
    "sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor lr, Tensor? grad_scale, Tensor? found_inf, str backend) -> ()",
    _sgd,
    lambda *arguments: None,
)


# 4. The public function ---------------------------------------------------------------------------------------------


@torch.no_grad()
def sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr: Tensor,
    *,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    backend: str | None = None,
) -> None:
    """params[i] -= lr * grad_scale * grads[i], in place, for all i at once.

    params, grads  as many contiguous float32 tensors each (any float on ref), on one device, of equal sizes; they may
                   not overlap. Empty lists and empty tensors are fine
    lr             one float32 on their device, as are
    grad_scale     the factor that undoes loss scaling (1 when absent; torch's fused optimizers divide by theirs), and
    found_inf      other than 0: nothing is updated

    Raises UserError for lists of different lengths, sizes, dtypes or devices.
    Source: torch.optim.SGD(momentum=0).
    """
    if len(params) != len(grads):
        raise UserError(f"sgd_: {len(grads)} grads, expected one for each of {len(params)} params")
    if not params:
        return
    check_scalar("sgd_", "lr", lr, params[0])
    check_scalar("sgd_", "grad_scale", grad_scale, params[0], optional=True)
    check_scalar("sgd_", "found_inf", found_inf, params[0], optional=True)
    name = resolve(SGD, params[0], backend)
    if name == "ref":
        _raise_for_odd_one(params, grads)
        sgd_ref_(params, grads, lr, grad_scale, found_inf)
    elif torch.compiler.is_compiling():
        _raise_for_odd_one(params, grads)
        _sgd_op(params, grads, lr, grad_scale, found_inf, name)
    else:  # the dispatcher would box and unbox both lists: 0.6 ms for 2,000 tensors, a third of the update itself
        _sgd(params, grads, lr, grad_scale, found_inf, name)
