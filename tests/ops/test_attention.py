import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numerics import EXAMPLES, LAYOUTS, backends, cases, compare, device, lay_out, slow, threads, wide

from mlperf_fast.errors import UserError
from mlperf_fast.ops import attention
from mlperf_fast.ops.backend import OPS, chosen, reasons
from mlperf_fast.ops.dropout import dropout_state, keep_scale, random_bits, threshold

OP = "attention"


def cu_seqlens_of(lengths, where="cpu"):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(where)


def state_of(seed, where="cpu"):
    state = dropout_state(-(2**62) + seed, where)
    state[1] = 5 + seed
    return state


def inputs(lengths, H, D, dtype, seed=0, layout="contiguous", tail=0):
    """qkv, cu_seqlens, dout, with `tail` tokens of no sequence behind."""
    T = sum(lengths) + tail
    qkv, dout = (lay_out(wide(seed + n, *shape, dtype=dtype, decades=1), layout)
                 for n, shape in enumerate([(T, 3, H, D), (T, H, D)]))  # fmt: skip
    return qkv, cu_seqlens_of(lengths), dout


def both_ways(op, qkv, dout):
    qkv = qkv.detach().requires_grad_()
    out = op(qkv)
    return out.detach(), torch.autograd.grad(out, qkv, dout)[0]


def scales(qkv, lengths, dout, p, state, scale):
    """What the terms of out and dqkv sum up to in size, in float64: what rounding errors grow with.

    A probability is off by the score's error, which grows with the score's terms.
    """
    T, _, H, D = qkv.shape
    out, dqkv, first = torch.zeros(T, H, D).double(), torch.zeros(T, 3, H, D).double(), 0
    for L in filter(None, lengths):
        tokens = slice(first, first + L)
        q, k, v = qkv[tokens].permute(1, 2, 0, 3)
        g = dout[tokens].transpose(0, 1)
        probabilities = (q @ k.transpose(1, 2) * scale).softmax(-1)
        keep = torch.ones_like(probabilities)
        if p:
            bits = random_bits(state, 0, L * H, L, first * H).view(L, H, L).transpose(0, 1)
            keep = (bits >= threshold(p)) * keep_scale(threshold(p))
        size = 1 + (q.abs() @ k.abs().transpose(1, 2) * scale).amax(
            -1, keepdim=True
        )  # of the scores, before they cancel
        kept = probabilities * keep * size
        out[tokens] = (kept @ v.abs()).transpose(0, 1)
        dp = g.abs() @ v.abs().transpose(1, 2) * keep
        ds = probabilities * size * (dp + (probabilities * dp).sum(-1, keepdim=True)) * scale
        gradients = ds @ k.abs(), ds.transpose(1, 2) @ q.abs(), kept.transpose(1, 2) @ g.abs()
        dqkv[tokens] = torch.stack(gradients).permute(2, 0, 1, 3)
        first += L
    return out, dqkv


def check(backend, qkv, lengths, dout, p=0.0, seed=0, longest=None, scale=None):
    where, state, cu_seqlens = device(backend), state_of(seed), cu_seqlens_of(lengths)
    longest = max(lengths, default=0) if longest is None else longest
    op = functools.partial(attention, longest=longest, p=p, scale=scale)
    mine = functools.partial(op, cu_seqlens=cu_seqlens.to(where), state=state.to(where), backend=backend)
    reference = functools.partial(op, cu_seqlens=cu_seqlens, state=state, backend="ref")
    got = both_ways(mine, qkv.to(where), dout.to(where))
    plain, truth = both_ways(reference, qkv, dout), both_ways(reference, qkv.double(), dout.double())
    factor = 1 / math.sqrt(qkv.shape[-1]) if scale is None else scale
    sizes = scales(qkv.double(), lengths, dout.double(), p, state, factor)
    for name, *values in zip(("out", "dqkv"), got, plain, truth, sizes, strict=True):
        compare(f"{OP} {name}", backend, *values, steps=2)
    end = sum(lengths)
    assert not got[0][end:].any()
    assert not got[1][end:].any()


@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
@EXAMPLES
@given(
    lengths=st.lists(st.integers(0, 40), max_size=4),
    H=st.integers(1, 3),
    D=st.sampled_from([16, 32, 64]),
    p=st.sampled_from([0.0, 0.1, 0.9]),
    tail=st.integers(0, 9),
    seed=st.integers(0, 999),
    layout=st.sampled_from(LAYOUTS),
)
def test_matches_reference(backend, dtype, lengths, H, D, p, tail, seed, layout):
    qkv, _, dout = inputs(lengths, H, D, dtype, seed, layout, tail)
    check(backend, qkv, lengths, dout, p, seed)


# Lengths of 1; one key more than a block of backward has, and a short one; more queries than a block; full sequences;
# head sizes that aren't whole registers, on the backends that take them.
@pytest.mark.parametrize(
    ("lengths", "H", "D"),
    [([1, 1, 1], 2, 64), ([129, 3, 50], 1, 64), ([49, 130], 2, 16), ([64, 64], 2, 32), ([70], 1, 128)],
)
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
def test_chosen_shapes(backend, dtype, lengths, H, D, p):
    qkv, _, dout = inputs(lengths, H, D, dtype, tail=3)
    check(backend, qkv, lengths, dout, p)


@pytest.mark.parametrize("D", [1, 7, 33, 80])
@pytest.mark.parametrize("backend", [p for p in backends(OP) if p.values[0].startswith("cpp")], indirect=True)
def test_any_head_size_on_the_cpu(backend, D):
    for dtype in (torch.float32, torch.bfloat16):
        qkv, _, dout = inputs([20, 5], 2, D, dtype)
        check(backend, qkv, [20, 5], dout, 0.1)


@pytest.mark.parametrize("backend", [p for p in backends(OP) if not slow(p.values[0])], indirect=True)
def test_long_sequences(backend):
    """BERT's longest, and longer than any block."""
    lengths = [512, 700, 1]
    qkv, _, dout = inputs(lengths, 2, 64, torch.float32)
    check(backend, qkv, lengths, dout, 0.1, longest=1024)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_a_given_scale_and_an_empty_sequence_between(backend):
    lengths = [7, 0, 20, 0]
    qkv, _, dout = inputs(lengths, 2, 16, torch.float32, tail=1)
    check(backend, qkv, lengths, dout, scale=0.5, longest=64)


@pytest.mark.parametrize("backend", [*backends(OP), pytest.param("ref")], indirect=True)
@pytest.mark.parametrize(("lengths", "tail"), [([], 0), ([], 5), ([0, 0], 0), ([0], 2)])
def test_nothing_to_do(backend, lengths, tail):
    qkv, cu_seqlens, dout = (t.to(device(backend)) for t in inputs(lengths, 2, 32, torch.float32, tail=tail))
    op = functools.partial(attention, cu_seqlens=cu_seqlens, longest=0, backend=backend)
    out, dqkv = both_ways(op, qkv, dout)
    assert out.shape == (tail, 2, 32)
    assert dqkv.shape == (tail, 3, 2, 32)
    assert not out.any()
    assert not dqkv.any()


@pytest.mark.parametrize("backend", [*backends(OP), pytest.param("ref")], indirect=True)
def test_is_pytorch_s_own_attention(backend):
    lengths = [30, 11]
    qkv, cu_seqlens, dout = inputs(lengths, 3, 32, torch.float32)
    op = functools.partial(attention, cu_seqlens=cu_seqlens.to(device(backend)), longest=30, backend=backend)
    got = both_ways(op, qkv.to(device(backend)), dout.to(device(backend)))

    def per_sequence(qkv):
        parts = [tokens.permute(1, 2, 0, 3) for tokens in qkv.split(lengths)]
        return torch.cat([F.scaled_dot_product_attention(q, k, v).transpose(0, 1) for q, k, v in parts])

    for mine, theirs in zip(got, both_ways(per_sequence, qkv, dout), strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", [*backends(OP), pytest.param("ref")], indirect=True)
@pytest.mark.parametrize("site", [0, 2**32 - 1])
def test_drops_what_the_counter_says(backend, site):
    """With values of one-hot rows the output is the probabilities themselves: 0 where the bits say so, else not."""
    lengths, H, D = [16, 9, 16], 2, 16
    qkv, cu_seqlens, _ = inputs(lengths, H, D, torch.float32)
    state, first = state_of(3), 0
    for L in lengths:
        qkv[first : first + L, 2] = torch.eye(L, D).unsqueeze(1)
        first += L
    for p in (0.1, 0.9):
        op = functools.partial(attention, longest=16, p=p, site=site, backend=backend)
        out = op(*(t.to(device(backend)) for t in (qkv, cu_seqlens)), state=state.to(device(backend))).cpu()
        first = 0
        for L in lengths:
            kept = random_bits(state, site, L * H, L, first * H).view(L, H, L) >= threshold(p)
            assert torch.equal(out[first : first + L, :, :L] != 0, kept), f"p {p}, from token {first}"
            first += L


def test_dropout_keeps_its_share_and_the_mean():
    """Of 2 x 256 x 256 probabilities, within five deviations; each row's sum is 1 on average."""
    L, H, p = 256, 2, 0.1
    qkv = torch.zeros(L, 3, H, L)
    qkv[:, 2] = torch.eye(L).unsqueeze(1)
    out = attention(qkv, cu_seqlens_of([L]), L, p=p, state=state_of(1), backend="cpp")
    n, share = L * L * H, threshold(p) / 65536
    assert abs(float((out == 0).sum()) - n * share) < 5 * (n * share * (1 - share)) ** 0.5
    assert abs(float(out.sum(-1).mean()) - 1) < 5 * (share / (1 - share) / n) ** 0.5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["varlen_attn", "flash_attn"])
def test_libraries(name, dtype):
    """Both directions, with an empty sequence and tokens of none; a scale; nothing to do."""
    if reasons()[name]:
        pytest.skip(f"{name}: {reasons()[name]}")
    lengths = [130, 0, 7]
    for D, scale in ((64, None), (40, 0.3)):
        qkv, _, dout = inputs(lengths, 2, D, dtype, tail=5)
        check(name, qkv, lengths, dout, longest=256, scale=scale)
    qkv = torch.ones(3, 3, 2, 64, dtype=dtype, device="cuda")
    assert not attention(qkv, cu_seqlens_of([], "cuda"), 0, backend=name).any()
    with pytest.raises(UserError, match="p isn't 0, and a library drops by its own generator"):
        attention(qkv, cu_seqlens_of([3], "cuda"), 3, p=0.1, state=state_of(0, "cuda"), backend=name)


def test_a_library_runs_only_where_it_is_named_and_can():
    for name in ("varlen_attn", "flash_attn"):
        asks = OPS[OP].table[name].asks
        assert "p isn't 0" in asks(torch.zeros(2, 3, 1, 64), dropout=True)
        assert "its heads have 20" in asks(torch.zeros(2, 3, 1, 20), dropout=False)
        assert "its heads have 264" in asks(torch.zeros(2, 3, 1, 264), dropout=False)
    assert chosen(OP, "cuda", torch.bfloat16) == "triton"


@pytest.mark.parametrize("backend", [p for p in backends(OP) if p.values[0] == "triton"], indirect=True)
def test_nothing_outside_of_the_tensors_is_touched(backend):
    """Whatever cu_seqlens holds: NaN around qkv isn't read, what lies around the results isn't written."""
    from mlperf_fast.kernels.attention import attention_bwd, attention_fwd

    T, H, D, margin = 20, 2, 16, 64
    where = device(backend)

    def fenced(*shape, fence):
        whole = torch.full((margin + math.prod(shape) + margin,), fence, device=where)
        inner = whole[margin:-margin].view(shape)
        inner.fill_(0.5)
        return whole, inner

    for bounds in ([-5, 7, 3, 99], [0, 2**31 - 1, -(2**31)], [30, 40], [0, 20, 20]):
        cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=where)
        (_, qkv), (_, dout) = fenced(T, 3, H, D, fence=torch.nan), fenced(T, H, D, fence=torch.nan)
        results = [fenced(*shape, fence=7.0) for shape in ((T, H, D), (T, H), (T, 3, H, D))]
        out, lse, dqkv = (inner for _, inner in results)
        call = (33, 0.25, state_of(0, where), 0, 6554)
        attention_fwd(qkv, cu_seqlens, out, lse, *call)
        attention_bwd(qkv, cu_seqlens, out, lse, dout, dqkv, *call)
        for whole, inner in results:
            assert not inner.isnan().any(), bounds
            assert bool((whole[:margin] == 7).all() and (whole[-margin:] == 7).all()), bounds


@pytest.mark.parametrize("backend", [p for p in backends(OP) if p.values[0] == "triton"], indirect=True)
def test_head_sizes_of_triton(backend):
    qkv, cu_seqlens, _ = (t.to(device(backend)) for t in inputs([3], 1, 80, torch.float32))
    with pytest.raises(UserError, match="backend triton takes heads of 16, 32, 64, 128, found 80"):
        attention(qkv, cu_seqlens, 3, backend=backend)


def test_reference_gradient():
    qkv, cu_seqlens, _ = inputs([3, 5], 2, 4, torch.float64, tail=1)
    op = functools.partial(attention, cu_seqlens=cu_seqlens, longest=5, p=0.3, state=state_of(0), backend="ref")
    assert torch.autograd.gradcheck(op, qkv.requires_grad_())


@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
def test_same_bits_in_every_run(backend, dtype):
    lengths = [200, 1, 77, 130, 90] if not slow(backend) else [20, 5]
    qkv, cu_seqlens, dout = (t.to(device(backend)) for t in inputs(lengths, 2, 32, dtype, tail=2))
    op = functools.partial(
        attention, cu_seqlens=cu_seqlens, longest=200, p=0.1, state=state_of(1, qkv.device), backend=backend
    )
    first = both_ways(op, qkv, dout)
    for n in (1, 2, 5) if backend == "cpp" else (1,):
        with threads(n):
            for _ in range(10 if not slow(backend) else 2):
                assert all(map(torch.equal, both_ways(op, qkv, dout), first)), f"{n} threads"


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_a_gradient_of_any_layout(backend):
    qkv, cu_seqlens, dout = (t.to(device(backend)) for t in inputs([12, 7], 2, 16, torch.float32))
    op = functools.partial(attention, cu_seqlens=cu_seqlens, longest=12, backend=backend)
    _, expected = both_ways(op, qkv, dout)
    _, transposed = both_ways(op, qkv, dout.transpose(0, 1).contiguous().transpose(0, 1))
    assert torch.equal(transposed, expected)
    one = dout.new_ones(())
    assert torch.equal(both_ways(op, qkv, one.expand(dout.shape))[1], both_ways(op, qkv, torch.ones_like(dout))[1])


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_infinity_and_nan_stay_in_their_sequence(backend):
    qkv, cu_seqlens, dout = (t.to(device(backend)) for t in inputs([20, 20], 1, 16, torch.float32, tail=1))
    op = functools.partial(attention, cu_seqlens=cu_seqlens, longest=20, backend=backend)
    expected = both_ways(op, qkv, dout)
    for bad in (torch.nan, torch.inf):
        broken = qkv.clone()
        broken[25, 1, 0, 3] = bad  # a key
        for got, right in zip(both_ways(op, broken, dout), expected, strict=True):
            assert torch.equal(got[:20], right[:20])
            assert got[20:40].isnan().any()
            assert not got[40:].any()


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_torch_op_contract(backend):
    qkv, cu_seqlens, dout = (t.to(device(backend)) for t in inputs([6, 3], 2, 16, torch.float32))
    ops = torch.ops.mlperf_fast
    for kept_from, state in ((6554, state_of(0, qkv.device)), (0, None)):
        arguments = (8, 0.25, kept_from, state, 3, backend)
        torch.library.opcheck(ops.attention, (qkv, cu_seqlens, *arguments))
        out, lse = ops.attention(qkv, cu_seqlens, *arguments)
        torch.library.opcheck(ops.attention_bwd, (qkv, cu_seqlens, out, lse, dout, *arguments))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_compiles_without_graph_break(backend):
    qkv, cu_seqlens, dout = (t.to(device(backend)) for t in inputs([6, 3], 2, 16, torch.float32))
    state = state_of(1, qkv.device)

    def layer(x):
        return attention(x * 2, cu_seqlens, 8, p=0.1, state=state, backend=backend)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, both_ways(compiled, qkv, dout), both_ways(layer, qkv, dout)))


def test_a_step_that_advances_before_the_backward_pass_is_refused():
    """The mask of backward would be another one."""
    qkv, cu_seqlens, _ = inputs([6], 1, 16, torch.float32)
    state = state_of(0)
    out = attention(qkv.requires_grad_(), cu_seqlens, 6, p=0.1, state=state, backend="cpp")
    state[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_second_derivative_is_refused():
    qkv, cu_seqlens, _ = inputs([6], 1, 16, torch.float32)
    out = attention(qkv.requires_grad_(), cu_seqlens, 6, backend="cpp")
    with pytest.raises(UserError, match="attention is differentiable once; with create_graph=True use backend='ref'"):
        torch.autograd.grad(out.sum(), qkv, create_graph=True)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([1, 5], "begins with 1, expected 0"),
        ([0, 5, 3, 9], "has sequence 1 from token 5 to 3; its entries must not decrease"),
        ([0, 5, 11], "has sequence 1 from token 5 to 11, but qkv has 10 tokens"),
        ([0, 2, 9], "has sequence 1 from token 2 to 9, longer than longest, 6"),
        ([0, -1], "has sequence 0 from token 0 to -1"),
    ],
)
def test_wrong_sequences(bounds, message):
    qkv = torch.zeros(10, 3, 2, 16)
    with pytest.raises(UserError, match=f"attention: cu_seqlens {message}"):
        attention(qkv, torch.tensor(bounds, dtype=torch.int32), 6, backend="cpp")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.zeros(5, 3, 16)}, r"qkv has shape \[5, 3, 16\], expected \[T, 3, heads, D\]"),
        ({"qkv": torch.zeros(5, 2, 2, 16)}, r"qkv has shape \[5, 2, 2, 16\], expected \[T, 3, heads >= 1, D >= 1\]"),
        ({"cu_seqlens": torch.zeros(2, dtype=torch.int64)}, "cu_seqlens is int64, expected int32"),
        ({"cu_seqlens": torch.zeros(2, 1, dtype=torch.int32)}, r"cu_seqlens has shape \[2, 1\], expected \[b\+1\]"),
        ({"cu_seqlens": torch.zeros(0, dtype=torch.int32)}, r"cu_seqlens has shape \[0\], expected \[1\]"),
        ({"cu_seqlens": torch.zeros(2, dtype=torch.int32, device="meta")}, "cu_seqlens is on meta, expected cpu"),
        ({"longest": -1}, "longest is -1, expected a whole number of 0 or more"),
        ({"longest": 2.0}, "longest is 2.0, expected a whole number of 0 or more"),
        ({"p": 1.0}, "p is 1.0, expected a number of 0 or more and less than 1"),
        ({"p": 0.1}, r"p is 0.1, but there is no state; make one with dropout_state\(seed, device\)"),
        ({"qkv": torch.zeros(5, 3, 2, 16).double()}, "cpp takes float32 or bfloat16 or float16, found float64"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"qkv": torch.zeros(5, 3, 2, 16), "cu_seqlens": cu_seqlens_of([5]), "longest": 5} | change
    with pytest.raises(UserError, match=f"attention: .*{message}"):
        attention(**arguments, backend="cpp")
