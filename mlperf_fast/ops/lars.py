"""LARS over many tensors in one call, with 16-bit copies of the weights written on the way."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlperf_fast.ops.backend import CUDA_DEVICES, Applies, Op, define, resolve
from mlperf_fast.ops.checks import check_number
from mlperf_fast.ops.updates import call_native, check_update, each, floats, update, write

# 1. The truth ---------------------------------------------------------------------------------------------------


def lars_ref_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    copies: Sequence[Tensor],
    weight_decays: Sequence[float],
    adapted: Sequence[bool],
    lr: Tensor,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    momentum: float,
    eta: float,
    eps: float,
    lr_inside: bool,
) -> None:
    """The formula of lars_ below; any float dtype, no host sync."""
    for i, (p, g, b) in enumerate(zip(params, grads, momentum_buffers, strict=True)):
        g = g.to(p.dtype) if grad_scale is None else g.to(p.dtype) * grad_scale
        weight, gradient = p.norm(), g.norm()
        trust = eta * weight / (gradient + weight_decays[i] * weight + eps)
        ratio = torch.where((weight > 0) & (gradient > 0), trust, 1) if adapted[i] else 1
        change = ratio * (g + weight_decays[i] * p)
        write(b, momentum * b + (lr * change if lr_inside else change), found_inf)
        write(p, p - (b if lr_inside else lr * b), found_inf)
        if copies:
            write(copies[i], p, found_inf)


# 2. Who can do it, best first, and when ---------------------------------------------------------------------------

LARS = Op(
    "lars",
    {"cpp": Applies(("cpu",), (torch.float32,)), "cuda": Applies(CUDA_DEVICES, (torch.float32,)), "ref": Applies()},
)


def _lars(params, grads, momentum_buffers, copies, weight_decays, adapted, *arguments):
    lists = {"params": params, "grads": grads, "momentum_buffers": momentum_buffers, "copies": copies}
    *rest, backend = arguments
    call_native("lars_", backend, lists, ("grads", "copies"), floats(weight_decays), floats(adapted), *rest)


# 3. Registration. No gradient: an update is not differentiated ---------------------------------------------------

_lars_op = define(
    "lars_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor(c!)[] copies, "
    "float[] weight_decays, bool[] adapted, Tensor lr, Tensor? grad_scale, Tensor? found_inf, float momentum, "
    "float eta, float eps, bool lr_inside, str backend) -> ()",
    _lars,
    lambda *arguments: None,
)


# 4. The public function ---------------------------------------------------------------------------------------------


def lars_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    lr: Tensor,
    *,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    copies: Sequence[Tensor] = (),
    momentum: float = 0.9,
    eta: float = 0.001,
    eps: float = 0.0,
    weight_decay: float | Sequence[float] = 0.0,
    adapted: bool | Sequence[bool] = True,
    lr_inside: bool = False,
    backend: str | None = None,
) -> None:
    """One step of LARS, in place, for all tensors at once. With g = grad_scale * grads[i]:

        r = eta * |p| / (|g| + weight_decay * |p| + eps)       where `adapted` and neither norm is 0, else 1
        b = momentum * b + r * (g + weight_decay * p)          p -= lr * b

    params, momentum_buffers (b)
                   as many float32 tensors each (any float on ref), on one device, of equal shapes, contiguous or all
                   channels last; none may overlap. Empty lists and empty tensors are fine. Buffers are zeros before
                   the first step
    grads          the same, float32, bfloat16 or float16
    copies         as many tensors, or none: the new params are written there too, rounded to float16 or bfloat16
    lr             one float32 on their device, as are
    grad_scale     the factor that undoes loss scaling (1 when absent), and
    found_inf      other than 0: nothing is written
    weight_decay, adapted      one for all tensors or one for each: ResNet's biases and batch norms have neither
    lr_inside      b = momentum * b + lr * r * (…), p -= b: what ResNet's reference does. Without it, lr acts as in
                   torch.optim.SGD; so it does where momentum is corrected by lr(t) / lr(t-1)

    Raises UserError for lists of different lengths, shapes, dtypes or devices, and for numbers out of range.
    Sources: You, Gitman & Ginsburg 2017; the ResNet reference (mlcommons/training, lars_optimizer.py).
    """
    lists = {"params": params, "grads": grads, "momentum_buffers": momentum_buffers}
    if copies:
        lists["copies"] = copies
    for name, value in (("momentum", momentum), ("eta", eta), ("eps", eps)):
        check_number("lars_", name, value)
    if not check_update("lars_", lists, {"lr": lr}, {"grad_scale": grad_scale, "found_inf": found_inf}):
        return
    decays, adapt = each("lars_", "weight_decay", weight_decay, params), each("lars_", "adapted", adapted, params)
    arguments = (
        params, grads, momentum_buffers, copies, decays, adapt, lr, grad_scale, found_inf, momentum, eta, eps,
        lr_inside,
    )  # fmt: skip
    update("lars_", lists, resolve(LARS, params[0], backend), lars_ref_, _lars, _lars_op, arguments)
