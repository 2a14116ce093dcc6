import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numerics import EXAMPLES, LAYOUTS, backends, compare, lay_out, threads, wide

from mlperf_fast.errors import UserError
from mlperf_fast.ops import conv3x3

OP = "conv3x3"


def inputs(N, H, W, C, K, seed=0, layout="contiguous"):
    """x, weight, bias, residual."""
    shapes = enumerate([(N, H, W, C), (K, 3, 3, C), (K,), (N, H, W, K)])
    x, weight, bias, residual = (lay_out(wide(seed + n, *shape, decades=2), layout) for n, shape in shapes)
    return x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), bias, residual.permute(0, 3, 1, 2)


def scale(x, weight, bias, residual):
    """What meets in a tile's sums, in size: all of its pixels with all taps, most of which cancel."""
    near = F.max_pool2d(x.abs(), 5, stride=1, padding=2) if len(x) else x
    size = F.conv2d(near, weight.abs().sum((2, 3), keepdim=True), bias.abs())
    return size if residual is None else size + residual.abs()


def check(backend, tensors, relu):
    wide_ = [None if t is None else t.double() for t in tensors]
    op = functools.partial(conv3x3, relu=relu)
    got, plain, truth = op(*tensors, backend=backend), op(*tensors, backend="ref"), op(*wide_, backend="ref")
    compare(OP, backend, got, plain, truth, scale(*wide_), steps=3)
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
@EXAMPLES
@given(
    N=st.integers(0, 3),
    H=st.integers(1, 9),
    W=st.integers(1, 9),
    C=st.integers(1, 40),
    K=st.integers(1, 70),
    added=st.booleans(),
    relu=st.booleans(),
    seed=st.integers(0, 999),
    layout=st.sampled_from(LAYOUTS),
)
def test_matches_reference(backend, N, H, W, C, K, added, relu, seed, layout):
    *rest, residual = inputs(N, H, W, C, K, seed, layout)
    check(backend, (*rest, residual if added else None), relu)


# One number; Minigo's stem and tower, more tiles than a block has; wide channels.
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (3, 19, 19, 13, 64), (2, 19, 19, 64, 64), (1, 7, 8, 300, 200)])
@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_chosen_shapes(backend, shape):
    check(backend, inputs(*shape), relu=True)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_nothing_outside_an_image_counts(backend):
    """Images that are alone and the same images in a batch give the same bits: none reads its neighbour."""
    x, weight, bias, residual = inputs(4, 5, 6, 8, 24)
    whole = conv3x3(x, weight, bias, residual, backend=backend)
    for i in range(4):
        assert torch.equal(conv3x3(x[i : i + 1], weight, bias, residual[i : i + 1], backend=backend)[0], whole[i])


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_nan_stays_and_spreads_no_further_than_its_tiles(backend):
    x, weight, bias, _ = inputs(2, 8, 8, 4, 4)
    x = x.clone()
    x[0, 2, 4, 4] = torch.nan
    y = conv3x3(x, weight, bias, relu=True, backend=backend)
    assert y[0, :, 3:6, 3:6].isnan().all()
    assert not y[0, :, :2].isnan().any()
    assert not y[1].isnan().any()


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_same_bits_in_every_run(backend):
    tensors = inputs(5, 9, 9, 32, 48)
    first = conv3x3(*tensors, relu=True, backend=backend)
    for n in (1, 2, 5):
        with threads(n):
            assert all(torch.equal(conv3x3(*tensors, relu=True, backend=backend), first) for _ in range(5)), n


@pytest.mark.parametrize("backend", backends(OP)[:1], indirect=True)
def test_torch_op_contract_and_no_graph_break(backend):
    tensors = inputs(2, 5, 5, 3, 8)
    torch.library.opcheck(torch.ops.mlperf_fast.conv3x3, (*tensors, True))
    op = functools.partial(conv3x3, backend=backend)
    compiled = torch.compile(lambda x, *rest: op(x * 2, *rest), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*tensors), op(tensors[0] * 2, *tensors[1:]))


def test_a_gradient_is_refused():
    x, weight, bias, _ = inputs(1, 4, 4, 2, 2)
    with pytest.raises(UserError, match=r"cpp is for inference; call it under torch\.no_grad\(\)"):
        conv3x3(x, weight.requires_grad_(), bias)
    assert conv3x3(x, weight, bias, backend="ref").requires_grad
    with torch.no_grad():
        assert conv3x3(x, weight, bias).shape == (1, 2, 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(2, 5, 5)}, r"x has shape \[2, 5, 5\], expected \[N, C, H, W\]"),
        ({"x": torch.ones(1, 3, 0, 5)}, r"expected 1 or more of all but N"),
        ({"weight": torch.ones(4, 3, 5, 5)}, r"weight has shape \[4, 3, 5, 5\], expected \[4, 3, 3, 3\]"),
        ({"weight": torch.ones(4, 2, 3, 3)}, r"weight has shape \[4, 2, 3, 3\], expected \[4, 3, 3, 3\]"),
        ({"bias": torch.ones(5)}, r"bias has shape \[5\], expected \[4\]"),
        ({"bias": torch.ones(4).double()}, "bias is float64, expected float32"),
        ({"residual": torch.ones(1, 4, 5, 6)}, r"residual has shape \[1, 4, 5, 6\], expected \[1, 4, 5, 5\]"),
        ({"weight": torch.ones(4, 3, 3, 3, device="meta")}, "weight is on meta, expected cpu"),
    ],
)
def test_wrong_arguments(change, message):
    whole = {"x": torch.ones(1, 3, 5, 5), "weight": torch.ones(4, 3, 3, 3), "bias": torch.ones(4)}
    with pytest.raises(UserError, match=f"conv3x3: .*{message}"):
        conv3x3(**(whole | change))


def test_other_dtypes_are_refused_by_name():
    x, weight, bias, _ = (t.double() for t in inputs(1, 4, 4, 2, 2))
    with pytest.raises(UserError, match="cpp takes float32, found float64"):
        conv3x3(x, weight, bias, backend="cpp")
