import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import EXAMPLES, LAYOUTS, backends, cases, compare, device, lay_out, threads, wide

from mlperf_fast.errors import UserError
from mlperf_fast.ops import bias_gelu

OP = "bias_gelu"


def inputs(B, N, dtype, seed=0, layout="contiguous"):
    """x, bias, dy."""
    shapes = enumerate([(B, N), (N,), (B, N)])
    return tuple(lay_out(wide(seed + n, *shape, dtype=dtype, decades=2), layout) for n, shape in shapes)


def both_ways(op, x, bias, dy):
    x, bias = x.detach().requires_grad_(), bias.detach().requires_grad_()
    y = op(x, bias)
    return y, *torch.autograd.grad(y, (x, bias), dy)


def check(backend, x, bias, dy):
    got = both_ways(functools.partial(bias_gelu, backend=backend), *(t.to(device(backend)) for t in (x, bias, dy)))
    reference = functools.partial(bias_gelu, backend="ref")
    plain, truth = both_ways(reference, x, bias, dy), both_ways(reference, x.double(), bias.double(), dy.double())
    # x + bias may cancel, 1 + tanh does for what is far below 0: errors grow with the terms. |gelu'| is at most 1.13.
    size, steep = x.double().abs() + bias.double().abs(), dy.double().abs() * 1.13
    steep = steep * (1 + size)
    for name, *values in zip(("y", "dx", "dbias"), got, plain, truth, (size, steep, steep.sum(0)), strict=True):
        compare(f"{OP} {name}", backend, *values, steps=3)


@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
@EXAMPLES
@given(B=st.integers(0, 70), N=st.integers(1, 90), seed=st.integers(0, 999), layout=st.sampled_from(LAYOUTS))
def test_matches_reference(backend, dtype, B, N, seed, layout):
    check(backend, *inputs(B, N, dtype, seed, layout))


# One number; more rows than a block sums, more columns than a tile has.
@pytest.mark.parametrize(("B", "N"), [(1, 1), (150, 400)])
@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
def test_chosen_shapes(backend, dtype, B, N):
    check(backend, *inputs(B, N, dtype))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_large_values_and_nan(backend):
    """Far below 0 both are 0, far above y is x and its slope 1; a NaN stays one."""
    x = torch.tensor([[-1e6, -60.0, 0.0, 60.0, 1e6, torch.nan]], device=device(backend))
    y, dx, _ = both_ways(functools.partial(bias_gelu, backend=backend), x, torch.zeros_like(x[0]), torch.ones_like(x))
    expected = x.clamp_min(0)
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=0, atol=1e-30)
    slope = torch.tensor([[0, 0, 0.5, 1, 1, torch.nan]], device=x.device)
    torch.testing.assert_close(dx, slope, equal_nan=True, rtol=0, atol=1e-6)


def test_reference_gradient():
    x, bias, _ = inputs(3, 4, torch.float64)
    op = functools.partial(bias_gelu, backend="ref")
    assert torch.autograd.gradcheck(op, (x.requires_grad_(), bias.requires_grad_()))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_same_bits_in_every_run(backend):
    tensors = [t.to(device(backend)) for t in inputs(300, 50, torch.float32)]
    op = functools.partial(bias_gelu, backend=backend)
    first = both_ways(op, *tensors)
    for n in (1, 2, 5) if backend == "cpp" else (1,):
        with threads(n):
            assert all(all(map(torch.equal, both_ways(op, *tensors), first)) for _ in range(5)), f"{n} threads"


@pytest.mark.parametrize("backend", backends(OP)[:1] + backends(OP)[-1:], indirect=True)
def test_torch_op_contract_and_no_graph_break(backend):
    x, bias, dy = (t.to(device(backend)) for t in inputs(4, 24, torch.float32))
    torch.library.opcheck(torch.ops.mlperf_fast.bias_gelu, (x, bias, backend))
    torch.library.opcheck(torch.ops.mlperf_fast.bias_gelu_bwd, (x, bias, dy, backend))
    op = functools.partial(bias_gelu, backend=backend)
    compiled = torch.compile(lambda x, bias: op(x * 2, bias), fullgraph=True, backend="aot_eager")
    expected = both_ways(lambda x, bias: op(x * 2, bias), x, bias, dy)
    assert all(map(torch.equal, both_ways(compiled, x, bias, dy), expected))


def test_more_dimensions_and_a_float32_bias():
    x, bias, _ = inputs(12, 8, torch.bfloat16)
    y, dx, dbias = both_ways(bias_gelu, x.view(3, 4, 8), bias.float(), x.new_ones(()).expand(3, 4, 8))
    assert y.shape == dx.shape == (3, 4, 8)
    assert (y.dtype, dbias.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": torch.ones(5)}, r"bias has shape \[5\], expected \[4\]"),
        ({"bias": torch.ones(4).double()}, "bias is float64, expected float32"),
        ({"bias": torch.ones(4, device="meta")}, "bias is on meta, expected cpu"),
        ({"x": torch.ones(3, 4).double()}, "cpp takes float32 or bfloat16 or float16, found float64"),
    ],
)
def test_wrong_arguments(change, message):
    with pytest.raises(UserError, match=f"bias_gelu: .*{message}"):
        bias_gelu(**({"x": torch.ones(3, 4), "bias": torch.ones(4)} | change), backend="cpp")
