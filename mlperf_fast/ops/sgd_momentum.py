"""SGD with momentum over many tensors in one call, with 16-bit copies of the weights written on the way."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlperf_fast.errors import UserError
from mlperf_fast.ops.backend import CUDA_DEVICES, Applies, Op, define, resolve
from mlperf_fast.ops.checks import check_number
from mlperf_fast.ops.updates import call_native, check_update, update, write

# 1. The truth ---------------------------------------------------------------------------------------------------


def sgd_momentum_ref_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    copies: Sequence[Tensor],
    lr: Tensor,
    step: Tensor,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    lr_inside: bool,
) -> None:
    """What torch.optim.SGD does, or with `lr_inside` Keras's; any float dtype, no host sync."""
    for i, (p, g, b) in enumerate(zip(params, grads, momentum_buffers, strict=True)):
        g = g.to(p.dtype) if grad_scale is None else g.to(p.dtype) * grad_scale
        g = g + weight_decay * p
        if lr_inside:
            g = lr * g
        buffer = torch.where(step == 1, g, momentum * b + (1 - dampening) * g)
        change = g + momentum * buffer if nesterov else buffer
        write(b, buffer, found_inf)
        write(p, p - (change if lr_inside else lr * change), found_inf)
        if copies:
            write(copies[i], p, found_inf)


# 2. Who can do it, best first, and when ---------------------------------------------------------------------------

SGD_MOMENTUM = Op(
    "sgd_momentum",
    {"cpp": Applies(("cpu",), (torch.float32,)), "cuda": Applies(CUDA_DEVICES, (torch.float32,)), "ref": Applies()},
)


def _sgd_momentum(params, grads, momentum_buffers, copies, *arguments):
    lists = {"params": params, "grads": grads, "momentum_buffers": momentum_buffers, "copies": copies}
    *rest, backend = arguments
    call_native("sgd_momentum_", backend, lists, ("grads", "copies"), *rest)


# 3. Registration. No gradient: an update is not differentiated ---------------------------------------------------

_sgd_momentum_op = define(
    "sgd_momentum_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor(c!)[] copies, "
    "Tensor lr, Tensor step, Tensor? grad_scale, Tensor? found_inf, float momentum, float dampening, bool nesterov, "
    "float weight_decay, bool lr_inside, str backend) -> ()",
    _sgd_momentum,
    lambda *arguments: None,
)


# 4. The public function ---------------------------------------------------------------------------------------------


def sgd_momentum_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    lr: Tensor,
    step: Tensor,
    *,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    copies: Sequence[Tensor] = (),
    momentum: float = 0.9,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    lr_inside: bool = False,
    backend: str | None = None,
) -> None:
    """One step of SGD with momentum, in place, for all tensors at once. With g = grad_scale * grads[i]:

        g += weight_decay * p
        b = momentum * b + (1 - dampening) * g      but b = g where step is 1
        p -= lr * b                                 or, with nesterov: p -= lr * (g + momentum * b)

    params, momentum_buffers (b)
                   as many float32 tensors each (any float on ref), on one device, of equal shapes, contiguous or all
                   channels last; none may overlap. Empty lists and empty tensors are fine
    grads          the same, float32, bfloat16 or float16
    copies         as many tensors, or none: the new params are written there too, rounded to float16 or bfloat16
    lr, step       one float32 each on their device. `step` counts this update, from 1; the caller advances it, and
                   leaves it alone after a found_inf
    grad_scale     the factor that undoes loss scaling (1 when absent; torch's fused optimizers divide by theirs), and
    found_inf      other than 0: nothing is written
    lr_inside      lr multiplies g before it enters b, and not b: what Keras and ResNet's reference do. It differs
                   while lr changes, since past gradients then keep the lr of their own step

    Raises UserError for lists of different lengths, shapes, dtypes or devices, and for numbers out of range.
    Source: torch.optim.SGD; tf.keras.optimizers.SGD for lr_inside.
    """
    lists = {"params": params, "grads": grads, "momentum_buffers": momentum_buffers}
    if copies:
        lists["copies"] = copies
    for name, value in (("momentum", momentum), ("dampening", dampening), ("weight_decay", weight_decay)):
        check_number("sgd_momentum_", name, value)
    if nesterov and (momentum == 0 or dampening != 0):
        raise UserError(f"sgd_momentum_: nesterov needs a momentum and no dampening, found {momentum} and {dampening}")
    if not check_update(
        "sgd_momentum_", lists, {"lr": lr, "step": step}, {"grad_scale": grad_scale, "found_inf": found_inf}
    ):
        return
    arguments = (
        params, grads, momentum_buffers, copies, lr, step, grad_scale, found_inf, momentum, dampening, nesterov,
        weight_decay, lr_inside,
    )  # fmt: skip
    backend = resolve(SGD_MOMENTUM, params[0], backend)
    update("sgd_momentum_", lists, backend, sgd_momentum_ref_, _sgd_momentum, _sgd_momentum_op, arguments)
