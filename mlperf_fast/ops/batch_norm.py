"""Batch normalisation with what follows it in a residual network: y = relu(BN(x) + residual), channels last.

R rows (N H W) of C channels. Residual and ReLU may each be left out. Where ReLU kept an element is stored as one bit;
backward reads that and x: neither the sum nor y is kept for it. The statistics may be those of a group of ranks.
"""

from collections.abc import Callable, Iterable

import torch
import torch.distributed as torch_dist
import torch.nn.functional as F
from torch import Tensor

from mlperf_fast import _C
from mlperf_fast.errors import UserError
from mlperf_fast.ops.backend import TRITON_DEVICES, Applies, Op, define, once_only, resolve, shortcut
from mlperf_fast.ops.checks import FLOATS, address, check, check_number

Group = torch_dist.ProcessGroup | None

# 1. The truth ---------------------------------------------------------------------------------------------------


def batch_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    residual: Tensor | None = None,
    relu: bool = False,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Plain PyTorch; its gradient is autograd's. 16-bit values are normalised in float32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    weight, bias = weight.to(wide), bias.to(wide)
    y = F.batch_norm(x.to(wide), running_mean, running_var, weight, bias, training, momentum, eps)
    y = y if residual is None else y + residual.to(wide)
    return (F.relu(y) if relu else y).to(x.dtype)


# 2. Who can do it, best first, and when ---------------------------------------------------------------------------

BATCH_NORM = Op(
    "batch_norm",
    {
        "cpp": Applies(("cpu",), FLOATS),
        "triton": Applies(TRITON_DEVICES, FLOATS),
        "ref": Applies(),
    },
)
MASK_ROWS = 32  # that share a word of the mask


def _rows(x: Tensor) -> Tensor:
    """[N, C, ...] whose channels are last in memory as its [N ..., C] rows."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _folded(x: Tensor, backend: str) -> tuple[int, int]:
    """The same memory as rows and columns: the CPU's code is faster on long rows of whole registers."""
    N = x.shape[1]
    R = x.numel() // N
    while backend == "cpp" and N < 256 and R % 2 == 0:
        R, N = R // 2, 2 * N
    return R, N


def _native(function: Callable[..., None], x: Tensor, tensors: Iterable[Tensor | None], *numbers: float) -> None:
    function(*map(address, tensors), *numbers, *_folded(x, "cpp"), x.shape[1], FLOATS.index(x.dtype))


def _moments(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float, backend: str
) -> Tensor:
    """Mean and biased variance of x as the rows of [2, C] float32; running statistics in place."""
    moments = _fake_moments(x, running_mean, running_var, momentum, backend)
    if backend == "cpp":
        _native(_C.batch_norm_moments, x, (x, *moments.unbind(), running_mean, running_var), momentum)
    else:
        from mlperf_fast.kernels.batch_norm import batch_norm_moments

        batch_norm_moments(_rows(x), moments, running_mean, running_var, momentum)
    return moments


def _apply(
    x: Tensor, residual: Tensor | None, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float,
    relu: bool, keep: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y like x, and with `keep` the mask, int32; without, an empty one."""
    y, mask = _fake_apply(x, residual, mean, variance, weight, bias, eps, relu, keep, backend)
    wanted = mask if keep else None
    if backend == "cpp":
        _native(_C.batch_norm_apply, x, (x, residual, mean, variance, weight, bias, y, wanted), eps, relu)
    else:
        from mlperf_fast.kernels.batch_norm import batch_norm_apply

        batch_norm_apply(_rows(x), residual, mean, variance, weight, bias, y, wanted, eps, relu)
    return y, mask


def _sums(
    dy: Tensor, x: Tensor, mask: Tensor | None, mean: Tensor, variance: Tensor, eps: float, both: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """The gradients of bias and weight as the rows of [2, C] float32; and with `both` that of the residual."""
    sums, dresidual = _fake_sums(dy, x, mask, mean, variance, eps, both, backend)
    wanted = dresidual if both else None
    if backend == "cpp":
        _native(_C.batch_norm_sums, x, (dy, x, mask, mean, variance, sums, wanted), eps)
    else:
        from mlperf_fast.kernels.batch_norm import batch_norm_sums

        batch_norm_sums(dy, _rows(x), mask, mean, variance, sums, wanted, eps)
    return sums, dresidual


def _dx(
    dy: Tensor, x: Tensor, mask: Tensor | None, mean: Tensor, variance: Tensor, weight: Tensor, sums: Tensor,
    eps: float, count: int, backend: str,
) -> Tensor:  # fmt: skip
    dx = torch.empty_like(x)
    if backend == "cpp":
        _native(_C.batch_norm_dx, x, (dy, x, mask, mean, variance, weight, sums, dx), eps, count)
    else:
        from mlperf_fast.kernels.batch_norm import batch_norm_dx

        batch_norm_dx(dy, _rows(x), mask, mean, variance, weight, sums, dx, eps, count)
    return dx


# 3. Registration: shapes without data, and the gradient ------------------------------------------------------------


def _fake_moments(x, running_mean, running_var, momentum, backend):
    return x.new_empty(2, x.shape[1], dtype=torch.float32)


def _fake_apply(x, residual, mean, variance, weight, bias, eps, relu, keep, backend):
    rows, columns = _folded(x, backend)
    words = (-(-rows // MASK_ROWS), columns) if keep else (0, 0)
    return torch.empty_like(x), x.new_empty(words, dtype=torch.int32)


def _fake_sums(dy, x, mask, mean, variance, eps, both, backend):
    return mean.new_empty(2, len(mean)), torch.empty_like(x) if both else x.new_empty(0)


_op_moments = define(
    "batch_norm_moments(Tensor x, Tensor(a!)? running_mean, Tensor(b!)? running_var, float momentum, str backend) "
    "-> Tensor",
    _moments,
    _fake_moments,
)
_op_apply = define(
    "batch_norm_apply(Tensor x, Tensor? residual, Tensor mean, Tensor variance, Tensor weight, Tensor bias, float eps, "
    "bool relu, bool keep, str backend) -> (Tensor, Tensor)",
    _apply,
    _fake_apply,
)
_op_sums = define(
    "batch_norm_sums(Tensor dy, Tensor x, Tensor? mask, Tensor mean, Tensor variance, float eps, bool both, "
    "str backend) -> (Tensor, Tensor)",
    _sums,
    _fake_sums,
)
_op_dx = define(
    "batch_norm_dx(Tensor dy, Tensor x, Tensor? mask, Tensor mean, Tensor variance, Tensor weight, Tensor sums, "
    "float eps, int count, str backend) -> Tensor",
    _dx,
    lambda dy, x, *others: torch.empty_like(x),
)
_batch_norm_moments, _batch_norm_apply = shortcut(_op_moments, _moments), shortcut(_op_apply, _apply)
_batch_norm_sums, _batch_norm_dx = shortcut(_op_sums, _sums), shortcut(_op_dx, _dx)


def _last(x: Tensor) -> Tensor:
    """x with its channels last in memory: itself where they are, as they should be. The ops take it so: a view of its
    rows, and one back, would cost 10 us a tensor."""
    if x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _shared_moments(x: Tensor, running: tuple[Tensor, Tensor], momentum: float, group: Group, backend: str) -> Tensor:
    """The moments of all ranks' rows, of which each has as many."""
    own = _batch_norm_moments(x, None, None, momentum, backend)
    each = own.new_empty(_size(group), *own.shape)
    torch_dist.all_gather_into_tensor(each.view(-1, own.shape[1]), own, group=group)
    means, variances = each.unbind(1)
    mean = means.mean(0)
    moments = torch.stack([mean, variances.mean(0) + (means - mean).square().mean(0)])
    count = x.numel() // x.shape[1] * len(each)
    for value, new in zip(running, (moments[0], moments[1] * (count / (count - 1))), strict=True):
        value.lerp_(new, momentum)
    return moments


def _size(group: Group) -> int:
    return 1 if group is None else torch_dist.get_world_size(group)


class BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, residual, running_mean, running_var, relu, momentum, eps, group, backend):
        if _size(group) > 1:
            moments = _shared_moments(x, (running_mean, running_var), momentum, group, backend)
        else:
            moments = _batch_norm_moments(x, running_mean, running_var, momentum, backend)
        mean, variance = moments.unbind()
        y, mask = _batch_norm_apply(x, residual, mean, variance, weight, bias, eps, relu, relu, backend)
        ctx.save_for_backward(x, weight, mean, variance, mask if relu else None)
        ctx.arguments = eps, group, residual is not None, backend
        return y

    @staticmethod
    def backward(ctx, dy):
        once_only("batch_norm")
        x, weight, mean, variance, mask = ctx.saved_tensors
        eps, group, has_residual, backend = ctx.arguments
        given = _last(dy)
        both = has_residual and mask is not None  # without ReLU the residual's gradient is dy
        own, dresidual = _batch_norm_sums(given, x, mask, mean, variance, eps, both, backend)
        if both:  # ReLU's part is done in it
            given, mask = dresidual, None
        sums = own
        if _size(group) > 1:
            sums = own.clone()
            torch_dist.all_reduce(sums, group=group)
        count = x.numel() // x.shape[1] * _size(group)
        dx = _batch_norm_dx(given, x, mask, mean, variance, weight, sums, eps, count, backend)
        dbias, dweight = own.unbind()
        return dx, dweight, dbias, given if has_residual else None, *[None] * 7


# 4. The public function ---------------------------------------------------------------------------------------------


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    group: Group = None,
    backend: str | None = None,
) -> Tensor:
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, plus `residual`; with `relu` what is below 0 becomes 0.

    x             [N, C, ...]  float32, bfloat16 or float16; any float on ref. Its dtype is the result's; the arithmetic
                               is float32. Channels-last in memory, or a copy is made; the result is
    weight        [C]          float32, as bias and the running statistics are (on ref float64 too)
    residual      [N, C, ...]  x's shape and dtype; counts as 0 when absent
    running_mean, running_var  updated in place in training, by `momentum` times the new value, the variance unbiased;
                               they are what normalises in evaluation
    training      whether mean and (biased) variance are those of x, over all but C
    eps           added to the variance
    group         torch.distributed's, whose ranks share mean and variance: each with x of the same shape. Gradients of
                  weight and bias are those of the own x
    returns       [N, C, ...]

    Differentiable once, in x, weight, bias and residual, in training; in evaluation on ref only. NaN stays NaN.
    Raises UserError for wrong shapes, dtypes or devices, for a training batch of one value a channel, and for a backend
    that can't run here. Source: torch.nn.functional.batch_norm; Ioffe and Szegedy 2015.
    """
    op = "batch_norm"
    if x.dim() < 2:
        raise UserError(f"{op}: x has shape {list(x.shape)}, expected [N, C, ...]")
    C = x.shape[1:2]
    name = resolve(BATCH_NORM, x, backend)
    floats = (torch.float32, torch.float64) if name == "ref" else (torch.float32,)
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for label, vector in vectors.items():
        check(op, label, vector, C, floats, x)
    if residual is not None:
        check(op, "residual", residual, x.shape, (x.dtype,), x)
    check_number(op, "eps", eps)
    check_number(op, "momentum", momentum)
    if x.shape[1] == 0 or (training and x.numel() // x.shape[1] < 2):
        raise UserError(f"{op}: x has shape {list(x.shape)}, expected at least two values of each channel in training")
    if name == "ref":
        if _size(group) > 1:
            raise UserError(f"{op}: backend ref has no statistics of a group; choose another, or leave `group` out")
        return batch_norm_ref(x, weight, bias, running_mean, running_var, residual, relu, training, momentum, eps)
    weight, bias = weight.contiguous(), bias.contiguous()
    x, residual = _last(x), None if residual is None else _last(residual)
    if training:
        statistics = (running_mean, running_var)
        return BatchNorm.apply(x, weight, bias, residual, *statistics, relu, momentum, eps, group, name)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias, residual)):
        raise UserError(f"{op}: evaluation has no gradient but on ref: use torch.no_grad(), or backend='ref'")
    return _batch_norm_apply(x, residual, running_mean, running_var, weight, bias, eps, relu, False, name)[0]
