"""Plain SGD over many tensors in one call: p -= lr * grad_scale * g."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlperf_fast import _C, _cuda
from mlperf_fast.ops.backend import CUDA_DEVICES, TRITON_DEVICES, Applies, Op, define, resolve
from mlperf_fast.ops.checks import address, check
from mlperf_fast.ops.lists import read_matching
from mlperf_fast.ops.updates import check_update, update, write

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
        write(p, p - lr * (g if grad_scale is None else grad_scale * g), found_inf)


# 2. Who can do it, best first, and when ---------------------------------------------------------------------------

SGD = Op(
    "sgd",
    {
        "cpp": Applies(("cpu",), (torch.float32,)),
        "cuda": Applies(CUDA_DEVICES, (torch.float32,)),
        "triton": Applies(TRITON_DEVICES, (torch.float32,)),
        "ref": Applies(),
    },
)


def _sgd(params, grads, lr, grad_scale, found_inf, backend):
    p, g = read_matching("sgd_", backend, {"params": params, "grads": grads})
    if p.kind != g.kind:
        check("sgd_", "grads[0]", grads[0], params[0].shape, (params[0].dtype,), params[0])
    torch.autograd.graph.increment_version(params)
    if backend in ("cpp", "cuda"):
        tables = p.table, g.table, p.sizes.buffer_info()[0], len(params)
        scalars = lr.data_ptr(), address(grad_scale), address(found_inf)
        if backend == "cpp":
            _C.sgd(*tables, *scalars)
        else:
            _cuda.call(_cuda.sgd, lr, *tables, *scalars)
    else:
        from mlperf_fast.kernels.sgd import sgd

        sgd(p.addresses, g.addresses, p.sizes, lr, grad_scale, found_inf)


# 3. Registration. No gradient: an update is not differentiated ---------------------------------------------------

_sgd_op = define(
    "sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor lr, Tensor? grad_scale, Tensor? found_inf, str backend) -> ()",
    _sgd,
    lambda *arguments: None,
)


# 4. The public function ---------------------------------------------------------------------------------------------


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

    params, grads  as many float32 tensors each (any float on ref), on one device, of equal shapes, contiguous or all
                   channels last; none may overlap. Empty lists and empty tensors are fine
    lr             one float32 on their device, as are
    grad_scale     the factor that undoes loss scaling (1 when absent; torch's fused optimizers divide by theirs), and
    found_inf      other than 0: nothing is updated

    Raises UserError for lists of different lengths, sizes, dtypes or devices.
    Source: torch.optim.SGD(momentum=0).
    """
    lists = {"params": params, "grads": grads}
    if check_update("sgd_", lists, {"lr": lr}, {"grad_scale": grad_scale, "found_inf": found_inf}):
        arguments = (params, grads, lr, grad_scale, found_inf)
        update("sgd_", lists, resolve(SGD, params[0], backend), sgd_ref_, _sgd, _sgd_op, arguments)
