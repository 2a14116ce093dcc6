import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import EXAMPLES, LAYOUTS, backends, cases, compare, device, lay_out, threads, wide

from mlperf_fast.errors import UserError
from mlperf_fast.ops import dot_interaction
from mlperf_fast.ops.dot_interaction import dot_interaction_ref

OP = "dot_interaction"


def forward_and_gradients(op, dense, sparse, dout):
    dense, sparse = dense.detach().requires_grad_(), sparse.detach().requires_grad_()
    out = op(dense, sparse)
    return out, *torch.autograd.grad(out, (dense, sparse), dout)


def check(backend, dense, sparse, dout):
    where = device(backend)
    got = forward_and_gradients(
        lambda *x: dot_interaction(*x, backend=backend), dense.to(where), sparse.to(where), dout.to(where)
    )
    plain = forward_and_gradients(dot_interaction_ref, dense, sparse, dout)
    truth = forward_and_gradients(dot_interaction_ref, dense.double(), sparse.double(), dout.double())
    # All three are sums of products: with absolute values in, the reference gives the sums of their sizes.
    scale = forward_and_gradients(dot_interaction_ref, *(x.double().abs() for x in (dense, sparse, dout)))
    for name, *values in zip(("out", "ddense", "dsparse"), got, plain, truth, scale, strict=True):
        compare(f"{OP} {name}", backend, *values)


def inputs(B, T, D, dtype, seed=0, layout="contiguous"):
    shapes = ((B, D), (B, T, D), (B, D + T * (T + 1) // 2))
    return (lay_out(wide(seed + i, *shape, dtype=dtype), layout) for i, shape in enumerate(shapes))


@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
@EXAMPLES
@given(
    B=st.integers(0, 9),
    T=st.integers(1, 30),
    D=st.integers(1, 70),
    seed=st.integers(0, 999),
    layout=st.sampled_from(LAYOUTS),
)
def test_matches_reference(backend, dtype, B, T, D, seed, layout):
    check(backend, *inputs(B, T, D, dtype, seed, layout))


# One sample of one feature; DLRM's shapes; more features than a tile of 32 or 64; rows longer than a block.
@pytest.mark.parametrize(
    ("B", "T", "D"), [(1, 1, 1), (65, 26, 16), (33, 26, 128), (3, 40, 24), (2, 127, 150), (2, 5, 304)]
)
@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
def test_chosen_shapes(backend, dtype, B, T, D):
    check(backend, *inputs(B, T, D, dtype))


def test_reference_has_the_order_of_the_benchmark():
    dense, sparse, _ = inputs(3, 4, 5, torch.float64)
    out = dot_interaction(dense, sparse, backend="ref")
    for b in range(3):
        rows = [dense[b], *sparse[b]]
        pairs = [float(rows[i] @ rows[j]) for i in range(5) for j in range(i)]
        assert out[b].tolist() == pytest.approx([*dense[b].tolist(), *pairs])


def test_reference_gradient():
    dense, sparse, _ = inputs(2, 3, 4, torch.float64)
    assert torch.autograd.gradcheck(
        lambda *x: dot_interaction(*x, backend="ref"), (dense.requires_grad_(), sparse.requires_grad_())
    )


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_expanded_gradient_and_one_input_without_gradient(backend):
    dense, sparse, _ = (x.to(device(backend)) for x in inputs(4, 3, 8, torch.float32))
    sparse.requires_grad_()
    dot_interaction(dense, sparse, backend=backend).sum().backward()  # sum's gradient has strides of 0
    expected = sparse.detach().clone().requires_grad_()
    dot_interaction_ref(dense, expected).sum().backward()
    torch.testing.assert_close(sparse.grad, expected.grad)
    assert dense.grad is None


@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
def test_same_bits_in_every_run(backend, dtype):
    B = 37 if backend == "cpp" else 5
    dense, sparse, dout = (x.to(device(backend)) for x in inputs(B, 26, 16, dtype))

    def run():
        return forward_and_gradients(lambda *x: dot_interaction(*x, backend=backend), dense, sparse, dout)

    first = run()
    for n in (1, 2, 5) if backend == "cpp" else (1,):
        with threads(n):
            for _ in range(10 if backend == "cpp" else 3):
                assert all(map(torch.equal, run(), first)), f"{n} threads"


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_torch_op_contract(backend):
    dense, sparse, dout = (x.to(device(backend)) for x in inputs(3, 4, 8, torch.float32))
    torch.library.opcheck(torch.ops.mlperf_fast.dot_interaction, (dense, sparse, backend))
    torch.library.opcheck(torch.ops.mlperf_fast.dot_interaction_bwd, (dense, sparse, dout, backend))


def test_a_second_derivative_is_refused():
    dense, sparse, _ = inputs(3, 4, 8, torch.float32)
    out = dot_interaction(dense.requires_grad_(), sparse, backend="cpp")
    with pytest.raises(UserError, match="dot_interaction is differentiable once"):
        torch.autograd.grad(out.sum(), dense, create_graph=True)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_compiles_without_graph_break(backend):
    inputs_ = [x.to(device(backend)) for x in inputs(3, 4, 8, torch.float32)]

    def layer(dense, sparse):
        return dot_interaction(dense * 2, sparse, backend=backend)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got, expected = forward_and_gradients(compiled, *inputs_), forward_and_gradients(layer, *inputs_)
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize(
    ("dense", "sparse", "message"),
    [
        (torch.ones(2, 3, 4), torch.ones(2, 3, 4), r"dense has shape \[2, 3, 4\], expected \[B, D\]"),
        (torch.ones(2, 4), torch.ones(2, 4), r"sparse has shape \[2, 4\], expected \[B, T, D\]"),
        (torch.ones(2, 4), torch.ones(3, 3, 4), r"sparse has shape \[3, 3, 4\], expected \[2, 3, 4\]"),
        (torch.ones(2, 4), torch.ones(2, 0, 4), r"sparse has shape \[2, 0, 4\], expected \[B, T >= 1, D >= 1\]"),
        (torch.ones(2, 4), torch.ones(2, 3, 4).bfloat16(), "sparse is bfloat16, expected float32"),
        (torch.ones(2, 4), torch.ones(2, 3, 4, device="meta"), "sparse is on meta, expected cpu"),
        (torch.ones(2, 4).double(), torch.ones(2, 3, 4).double(), "cpp takes float32 or bfloat16, found float64"),
    ],
)
def test_wrong_arguments(dense, sparse, message):
    with pytest.raises(UserError, match=f"dot_interaction: .*{message}"):
        dot_interaction(dense, sparse, backend="cpp")


@pytest.mark.parametrize("backend", [p for p in backends(OP) if p.values[0] == "triton"], indirect=True)
def test_triton_says_how_many_features_it_takes(backend):
    dense, sparse, _ = (x.to(device(backend)) for x in inputs(1, 128, 2, torch.float32))
    with pytest.raises(UserError, match="up to 127 sparse features, found 128"):
        dot_interaction(dense, sparse, backend=backend)


@pytest.mark.parametrize("backend", [p for p in backends(OP) if p.values[0] == "cuda"], indirect=True)
def test_cuda_says_when_a_sample_is_too_large(backend):
    large, huge = (
        [x.to(device(backend)).requires_grad_() for x in inputs(1, T, 2, torch.float32)] for T in (700, 1900)
    )
    message = r"{} sparse features of 2 elements: a sample takes \d+ KB of shared memory, and a block has \d+"
    with pytest.raises(UserError, match=message.format(1900)):
        dot_interaction(*huge[:2], backend=backend)
    out = dot_interaction(*large[:2], backend=backend)
    with pytest.raises(UserError, match=message.format(700)):
        out.sum().backward()
