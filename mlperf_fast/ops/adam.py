"""Adam and AdamW over many tensors in one call, with 16-bit copies of the weights written on the way."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlperf_fast.ops.backend import CUDA_DEVICES, Applies, Op, define, resolve
from mlperf_fast.ops.checks import check_number
from mlperf_fast.ops.updates import call_native, check_update, update, write

# 1. The truth ---------------------------------------------------------------------------------------------------


def adam_ref_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    copies: Sequence[Tensor],
    lr: Tensor,
    step: Tensor,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """What torch.optim.Adam does, or AdamW where `decoupled`; any float dtype, no host sync."""
    # In float32, 1 - 0.999 would have four right digits.
    correction1, correction2 = (1 - beta ** step.double() for beta in (beta1, beta2))
    step_size, root = (lr / correction1).to(lr.dtype), correction2.sqrt().to(lr.dtype)
    for i, (p, g, m, v) in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)):
        g = g.to(p.dtype) if grad_scale is None else g.to(p.dtype) * grad_scale
        kept = p * (1 - lr * weight_decay) if decoupled else p
        if not decoupled:
            g = g + weight_decay * p
        first = beta1 * m + (1 - beta1) * g
        second = beta2 * v + (1 - beta2) * g * g
        write(m, first, found_inf)
        write(v, second, found_inf)
        write(p, kept - step_size * first / (second.sqrt() / root + eps), found_inf)
        if copies:
            write(copies[i], p, found_inf)


# 2. Who can do it, best first, and when ---------------------------------------------------------------------------

ADAM = Op(
    "adam",
    {"cpp": Applies(("cpu",), (torch.float32,)), "cuda": Applies(CUDA_DEVICES, (torch.float32,)), "ref": Applies()},
)


def _adam(params, grads, exp_avgs, exp_avg_sqs, copies, *arguments):
    lists = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "copies": copies}
    *rest, backend = arguments
    call_native("adam_", backend, lists, ("grads", "copies"), *rest)


# 3. Registration. No gradient: an update is not differentiated ---------------------------------------------------

_adam_op = define(
    "adam_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] copies, "
    "Tensor lr, Tensor step, Tensor? grad_scale, Tensor? found_inf, float beta1, float beta2, float eps, "
    "float weight_decay, bool decoupled, str backend) -> ()",
    _adam,
    lambda *arguments: None,
)


# 4. The public function ---------------------------------------------------------------------------------------------


def adam_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    lr: Tensor,
    step: Tensor,
    *,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    copies: Sequence[Tensor] = (),
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    backend: str | None = None,
) -> None:
    """One step of Adam, in place, for all tensors at once. With g = grad_scale * grads[i] and t = step:

        g += weight_decay * p                        or, decoupled (AdamW): p -= lr * weight_decay * p
        m = beta1 * m + (1 - beta1) * g              v = beta2 * v + (1 - beta2) * g^2
        p -= lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    params, exp_avgs (m), exp_avg_sqs (v)
                   as many float32 tensors each (any float on ref), on one device, of equal shapes, contiguous or all
                   channels last; none may overlap. Empty lists and empty tensors are fine
    grads          the same, float32, bfloat16 or float16
    copies         as many tensors, or none: the new params are written there too, rounded to float16 or bfloat16
    lr, step       one float32 each on their device. `step` counts this update, from 1; the caller advances it, and
                   leaves it alone after a found_inf
    grad_scale     the factor that undoes loss scaling (1 when absent; torch's fused optimizers divide by theirs), and
    found_inf      other than 0: nothing is written
    betas, eps, weight_decay   numbers that stay the same in a captured step

    Raises UserError for lists of different lengths, shapes, dtypes or devices, and for numbers out of range.
    Source: torch.optim.Adam and AdamW without amsgrad; Kingma & Ba 2015, Loshchilov & Hutter 2019.
    """
    lists = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    if copies:
        lists["copies"] = copies
    for name, value, most in (("betas[0]", betas[0], 1), ("betas[1]", betas[1], 1), ("eps", eps, None)):
        check_number("adam_", name, value, below=most)
    check_number("adam_", "weight_decay", weight_decay)
    if not check_update("adam_", lists, {"lr": lr, "step": step}, {"grad_scale": grad_scale, "found_inf": found_inf}):
        return
    arguments = (
        params, grads, exp_avgs, exp_avg_sqs, copies, lr, step, grad_scale, found_inf, *betas, eps, weight_decay,
        decoupled,
    )  # fmt: skip
    update("adam_", lists, resolve(ADAM, params[0], backend), adam_ref_, _adam, _adam_op, arguments)
