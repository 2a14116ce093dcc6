"""y = gelu(x + bias), the form with tanh, as BERT's feed-forward layers have it between their two products.

B rows of N elements. One pass forward, one backward, which computes x + bias again and sums the bias's gradient on its
way.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mlperf_fast import _C
from mlperf_fast.ops.backend import TRITON_DEVICES, Applies, Op, define, once_only, resolve, shortcut
from mlperf_fast.ops.checks import FLOATS, address, check

# 1. The truth ---------------------------------------------------------------------------------------------------


def bias_gelu_ref(x: Tensor, bias: Tensor) -> Tensor:
    """Plain PyTorch; its gradient is autograd's."""
    return F.gelu(x + bias.to(x.dtype), approximate="tanh")


# 2. Who can do it, best first, and when ---------------------------------------------------------------------------

BIAS_GELU = Op(
    "bias_gelu",
    {
        "cpp": Applies(("cpu",), FLOATS),
        "triton": Applies(TRITON_DEVICES, FLOATS),
        "ref": Applies(),
    },
)


def _forward(x: Tensor, bias: Tensor, backend: str) -> Tensor:
    y = _fake_forward(x, bias, backend)
    tensors = (x.contiguous(), bias.float().contiguous(), y)
    if backend == "cpp":
        _C.bias_gelu_fwd(*map(address, tensors), *x.shape, FLOATS.index(x.dtype))
    else:
        from mlperf_fast.kernels.bias_gelu import bias_gelu_fwd

        bias_gelu_fwd(*tensors)
    return y


def _backward(x: Tensor, bias: Tensor, dy: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """dx, and dbias in float32."""
    dx, dbias = _fake_backward(x, bias, dy, backend)
    tensors = (x.contiguous(), bias.float().contiguous(), dy.contiguous(), dx, dbias)
    if backend == "cpp":
        _C.bias_gelu_bwd(*map(address, tensors), *x.shape, FLOATS.index(x.dtype))
    else:
        from mlperf_fast.kernels.bias_gelu import bias_gelu_bwd

        bias_gelu_bwd(*tensors)
    return dx, dbias


# 3. Registration: shapes without data, and the gradient ------------------------------------------------------------


def _fake_forward(x, bias, backend):
    return x.new_empty(x.shape)


def _fake_backward(x, bias, dy, backend):
    return x.new_empty(x.shape), x.new_empty(x.shape[1], dtype=torch.float32)


_op = define("bias_gelu(Tensor x, Tensor bias, str backend) -> Tensor", _forward, _fake_forward)
_op_bwd = define(
    "bias_gelu_bwd(Tensor x, Tensor bias, Tensor dy, str backend) -> (Tensor, Tensor)", _backward, _fake_backward
)
_bias_gelu, _bias_gelu_bwd = shortcut(_op, _forward), shortcut(_op_bwd, _backward)


class BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.backend = backend
        return _bias_gelu(x.reshape(-1, x.shape[-1]), bias, backend).view(x.shape)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        once_only("bias_gelu")
        x, bias = ctx.saved_tensors
        rows, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, x.shape[-1])
        dx, dbias = _bias_gelu_bwd(rows, bias, dy, ctx.backend)
        return dx.view(x.shape), dbias.to(bias.dtype), None


# 4. The public function ---------------------------------------------------------------------------------------------


def bias_gelu(x: Tensor, bias: Tensor, *, backend: str | None = None) -> Tensor:
    """y = 0.5 v (1 + tanh(sqrt(2 / pi) (v + 0.044715 v^3))) with v = x + bias.

    x        [..., N]   float32, bfloat16 or float16; any float on ref. Its dtype is the result's; the arithmetic is
                        float32
    bias     [N]        x's dtype or float32
    returns  [..., N]

    Differentiable once in both. Raises UserError for wrong shapes, dtypes or devices, and for a backend that can't run
    here.
    Source: BERT's reference, modeling.py `gelu`; F.gelu(approximate="tanh").
    """
    check("bias_gelu", "bias", bias, x.shape[-1:] if x.dim() else (1,), (x.dtype, torch.float32), x)
    name = resolve(BIAS_GELU, x, backend)
    if name == "ref":
        return bias_gelu_ref(x, bias)
    return BiasGelu.apply(x, bias, name)
