"""The norm of all gradients together, and whether all are finite, in one pass; undoing the loss scale on the way."""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from mlperf_fast import _C, _cuda
from mlperf_fast.errors import UserError
from mlperf_fast.ops.backend import CUDA_DEVICES, Applies, Op, define, resolve, traced
from mlperf_fast.ops.checks import FLOATS, address, check, check_scalar
from mlperf_fast.ops.lists import TensorList, check_dense, read

# 1. The truth ---------------------------------------------------------------------------------------------------


def grad_norm_ref(grads: Sequence[Tensor], grad_scale: Tensor | None = None, found_inf: Tensor | None = None) -> Tensor:
    """grad_scale · the square root of the sum of all squares, in float64; any float dtype, no host sync."""
    squares = torch.stack([g.double().square().sum() for g in grads]).sum()
    if found_inf is not None:
        finite = torch.stack([g.isfinite().all() for g in grads]).all()
        found_inf.copy_(torch.where(finite, found_inf, 1))
    norm = squares.sqrt()
    return norm if grad_scale is None else norm * grad_scale.double().reshape(())


def unscale_ref_(grads: Sequence[Tensor], grad_scale: Tensor, found_inf: Tensor) -> Tensor:
    """The norm as above; then each gradient times grad_scale, in place."""
    norm = grad_norm_ref(grads, grad_scale, found_inf)
    for g in grads:
        g.copy_(g * grad_scale)
    return norm


# 2. Who can do it, best first, and when ---------------------------------------------------------------------------

GRAD_NORM = Op("grad_norm", {"cpp": Applies(("cpu",), FLOATS), "cuda": Applies(CUDA_DEVICES, FLOATS), "ref": Applies()})


def _norm(grads, grad_scale, found_inf, backend):
    return _run("grad_norm", grads, grad_scale, found_inf, False, backend)


def _unscale(grads, grad_scale, found_inf, backend):
    return _run("unscale_", grads, grad_scale, found_inf, True, backend)


def _run(op, grads, grad_scale, found_inf, unscale, backend):
    addresses, sizes, counts = _by_type(op, grads)
    norm = torch.empty((), dtype=torch.float64, device=grads[0].device)
    torch.autograd.graph.increment_version([*(grads if unscale else ()), *([] if found_inf is None else [found_inf])])
    tables = [table.buffer_info()[0] for table in (addresses, sizes, counts)]
    arguments = *tables, address(grad_scale), address(found_inf), norm.data_ptr(), unscale
    if backend == "cpp":
        _C.grad_norm(*arguments)
    else:
        scratch = norm.new_empty(_cuda.grad_norm_scratch(tables[1], len(grads)))
        _cuda.call(_cuda.grad_norm, norm, *arguments, scratch.data_ptr())
    return norm


def _by_type(op: str, grads: Sequence[Tensor]) -> tuple[array, array, array]:
    """Addresses, elements and how many there are of each of FLOATS, in this order."""
    counts = array("q", [0] * len(FLOATS))
    found = read(grads)
    if found and grads[0].dtype in FLOATS:
        counts[FLOATS.index(grads[0].dtype)] = len(grads)
        return found.addresses, found.sizes, counts
    addresses, sizes = array("q"), array("q")
    for i, g in enumerate(grads):
        check(op, f"grads[{i}]", g, g.shape, FLOATS, grads[0])
        check_dense(op, f"grads[{i}]", g)
    for place, dtype in enumerate(FLOATS):
        same = [g for g in grads if g.dtype == dtype]
        counts[place] = len(same)
        part: TensorList | None = read(same) if same else None
        if part:
            addresses += part.addresses
            sizes += part.sizes
    if len(addresses) != len(grads):
        raise UserError(f"{op}: the backend takes plain tensors with memory of their own")
    return addresses, sizes, counts


# 3. Registration. No gradient: norms of gradients are not differentiated ------------------------------------------


def _fake(grads, *rest):
    return torch.empty((), dtype=torch.float64, device=grads[0].device)


_norm_op = define("grad_norm(Tensor[] grads, Tensor? grad_scale, Tensor(a!)? found_inf, str backend) -> Tensor",
                  _norm, _fake)  # fmt: skip
_unscale_op = define("unscale_(Tensor(a!)[] grads, Tensor grad_scale, Tensor(b!) found_inf, str backend) -> Tensor",
                     _unscale, _fake)  # fmt: skip


# 4. The public functions --------------------------------------------------------------------------------------------


@torch.no_grad()
def grad_norm(
    grads: Sequence[Tensor],
    *,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """grad_scale · the L2 norm over all elements of all gradients: float64 [], on their device.

    grads       float32, bfloat16 and float16 tensors in any mixture, contiguous or channels last, on one device (any
                float on ref); at least one; empty ones are fine
    grad_scale  one float32 there: the factor that undoes loss scaling; 1 when absent
    found_inf   one float32 there: set to 1 where an element is infinite or NaN, else left as it is

    float64, so that the norms of a gradient's shards can be squared and added up without loss; squares of finite
    floats neither overflow nor vanish in it. The same bits for any number of threads.
    Raises UserError for tensors of other dtypes, devices or layouts.
    """
    name = _checked("grad_norm", grads, grad_scale, found_inf, backend)
    if name == "ref":
        return grad_norm_ref(grads, grad_scale, found_inf)
    if traced():
        return _norm_op(grads, grad_scale, found_inf, name)
    return _norm(grads, grad_scale, found_inf, name)


@torch.no_grad()
def unscale_(grads: Sequence[Tensor], grad_scale: Tensor, found_inf: Tensor, *, backend: str | None = None) -> Tensor:
    """grads[i] *= grad_scale in place, for all i at once; the rest as `grad_norm`, whose result it returns.

    Does in one call for all dtypes what torch.amp.GradScaler.unscale_ does in one for each, and gives the norm too.
    """
    check_scalar("unscale_", "grad_scale", grad_scale, *grads[:1] or [grad_scale])
    name = _checked("unscale_", grads, grad_scale, found_inf, backend)
    if name == "ref":
        return unscale_ref_(grads, grad_scale, found_inf)
    if traced():
        return _unscale_op(grads, grad_scale, found_inf, name)
    return _unscale(grads, grad_scale, found_inf, name)


def _checked(op: str, grads: Sequence[Tensor], grad_scale, found_inf, backend: str | None) -> str:
    """What both ask of their arguments; the backend that runs."""
    if not grads:
        raise UserError(f"{op}: no gradients; expected at least one tensor")
    check_scalar(op, "grad_scale", grad_scale, grads[0], optional=True)
    check_scalar(op, "found_inf", found_inf, grads[0], optional=op == "grad_norm")
    return resolve(GRAD_NORM, grads[0], backend)
