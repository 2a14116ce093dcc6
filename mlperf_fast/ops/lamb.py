"""LAMB over many tensors in one call, and in two halves for tensors that are spread over several processes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlperf_fast.errors import UserError
from mlperf_fast.ops.backend import CUDA_DEVICES, Applies, Op, define, resolve
from mlperf_fast.ops.checks import check, check_contiguous, check_number
from mlperf_fast.ops.updates import call_native, check_update, each, floats, update, write

# 1. The truth ---------------------------------------------------------------------------------------------------


def lamb_ref_(
    params, grads, exp_avgs, exp_avg_sqs, copies, weight_decays, adapted, lr, step, grad_norm, grad_scale, found_inf,
    beta1, beta2, eps, max_grad_norm, grad_averaging, bias_correction,
) -> None:  # fmt: skip
    """The formula of lamb_ below; any float dtype, no host sync."""
    squares = torch.zeros(len(params), 2, dtype=torch.float64, device=params[0].device)
    lamb_moments_ref_(params, grads, exp_avgs, exp_avg_sqs, squares, weight_decays, step, grad_norm, grad_scale,
                      found_inf, beta1, beta2, eps, max_grad_norm, grad_averaging, bias_correction)  # fmt: skip
    lamb_apply_ref_(params, exp_avgs, exp_avg_sqs, copies, squares, weight_decays, adapted, lr, step, found_inf,
                    beta1, beta2, eps, bias_correction)  # fmt: skip


def lamb_moments_ref_(
    params, grads, exp_avgs, exp_avg_sqs, squares, weight_decays, step, grad_norm, grad_scale, found_inf,
    beta1, beta2, eps, max_grad_norm, grad_averaging, bias_correction,
) -> None:  # fmt: skip
    """The first half: moments, and the squared norms of weight and update."""
    scale = torch.ones_like(step) if grad_scale is None else grad_scale
    if grad_norm is not None:
        scale = scale * torch.where(grad_norm > max_grad_norm, max_grad_norm / grad_norm, 1)
    for i, (p, g, m, v) in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)):
        g = g.to(p.dtype) * scale.to(p.dtype)
        write(m, beta1 * m + (1 - beta1 if grad_averaging else 1) * g, found_inf)
        write(v, beta2 * v + (1 - beta2) * g * g, found_inf)
        u = direction_ref(p, m, v, weight_decays[i], step, beta1, beta2, eps, bias_correction)
        squares[i] = torch.stack([p.norm(), u.norm()]).double().square()


def lamb_apply_ref_(
    params, exp_avgs, exp_avg_sqs, copies, squares, weight_decays, adapted, lr, step, found_inf,
    beta1, beta2, eps, bias_correction,
) -> None:  # fmt: skip
    """The second half: the trust ratio from the squared norms, and the step."""
    for i, (p, m, v) in enumerate(zip(params, exp_avgs, exp_avg_sqs, strict=True)):
        u = direction_ref(p, m, v, weight_decays[i], step, beta1, beta2, eps, bias_correction)
        weight, length = squares[i].sqrt().unbind()
        ratio = torch.where((weight > 0) & (length > 0), weight / length, 1).to(p.dtype) if adapted[i] else 1
        write(p, p - lr * ratio * u, found_inf)
        if copies:
            write(copies[i], p, found_inf)


def direction_ref(p, m, v, weight_decay, step, beta1, beta2, eps, bias_correction) -> Tensor:
    """Where Adam would step, before the learning rate: of p's shape. m and v already hold this step's gradient."""
    if bias_correction:  # in float32, 1 - 0.999 would have four right digits
        m = m / (1 - beta1 ** step.double()).to(m.dtype)
        v = v / (1 - beta2 ** step.double()).to(v.dtype)
    return m / (v.sqrt() + eps) + weight_decay * p


# 2. Who can do it, best first, and when ---------------------------------------------------------------------------

LAMB = Op(
    "lamb",
    {"cpp": Applies(("cpu",), (torch.float32,)), "cuda": Applies(CUDA_DEVICES, (torch.float32,)), "ref": Applies()},
)


def _lamb(params, grads, exp_avgs, exp_avg_sqs, copies, weight_decays, adapted, *arguments):
    lists = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "copies": copies}
    *rest, backend = arguments
    call_native("lamb_", backend, lists, ("grads", "copies"), floats(weight_decays), floats(adapted), *rest)


def _moments(params, grads, exp_avgs, exp_avg_sqs, squares, weight_decays, *arguments):
    lists = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    *rest, backend = arguments
    call_native("lamb_moments_", backend, lists, ("grads",), squares, floats(weight_decays), *rest)


def _apply(params, exp_avgs, exp_avg_sqs, copies, squares, weight_decays, adapted, *arguments):
    lists = {"params": params, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "copies": copies}
    *rest, backend = arguments
    call_native("lamb_apply_", backend, lists, ("copies",), squares, floats(weight_decays), floats(adapted),
                *rest)  # fmt: skip


# 3. Registration. No gradient: an update is not differentiated ---------------------------------------------------

_SCALARS = (
    "Tensor step, Tensor? grad_norm, Tensor? grad_scale, Tensor? found_inf, float beta1, float beta2, float eps, "
)
_CLIP = "float max_grad_norm, bool grad_averaging, "
_lamb_op = define(
    "lamb_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] copies, "
    f"float[] weight_decays, bool[] adapted, Tensor lr, {_SCALARS}{_CLIP}bool bias_correction, str backend) -> ()",
    _lamb,
    lambda *arguments: None,
)
_moments_op = define(
    "lamb_moments_(Tensor[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    f"Tensor(d!) squares, float[] weight_decays, {_SCALARS}{_CLIP}bool bias_correction, str backend) -> ()",
    _moments,
    lambda *arguments: None,
)
_apply_op = define(
    "lamb_apply_(Tensor(a!)[] params, Tensor[] exp_avgs, Tensor[] exp_avg_sqs, Tensor(d!)[] copies, Tensor squares, "
    "float[] weight_decays, bool[] adapted, Tensor lr, Tensor step, Tensor? found_inf, float beta1, float beta2, "
    "float eps, bool bias_correction, str backend) -> ()",
    _apply,
    lambda *arguments: None,
)


# 4. The public functions --------------------------------------------------------------------------------------------


def lamb_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    lr: Tensor,
    step: Tensor,
    *,
    grad_norm: Tensor | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    copies: Sequence[Tensor] = (),
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float | Sequence[float] = 0.01,
    adapted: bool | Sequence[bool] = True,
    max_grad_norm: float = 1.0,
    grad_averaging: bool = True,
    bias_correction: bool = True,
    backend: str | None = None,
) -> None:
    """One step of LAMB, in place, for all tensors at once. With t = step:

        g = grad_scale * grads[i] * min(1, max_grad_norm / grad_norm)
        m = beta1 * m + (1 - beta1) * g              v = beta2 * v + (1 - beta2) * g^2
        u = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay * p
        p -= lr * r * u                              r = |p| / |u| where `adapted` and neither is 0, else 1

    params, exp_avgs (m), exp_avg_sqs (v)
                   as many float32 tensors each (any float on ref), on one device, of equal shapes, contiguous or all
                   channels last; none may overlap. Empty lists and empty tensors are fine
    grads          the same, float32, bfloat16 or float16
    copies         as many tensors, or none: the new params are written there too, rounded to float16 or bfloat16
    lr, step       one float32 each on their device. `step` counts this update, from 1; the caller advances it, and
                   leaves it alone after a found_inf
    grad_norm      one float64 there, as ops.grad_norm gives it: the norm over all gradients of the model, times
                   grad_scale. No clipping when absent
    grad_scale     the factor that undoes loss scaling (1 when absent), and
    found_inf      other than 0: nothing is written
    weight_decay, adapted      one for all tensors or one for each
    grad_averaging False leaves out the factor 1 - beta1 of g in m
    bias_correction False leaves out both 1 - beta^t

    Raises UserError for lists of different lengths, shapes, dtypes or devices, and for numbers out of range.
    Sources: You et al. 2020; the order of operations is the BERT reference's (mlcommons/training, lamb_optimizer_v1.py)
    and apex's (csrc/multi_tensor_lamb.cu), which agree up to which tensors are decayed and adapted: see optim/lamb.py.
    """
    lists = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    if copies:
        lists["copies"] = copies
    optional = {"grad_scale": grad_scale, "found_inf": found_inf}
    if not _checked("lamb_", lists, {"lr": lr, "step": step}, optional, (*betas, eps, max_grad_norm), grad_norm):
        return
    decays, adapt = each("lamb_", "weight_decay", weight_decay, params), each("lamb_", "adapted", adapted, params)
    arguments = (
        params, grads, exp_avgs, exp_avg_sqs, copies, decays, adapt, lr, step, grad_norm, grad_scale, found_inf, *betas,
        eps, max_grad_norm, grad_averaging, bias_correction,
    )  # fmt: skip
    update("lamb_", lists, resolve(LAMB, params[0], backend), lamb_ref_, _lamb, _lamb_op, arguments)


def lamb_moments_(
    params: Sequence[Tensor], grads: Sequence[Tensor], exp_avgs: Sequence[Tensor], exp_avg_sqs: Sequence[Tensor],
    step: Tensor, *, grad_norm: Tensor | None = None, grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6,
    weight_decay: float | Sequence[float] = 0.01, max_grad_norm: float = 1.0, grad_averaging: bool = True,
    bias_correction: bool = True, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """The first half of lamb_, for parts of tensors: updates m and v.

    Returns float64 [tensors, 2], the sums of p^2 and of u^2 over each part. Added up over all parts of a tensor they
    are what lamb_apply_ takes. Parts that start at a multiple of 1,024 elements of their tensor give the same sums as
    the whole. Arguments and errors as in lamb_.
    """
    lists = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    optional = {"grad_scale": grad_scale, "found_inf": found_inf}
    squares = torch.zeros(len(params), 2, dtype=torch.float64, device=(*params, step)[0].device)
    if _checked("lamb_moments_", lists, {"step": step}, optional, (*betas, eps, max_grad_norm), grad_norm):
        arguments = (
            params, grads, exp_avgs, exp_avg_sqs, squares, each("lamb_moments_", "weight_decay", weight_decay, params),
            step, grad_norm, grad_scale, found_inf, *betas, eps, max_grad_norm, grad_averaging, bias_correction,
        )  # fmt: skip
        update("lamb_moments_", lists, resolve(LAMB, params[0], backend), lamb_moments_ref_, _moments, _moments_op,
               arguments)  # fmt: skip
    return squares


def lamb_apply_(
    params: Sequence[Tensor], exp_avgs: Sequence[Tensor], exp_avg_sqs: Sequence[Tensor], squares: Tensor, lr: Tensor,
    step: Tensor, *, found_inf: Tensor | None = None, copies: Sequence[Tensor] = (),
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6, weight_decay: float | Sequence[float] = 0.01,
    adapted: bool | Sequence[bool] = True, bias_correction: bool = True, backend: str | None = None,
) -> None:  # fmt: skip
    """The second half of lamb_, after lamb_moments_ with the same numbers: p -= lr * r * u, and the copies.

    squares   float64 [tensors, 2], contiguous: |p|^2 and |u|^2 over each whole tensor. The rest as in lamb_.
    """
    lists = {"params": params, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    if copies:
        lists["copies"] = copies
    scalars, numbers = {"lr": lr, "step": step}, (*betas, eps, 0.0)
    if not _checked("lamb_apply_", lists, scalars, {"found_inf": found_inf}, numbers, None):
        return
    check("lamb_apply_", "squares", squares, (len(params), 2), (torch.float64,), params[0])
    check_contiguous("lamb_apply_", "squares", squares)
    arguments = (
        params, exp_avgs, exp_avg_sqs, copies, squares, each("lamb_apply_", "weight_decay", weight_decay, params),
        each("lamb_apply_", "adapted", adapted, params), lr, step, found_inf, *betas, eps, bias_correction,
    )  # fmt: skip
    update("lamb_apply_", lists, resolve(LAMB, params[0], backend), lamb_apply_ref_, _apply, _apply_op, arguments)


def _checked(op: str, lists: dict, scalars: dict, optional: dict, numbers: tuple, grad_norm: Tensor | None) -> bool:
    for name, value, most in zip(("betas[0]", "betas[1]", "eps"), numbers, (1, 1, None), strict=False):
        check_number(op, name, value, below=most)
    if not numbers[3] >= 0:  # infinity is fine: no clipping
        raise UserError(f"{op}: max_grad_norm is {numbers[3]!r}, expected a number of 0 or more, or infinity")
    if not check_update(op, lists, scalars, optional):
        return False
    like = lists["params"][0]
    if grad_norm is not None:
        check(op, "grad_norm", grad_norm, grad_norm.shape if grad_norm.numel() == 1 else (), (torch.float64,), like)
    return True
