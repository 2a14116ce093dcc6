from importlib import import_module
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numerics import EXAMPLES, LAYOUTS, backends, cases, compare, device, lay_out, threads, wide
from torch import nn

from mlperf_fast import _C
from mlperf_fast.errors import UserError
from mlperf_fast.nn.mlp import MLP
from mlperf_fast.ops import mlp
from mlperf_fast.ops.mlp import mlp_ref

OP = "mlp"


def inputs(B, widths, dtype, seed=0, layout="contiguous", parameter_dtype=None):
    """x, weights, biases and the output's gradient; what float16 holds in every layer."""
    like = {"dtype": parameter_dtype or dtype, "decades": 2}
    pairs = list(pairwise(widths))
    weights = [lay_out(wide(seed + 7 * n, b, a, **like) / a**0.5, layout) for n, (a, b) in enumerate(pairs, 1)]
    biases = [lay_out(wide(seed + 7 * n + 1, b, **like), layout) for n, (_, b) in enumerate(pairs, 1)]
    x, dout = (lay_out(wide(seed + n, B, width, dtype=dtype), layout) for n, width in ((2, widths[0]), (3, widths[-1])))
    return x, weights, biases, dout


def masked(x, weights, biases, masks):
    """The network with ReLU's choices given: linear in each input, so that absolute values give the sums' sizes."""
    for weight, bias, mask in zip(weights, biases, masks, strict=True):
        x = F.linear(x, weight.to(x.dtype), bias.to(x.dtype)) * mask.to(x.dtype)
    return x


def gradients(function, x, weights, biases, dout):
    leaves = [tensor.detach().requires_grad_() for tensor in (x, *weights, *biases)]
    n = len(weights)
    return torch.autograd.grad(function(leaves[0], leaves[1 : n + 1], leaves[n + 1 :]), leaves, dout)


def doubled(tensors, change=lambda tensor: tensor):
    return [change(tensor.double()) for tensor in tensors]


def check(backend, x, weights, biases, dout, relu_last):
    """A result is rounded in each of L layers forward, and of L backward. (An L-layer network of single elements was
    2.1 steps off where plain PyTorch was 0.05 off.)"""
    where, L = device(backend), len(weights)
    there = lambda *tensors: [tensor.to(where) for tensor in tensors]  # noqa: E731
    got = mlp(*there(x), there(*weights), there(*biases), relu_last=relu_last, backend=backend)
    rounded = [[tensor.to(x.dtype) for tensor in tensors] for tensors in (weights, biases)]
    plain = mlp_ref(x, *rounded, relu_last)
    truth, size = (
        mlp_ref(*doubled([x], change), *(doubled(tensors, change) for tensors in rounded), relu_last)
        for change in (lambda tensor: tensor, torch.abs)
    )
    compare(f"{OP} out", backend, got, plain, truth, size, steps=L)
    # Rounding may carry a value near 0 to the other side, in plain PyTorch too: gradients are compared for the
    # choices that the backend made.
    outs = torch.ops.mlperf_fast.mlp(*there(x), there(*rounded[0]), there(*rounded[1]), relu_last, backend)
    masks = [out.cpu() > 0 for out in outs]
    if not relu_last:
        masks[-1] = torch.ones_like(masks[-1])
    got = gradients(
        lambda *tensors: mlp(*tensors, relu_last=relu_last, backend=backend),
        *there(x), there(*weights), there(*biases), *there(dout),
    )  # fmt: skip
    plain = gradients(lambda *tensors: masked(*tensors, masks), x, weights, biases, dout)
    truth, size = (
        gradients(
            lambda *tensors: masked(*tensors, masks),
            *doubled([x], change), *(doubled(tensors, change) for tensors in rounded), *doubled([dout], change),
        )
        for change in (lambda tensor: tensor, torch.abs)
    )  # fmt: skip
    names = ["dx", *(f"dweights[{n}]" for n in range(L)), *(f"dbiases[{n}]" for n in range(L))]
    for name, mine, theirs, right, scale in zip(names, got, plain, truth, size, strict=True):
        compare(f"{OP} {name}", backend, mine, theirs, right, scale, steps=2 * L)


@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
@EXAMPLES
@given(
    B=st.integers(0, 150),
    widths=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    relu_last=st.booleans(),
    seed=st.integers(0, 999),
    layout=st.sampled_from(LAYOUTS),
)
def test_matches_reference(backend, dtype, B, widths, relu_last, seed, layout):
    check(backend, *inputs(B, widths, dtype, seed, layout), relu_last)


# One number; DLRM's demo; more rows than a block sums, and columns than a tile has.
@pytest.mark.parametrize(
    ("B", "widths"), [(1, (1, 1)), (100, (13, 64, 32, 16)), (100, (367, 128, 64, 32, 1)), (700, (3, 150))]
)
@pytest.mark.parametrize("relu_last", [True, False])
@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
def test_chosen_shapes(backend, dtype, B, widths, relu_last):
    check(backend, *inputs(B, widths, dtype), relu_last)


@pytest.mark.parametrize("relu_last", [True, False])
@pytest.mark.parametrize("backend", [p for p in backends(OP) if p.values[0].startswith("cpp")], indirect=True)
def test_layers_too_large_for_one_native_call(backend, relu_last, monkeypatch):
    """The same by the library's products, which large layers take."""
    monkeypatch.setattr(import_module("mlperf_fast.ops.mlp"), "SMALL", 0)
    check(backend, *inputs(100, (29, 64, 32, 1), torch.float32), relu_last)
    check(backend, *inputs(100, (29, 64, 3), torch.float32, layout="strided"), relu_last)


@pytest.mark.parametrize("backend", [p for p in backends(OP) if p.values[0].startswith("cpp")], indirect=True)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_threads(backend, count):
    """Threads sum the weights' gradients apart, over blocks of samples that the shares don't divide."""
    with threads(count):
        check(backend, *inputs(700, (37, 50, 3), torch.float32), relu_last=True)


@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
def test_float32_parameters_keep_their_dtype(backend, dtype):
    check(backend, *inputs(40, (9, 17, 5), dtype, parameter_dtype=torch.float32), relu_last=True)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_relu_at_zero_and_with_nan_and_infinity(backend):
    """As torch: 0 has gradient 0; a NaN stays NaN, and lets its gradient pass."""
    values = torch.tensor([[0.0, -0.0, -1.0, 2.0, torch.nan, torch.inf, -torch.inf]], device=device(backend))
    x, weight = values.T.contiguous(), values.new_ones(1, 1)
    bias, dout = values.new_zeros(1), values.new_ones(7, 1)
    got, expected = (
        [op(x, [weight], [bias]), *gradients(op, x, [weight], [bias], dout)]
        for op in (lambda *tensors: mlp(*tensors, backend=backend), mlp_ref)
    )
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True, rtol=0, atol=0)


def test_reference_gradient():
    x, weights, biases, _ = inputs(3, (4, 5, 2), torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (x, *weights, *biases)]
    assert torch.autograd.gradcheck(lambda x, *p: mlp(x, p[:2], p[2:], backend="ref"), leaves)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_expanded_gradient_and_inputs_without_gradient(backend):
    x, weights, biases, _ = inputs(20, (6, 8, 3), torch.float32)
    leaves = [tensor.to(device(backend)).requires_grad_() for tensor in (*weights, *biases)]
    found = torch.autograd.grad(mlp(x.to(device(backend)), leaves[:2], leaves[2:], backend=backend).sum(), leaves)
    expected = torch.autograd.grad(mlp_ref(x.to(device(backend)), leaves[:2], leaves[2:]).sum(), leaves)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_the_gradient_from_outside_is_left_as_it_is(backend):
    x, weights, biases, dout = inputs(20, (6, 8, 3), torch.float32)
    leaves = [tensor.to(device(backend)).requires_grad_() for tensor in (x, *weights, *biases)]
    dout = dout.to(device(backend))
    before = dout.clone()
    torch.autograd.grad(mlp(leaves[0], leaves[1:3], leaves[3:], backend=backend), leaves, dout)
    assert torch.equal(dout, before)


@pytest.mark.parametrize("backend", [p for p in backends(OP) if p.values[0].startswith("cpp")], indirect=True)
@pytest.mark.parametrize(("B", "N"), [(2000, 30), (30_000, 3)])
def test_the_pass_gives_the_same_bits_on_any_number_of_threads(backend, B, N):
    """The products are the library's, whose sums depend on the number of threads."""
    y, dy = wide(1, B, N), wide(2, B, N)

    def run():
        out, g, dbias = y.clone(), torch.empty_like(dy), torch.empty(N)
        _C.mlp_bias_fwd(out.data_ptr(), dy.data_ptr(), B, N, True, False)
        _C.mlp_bias_bwd(out.data_ptr(), dy.data_ptr(), g.data_ptr(), dbias.data_ptr(), B, N, True, False)
        return out, g, dbias

    first = run()
    for n in (1, 2, 5):
        with threads(n):
            for _ in range(10):
                assert all(map(torch.equal, run(), first)), f"{n} threads"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_that_of_linear_layers(dtype):
    """float16 has no native CPU code: there the table chooses the reference."""
    net = MLP((9, 17, 5), "cpu")
    twin = nn.Sequential(nn.Linear(9, 17), nn.ReLU(), nn.Linear(17, 5), nn.ReLU())
    twin.load_state_dict(net.state_dict())
    x = wide(1, 30, 9)
    with torch.autocast("cpu", dtype=dtype):
        got, expected = net(x), twin(x)
        assert got.dtype is expected.dtype is dtype
    torch.testing.assert_close(got, expected, rtol=0, atol=0.01 * float(expected.detach().abs().max()))
    got.float().square().sum().backward()
    expected.float().square().sum().backward()
    for mine, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        assert mine.grad.dtype is torch.float32
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=0.03 * float(theirs.grad.abs().max()))


def test_the_module_is_named_as_a_sequence_of_layers():
    net = MLP((4, 3, 2), "cpu", relu_last=False)
    twin = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    assert list(net.state_dict()) == list(twin.state_dict())
    net.load_state_dict(twin.state_dict())
    x = wide(1, 5, 4)
    torch.testing.assert_close(net(x), twin(x))
    torch.testing.assert_close(net.double()(x.double()), twin.double()(x.double()))  # through the reference


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_torch_op_contract(backend):
    x, weights, biases, dout = inputs(5, (4, 6, 3), torch.float32)
    x, dout, *rest = (tensor.to(device(backend)) for tensor in (x, dout, *weights, *biases))
    weights, biases = rest[:2], rest[2:]
    torch.library.opcheck(torch.ops.mlperf_fast.mlp, (x, weights, biases, True, backend))
    outs = torch.ops.mlperf_fast.mlp(x, weights, biases, False, backend)
    for input_gradient in (True, False):
        arguments = (x, weights, outs, dout, False, input_gradient, backend)
        torch.library.opcheck(torch.ops.mlperf_fast.mlp_bwd, arguments)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_compiles_without_graph_break(backend):
    x, weights, biases, dout = inputs(5, (4, 6, 3), torch.float32)
    x, dout, *rest = (tensor.to(device(backend)) for tensor in (x, dout, *weights, *biases))

    def layers(x, weights, biases):
        return mlp(x * 2, weights, biases, backend=backend)

    compiled = torch.compile(layers, fullgraph=True, backend="aot_eager")
    got, expected = (gradients(function, x, rest[:2], rest[2:], dout) for function in (compiled, layers))
    assert all(map(torch.equal, got, expected))


def test_a_second_derivative_is_refused():
    x, weights, biases, _ = inputs(5, (4, 3), torch.float32)
    out = mlp(x.requires_grad_(), weights, biases, backend="cpp")
    with pytest.raises(UserError, match="mlp is differentiable once; with create_graph=True use backend='ref'"):
        torch.autograd.grad(out.sum(), x, create_graph=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(4)}, r"x has shape \[4\], expected \[B, N\]"),
        ({"weights": []}, "0 weights and 2 biases, expected one of each for every layer"),
        ({"weights": [torch.ones(6, 5), torch.ones(3, 6)]}, r"weights\[0\] has shape \[6, 5\], expected \[6, 4\]"),
        ({"weights": [torch.ones(6, 4), torch.ones(6, 3)]}, r"weights\[1\] has shape \[6, 3\], expected \[3, 6\]"),
        ({"biases": [torch.ones(6), torch.ones(3, 1)]}, r"biases\[1\] has shape \[3, 1\], expected \[3\]"),
        ({"biases": [torch.ones(6), torch.ones(3).double()]}, r"biases\[1\] is float64, expected float32"),
        ({"weights": [torch.ones(6, 4, device="meta"), torch.ones(3, 6)]}, r"weights\[0\] is on meta, expected cpu"),
        ({"x": torch.ones(5, 4).half()}, "cpp takes float32 or bfloat16, found float16"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {
        "x": torch.ones(5, 4),
        "weights": [torch.ones(6, 4), torch.ones(3, 6)],
        "biases": [torch.ones(6), torch.ones(3)],
    }
    with pytest.raises(UserError, match=f"mlp: .*{message}"):
        mlp(**(arguments | change), backend="cpp")
