"""Layer normalisation with what stands before it in a transformer: y = LN(residual + dropout(x + bias)).

B rows of N elements. Bias, dropout and residual may each be left out. What is kept by dropout follows from a counter
(ops/dropout.py) and is computed again in backward, which reads x and the residual instead of their sum: no tensor
is stored but each row's mean and 1 / deviation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mlperf_fast import _C
from mlperf_fast.ops.backend import TRITON_DEVICES, Applies, Op, define, once_only, resolve, shortcut
from mlperf_fast.ops.checks import FLOATS, address, check, check_number
from mlperf_fast.ops.dropout import check_dropout, dropout_ref

# 1. The truth ---------------------------------------------------------------------------------------------------


def layer_norm_ref(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    threshold: int = 0,
    state: Tensor | None = None,
    site: int = 0,
    eps: float = 1e-12,
) -> Tensor:
    """Plain PyTorch; its gradient is autograd's. 16-bit rows are normalised in float32: 1e-12 is 0 in float16."""
    h = x if bias is None else x + bias.to(x.dtype)
    h = dropout_ref(h.reshape(-1, x.shape[-1]), threshold, state, site).view(x.shape)
    h = h if residual is None else residual + h
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.layer_norm(h.to(wide), x.shape[-1:], gamma.to(wide), beta.to(wide), eps).to(x.dtype)


# 2. Who can do it, best first, and when ---------------------------------------------------------------------------

LAYER_NORM = Op(
    "layer_norm",
    {
        "cpp": Applies(("cpu",), FLOATS),
        "triton": Applies(TRITON_DEVICES, FLOATS),
        "ref": Applies(),
    },
)


def _forward(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    threshold: int,
    state: Tensor | None,
    site: int,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, N] -> y, and each row's mean and 1 / deviation [B] in float32."""
    y, mean, rstd = _fake_forward(x, gamma, beta, bias, residual, threshold, state, site, eps, backend)
    rows = (x.contiguous(), _float(bias), _contiguous(residual), _float(gamma), _float(beta), y, mean, rstd)
    if backend == "cpp":
        stored_as = FLOATS.index(x.dtype)
        _C.layer_norm_fwd(*map(address, rows), *x.shape, eps, address(state), site, threshold, stored_as)
    else:
        from mlperf_fast.kernels.layer_norm import layer_norm_fwd

        layer_norm_fwd(*rows, eps, state, site, threshold)
    return y, mean, rstd


def _backward(
    x: Tensor,
    gamma: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    dy: Tensor,
    threshold: int,
    state: Tensor | None,
    site: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx; dresidual, empty where it is dx or not wanted; dgamma, dbeta and dbias as the rows of [3, N] float32."""
    dx, dresidual, sums = _fake_backward(x, gamma, bias, residual, mean, rstd, dy, threshold, state, site, backend)
    rows = (x.contiguous(), _float(bias), _contiguous(residual), _float(gamma), mean, rstd, dy.contiguous(), dx)
    to_residual = dresidual if dresidual.numel() else None
    if backend == "cpp":
        addresses = map(address, (*rows, to_residual, sums))
        _C.layer_norm_bwd(*addresses, *x.shape, address(state), site, threshold, FLOATS.index(x.dtype))
    else:
        from mlperf_fast.kernels.layer_norm import layer_norm_bwd

        layer_norm_bwd(*rows, to_residual, sums, state, site, threshold)
    return dx, dresidual, sums


def _float(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float().contiguous()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


# 3. Registration: shapes without data, and the gradient ------------------------------------------------------------


def _fake_forward(x, gamma, beta, bias, residual, threshold, state, site, eps, backend):
    mean = x.new_empty(x.shape[0], dtype=torch.float32)
    return x.new_empty(x.shape), mean, torch.empty_like(mean)


def _fake_backward(x, gamma, bias, residual, mean, rstd, dy, threshold, state, site, backend):
    twin = residual is None or threshold == 0
    return x.new_empty(x.shape), x.new_empty((0, 0) if twin else x.shape), x.new_empty(3, x.shape[1], dtype=mean.dtype)


_op = define(
    "layer_norm(Tensor x, Tensor gamma, Tensor beta, Tensor? bias, Tensor? residual, int threshold, Tensor? state, "
    "int site, float eps, str backend) -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
)
_op_bwd = define(
    "layer_norm_bwd(Tensor x, Tensor gamma, Tensor? bias, Tensor? residual, Tensor mean, Tensor rstd, Tensor dy, "
    "int threshold, Tensor? state, int site, str backend) -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_layer_norm, _layer_norm_bwd = shortcut(_op, _forward), shortcut(_op_bwd, _backward)


class LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gamma, beta, bias, residual, threshold, state, site, eps, backend):
        rows = x.reshape(-1, x.shape[-1])
        added = None if residual is None else residual.reshape(rows.shape)
        y, mean, rstd = _layer_norm(rows, gamma, beta, bias, added, threshold, state, site, eps, backend)
        ctx.save_for_backward(x, gamma, beta, bias, residual, mean, rstd, state)
        ctx.arguments = threshold, site, backend
        return y.view(x.shape)

    @staticmethod
    def backward(ctx, dy):
        once_only("layer_norm")
        x, gamma, beta, bias, residual, mean, rstd, state = ctx.saved_tensors
        threshold, site, backend = ctx.arguments
        rows, added, dy = (None if t is None else t.reshape(-1, x.shape[-1]) for t in (x, residual, dy))
        dx, dresidual, sums = _layer_norm_bwd(rows, gamma, bias, added, mean, rstd, dy, threshold, state, site, backend)
        dx = dx.view(x.shape)
        if residual is not None:
            dresidual = dresidual.view(x.shape) if threshold else dx
        dgamma, dbeta, dbias = sums
        return (
            dx,
            dgamma.to(gamma.dtype),
            dbeta.to(beta.dtype),
            None if bias is None else dbias.to(bias.dtype),
            None if residual is None else dresidual,
            *[None] * 5,
        )


# 4. The public function ---------------------------------------------------------------------------------------------


def layer_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    p: float = 0.0,
    state: Tensor | None = None,
    site: int = 0,
    eps: float = 1e-12,
    backend: str | None = None,
) -> Tensor:
    """y = (h - mean) / sqrt(variance + eps) * gamma + beta over the last dimension, h = residual + dropout(x + bias).

    x         [..., N]   float32, bfloat16 or float16; any float on ref. Its dtype is the result's; the arithmetic is
                         float32, eps included
    gamma     [N]        x's dtype or float32, as are
    beta      [N]
    bias      [N]        and what is left out counts as 0
    residual  [..., N]   x's shape and dtype
    p         what share of x + bias is dropped, 0 <= p < 1, rounded to 1 / 65,536; the rest is scaled by 1 / (1 - p).
              0 in evaluation
    state     [2] int64  seed and step, from ops.dropout.dropout_state; needed where p > 0
    site      which of the model's dropouts this is: each takes a number of its own
    eps       added to the variance
    returns   [..., N]

    Differentiable once in x, gamma, beta, bias and residual. A row of equal values becomes beta. Dropout's rows are
    those of x flattened to [B, N]; its choice is the same on every backend.
    Raises UserError for wrong shapes, dtypes or devices, and for a backend that can't run here.
    Source: nn.Dropout and nn.LayerNorm as BERT's BertSelfOutput and BertOutput have them.
    """
    op = "layer_norm"
    N = x.shape[-1:] if x.dim() else (1,)
    check(op, "gamma", gamma, N, (x.dtype, torch.float32), x)
    check(op, "beta", beta, N, (x.dtype, torch.float32), x)
    if bias is not None:
        check(op, "bias", bias, N, (x.dtype, torch.float32), x)
    if residual is not None:
        check(op, "residual", residual, x.shape, (x.dtype,), x)
    check_number(op, "eps", eps)
    threshold = check_dropout(op, p, state, site, x)
    name = resolve(LAYER_NORM, x, backend)
    if name == "ref":
        return layer_norm_ref(x, gamma, beta, bias, residual, threshold, state, site, eps)
    return LayerNorm.apply(x, gamma, beta, bias, residual, threshold, state, site, eps, name)
