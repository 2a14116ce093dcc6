"""A convolution of 3x3 for inference, with what follows it in a network whose norms are folded: bias, residual, ReLU.

N images of H by W pixels, C channels in and K out, channels last. Padding 1, stride 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mlperf_fast import _C
from mlperf_fast.errors import UserError
from mlperf_fast.ops.backend import Applies, Op, define, resolve, shortcut
from mlperf_fast.ops.checks import address, check, check_rank

# 1. The truth ---------------------------------------------------------------------------------------------------


def conv3x3_ref(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
    """Plain PyTorch; on a GPU that is cuDNN."""
    y = F.conv2d(x, weight, bias, padding=1)
    y = y if residual is None else y.add_(residual)
    return y.relu_() if relu else y


# 2. Who can do it, best first, and when ---------------------------------------------------------------------------

CONV3X3 = Op(
    "conv3x3",
    {
        "cpp": Applies(("cpu",), (torch.float32,)),
        "ref": Applies(),
    },
)


def _forward(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    y = _fake_forward(x, weight, bias, residual, relu)
    x, weight = _last(x), _last(weight)
    residual = None if residual is None else _last(residual)
    tensors, (N, C, H, W) = (x, weight, bias.contiguous(), residual, y), x.shape
    _C.conv3x3(*map(address, tensors), N, H, W, C, weight.shape[0], relu)
    return y


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


# 3. Registration: shapes without data ------------------------------------------------------------------------------


def _fake_forward(x, weight, bias, residual, relu):
    N, _, H, W = x.shape
    return torch.empty(N, weight.shape[0], H, W, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


_op = define(
    "conv3x3(Tensor x, Tensor weight, Tensor bias, Tensor? residual, bool relu) -> Tensor", _forward, _fake_forward
)
_conv3x3 = shortcut(_op, _forward)

# 4. The public function ---------------------------------------------------------------------------------------------


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    relu: bool = False,
    backend: str | None = None,
) -> Tensor:
    """act(conv(x, weight) + bias + residual), act being ReLU or nothing.

    x         [N, C, H, W], fastest with channels last; float32 on cpp, any float on ref
    weight    [K, C, 3, 3], likewise
    bias      [K]
    residual  [N, K, H, W] or None
    returns   [N, K, H, W] in the dtype of x; channels last on cpp

    On cpp by Winograd's F(2x2, 3x3), with 4/9 of the multiplications: an error is some 1e-7 of the largest values that
    meet in a tile of 2x2 outputs. Not differentiable there. Raises UserError for wrong arguments.
    Source: Lavin and Gray, Fast algorithms for convolutional neural networks, CVPR 2016.
    """
    op = "conv3x3"
    check_rank(op, "x", x, "N C H W")
    check_rank(op, "weight", weight, "K C 3 3")
    (N, C, H, W), K = x.shape, weight.shape[0]
    if min(C, H, W, K) < 1:
        raise UserError(f"{op}: x has shape {list(x.shape)} and weight {list(weight.shape)}, expected 1 or more of all "
                        "but N")  # fmt: skip
    check(op, "weight", weight, (K, C, 3, 3), (x.dtype,), x)
    check(op, "bias", bias, (K,), (x.dtype,), x)
    if residual is not None:
        check(op, "residual", residual, (N, K, H, W), (x.dtype,), x)
    if resolve(CONV3X3, x, backend) == "ref":
        return conv3x3_ref(x, weight, bias, residual, relu)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias, residual)):
        raise UserError(f"{op}: cpp is for inference; call it under torch.no_grad(), or use backend='ref'")
    return _conv3x3(x, weight, bias, residual, relu)
