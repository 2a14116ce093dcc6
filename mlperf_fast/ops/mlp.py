"""A multilayer perceptron in one op: y = relu(x W^T + b), layer after layer.

B samples, N_l outputs of layer l. Forward each layer is a product and one pass over its output, backward one pass and
two products; only the outputs are kept. Autograd sees one node instead of three a layer, and the input's gradient is
left out where nobody asks for it. Small perceptrons in float32 are one native call a direction, see csrc/mlp_small.cpp.
"""

from array import array
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mlperf_fast import _C
from mlperf_fast.errors import UserError
from mlperf_fast.ops.backend import TRITON_DEVICES, Applies, Op, define, once_only, resolve, shortcut
from mlperf_fast.ops.checks import FLOATS, check, check_rank

# 1. The truth ---------------------------------------------------------------------------------------------------


def mlp_ref(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], relu_last: bool = True) -> Tensor:
    """Plain PyTorch; its gradient is autograd's."""
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
        x = F.linear(x, weight.to(x.dtype), bias.to(x.dtype))
        if relu_last or layer < len(weights):
            x = F.relu(x)
    return x


# 2. Who can do it, best first, and when ---------------------------------------------------------------------------

MLP = Op(
    "mlp",
    {
        "cpp": Applies(("cpu",), (torch.float32, torch.bfloat16)),
        "triton": Applies(TRITON_DEVICES, FLOATS),
        "ref": Applies(),
    },
)


SMALL = 1 << 17  # weights in all, 512 KiB: a core's own cache holds them beside a block of samples


def _forward(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], relu_last: bool, backend: str
) -> list[Tensor]:
    """The output of every layer."""
    if backend == "cpp" and _is_small(x, weights, biases):
        return _small_forward(x, weights, biases, relu_last)
    outs: list[Tensor] = []
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
        relu = relu_last or layer < len(weights)
        if backend == "cpp":
            x, bias = torch.mm(x, weight.t()), bias.float().contiguous()
            _C.mlp_bias_fwd(x.data_ptr(), bias.data_ptr(), *x.shape, relu, x.dtype is torch.bfloat16)
        else:  # cuBLAS adds the bias and clamps as it writes the product
            product = torch._addmm_activation if relu else torch.addmm
            x = product(bias.to(x.dtype), x, weight.t())
        outs.append(x)
    return outs


def _backward(
    x: Tensor,
    weights: Sequence[Tensor],
    outs: Sequence[Tensor],
    dout: Tensor,
    relu_last: bool,
    input_gradient: bool,
    backend: str,
) -> list[Tensor]:
    """The gradients of the weights, of the biases (float32), and of x where it is asked for."""
    if backend == "cpp" and _is_small(x, weights):
        return _small_backward(x, weights, outs, dout, relu_last, input_gradient)
    dweights, dbiases = [], []
    dy = dout.contiguous()
    for layer in reversed(range(len(weights))):
        # In place, but for the gradient that came from outside.
        to = None if not (relu_last or layer + 1 < len(weights)) else torch.empty_like(dy) if dy is dout else dy
        dbiases.append(_bias_bwd(outs[layer], dy, to, backend))
        g = dy if to is None else to
        dweights.append(torch.mm(g.t(), outs[layer - 1] if layer else x))
        if layer or input_gradient:
            dy = torch.mm(g, weights[layer])
    return [*reversed(dweights), *reversed(dbiases), *([dy] if input_gradient else [])]


def _bias_bwd(y: Tensor, dy: Tensor, g: Tensor | None, backend: str) -> Tensor:
    """Writes g = dy where y > 0, else 0, and returns its column sums; those of dy without a `g`."""
    if backend == "cpp":
        relu = g is not None
        dbias = dy.new_empty(dy.shape[1], dtype=torch.float32)
        addresses = (y.data_ptr(), dy.data_ptr(), g.data_ptr() if g is not None else 0, dbias.data_ptr())
        _C.mlp_bias_bwd(*addresses, *y.shape, relu, y.dtype is torch.bfloat16)
        return dbias
    from mlperf_fast.kernels.mlp import mlp_bias_bwd

    return mlp_bias_bwd(y, dy, g)


def _is_small(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] = ()) -> bool:
    """Whether native code runs the whole perceptron in one call: between small products the calls and meetings of
    threads take as long as they do. Large ones are the library's, which knows blocks for each cache."""
    is_float = all(tensor.dtype is torch.float32 for tensor in (x, *weights, *biases))
    return is_float and sum(map(Tensor.numel, weights)) <= SMALL


def _small_forward(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], relu_last: bool) -> list[Tensor]:
    x, weights, biases = x.contiguous(), _contiguous(weights), _contiguous(biases)
    outs = _fake_forward(x, weights, biases, relu_last, "cpp")
    tables = [_table(map(Tensor.data_ptr, tensors)) for tensors in (weights, biases, outs)]
    sizes = _table((x.shape[1], *map(len, weights)))
    addresses = (table.buffer_info()[0] for table in (*tables, sizes))
    _C.mlp_small_fwd(x.data_ptr(), *addresses, len(weights), len(x), relu_last)
    return outs


def _small_backward(
    x: Tensor, weights: Sequence[Tensor], outs: Sequence[Tensor], dout: Tensor, relu_last: bool, input_gradient: bool
) -> list[Tensor]:
    x, dout, weights, outs = x.contiguous(), dout.contiguous(), _contiguous(weights), _contiguous(outs)
    grads = _fake_backward(x, weights, outs, dout, relu_last, input_gradient, "cpp")
    n = len(weights)
    tables = [_table(map(Tensor.data_ptr, tensors)) for tensors in (weights, outs, grads[:n], grads[n : 2 * n])]
    sizes = _table((x.shape[1], *map(len, weights)))
    w, y, dw, db, widths = (table.buffer_info()[0] for table in (*tables, sizes))
    dx = grads[-1].data_ptr() if input_gradient else 0
    _C.mlp_small_bwd(x.data_ptr(), w, y, dout.data_ptr(), dw, db, dx, widths, n, len(x), relu_last)
    return grads


def _contiguous(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def _table(numbers: Iterable[int]) -> array:
    return array("q", [*numbers])


# 3. Registration: shapes without data, and the gradient ------------------------------------------------------------


def _fake_forward(x, weights, biases, relu_last, backend):
    return [x.new_empty(x.shape[0], weight.shape[0]) for weight in weights]


def _fake_backward(x, weights, outs, dout, relu_last, input_gradient, backend):
    dbiases = [x.new_empty(weight.shape[0], dtype=torch.float32) for weight in weights]
    dx = [x.new_empty(x.shape)] if input_gradient else []
    return [*(weight.new_empty(weight.shape) for weight in weights), *dbiases, *dx]


_op = define(
    "mlp(Tensor x, Tensor[] weights, Tensor[] biases, bool relu_last, str backend) -> Tensor[]", _forward, _fake_forward
)
_op_bwd = define(
    "mlp_bwd(Tensor x, Tensor[] weights, Tensor[] outs, Tensor dout, bool relu_last, bool input_gradient, str backend)"
    " -> Tensor[]",
    _backward,
    _fake_backward,
)
_mlp, _mlp_bwd = shortcut(_op, _forward), shortcut(_op_bwd, _backward)


class Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, relu_last: bool, backend: str, *parameters: Tensor) -> Tensor:
        layers = len(parameters) // 2
        weights = _in(parameters[:layers], [x.dtype] * layers)
        outs = _mlp(x, weights, parameters[layers:], relu_last, backend)
        ctx.save_for_backward(x, *weights, *outs)
        ctx.layers, ctx.relu_last, ctx.backend = layers, relu_last, backend
        ctx.dtypes = [parameter.dtype for parameter in parameters]
        return outs[-1]

    @staticmethod
    def backward(ctx, dout: Tensor) -> tuple[Tensor | None, ...]:
        once_only("mlp")
        x, *saved = ctx.saved_tensors
        weights, outs = saved[: ctx.layers], saved[ctx.layers :]
        wanted, parameters = ctx.needs_input_grad[0], len(ctx.dtypes)
        grads = _mlp_bwd(x, weights, outs, dout, ctx.relu_last, wanted, ctx.backend)
        return grads[-1] if wanted else None, None, None, *_in(grads[:parameters], ctx.dtypes)


def _in(tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """Each in its dtype. `.to` alone would take half a microsecond a tensor to find nothing to do."""
    return [x if x.dtype is dtype else x.to(dtype) for x, dtype in zip(tensors, dtypes, strict=True)]


# 4. The public function ---------------------------------------------------------------------------------------------


def mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    relu_last: bool = True,
    backend: str | None = None,
) -> Tensor:
    """y = relu(x W^T + b) for each layer in turn, x being the y before it; returns the last y.

    x          [B, N_0]        float32 or bfloat16; float16 on triton; any float on ref; under autocast, cast first, as
                               nn.Linear does. Its dtype is the result's and that of all products
    weights    [N_l, N_{l-1}]  for each layer l = 1 .. L, at least one; x's dtype, or float32, which is then rounded
    biases     [N_l]           as many, x's dtype or float32
    relu_last  without it the last layer is x W^T + b
    returns    [B, N_L]

    Differentiable once in all of them; where y is 0, ReLU's gradient is 0. A NaN stays one.
    Raises UserError for wrong shapes, dtypes or devices, and for a backend that can't run here.
    Source: nn.Linear and nn.ReLU in turn; apex.mlp.MLP.
    """
    check_rank("mlp", "x", x, "B N")
    if len(weights) != len(biases) or not weights:
        raise UserError(f"mlp: {len(weights)} weights and {len(biases)} biases, expected one of each for every layer")
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    dtypes, before = (x.dtype, torch.float32), x
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        check("mlp", f"weights[{layer}]", weight, (bias.numel(), before.shape[-1]), dtypes, x)
        check("mlp", f"biases[{layer}]", bias, weight.shape[:1], dtypes, x)
        before = bias
    name = resolve(MLP, x, backend)
    if name == "ref":
        return mlp_ref(x, weights, biases, relu_last)
    return Perceptron.apply(x, relu_last, name, *weights, *biases)
