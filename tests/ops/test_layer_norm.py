import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import EXAMPLES, LAYOUTS, backends, cases, compare, device, lay_out, threads, wide

from mlperf_fast.errors import UserError
from mlperf_fast.ops import layer_norm
from mlperf_fast.ops.dropout import dropout_state, philox, random_bits, threshold
from mlperf_fast.ops.layer_norm import layer_norm_ref

OP = "layer_norm"
NAMES = ("y", "dx", "dgamma", "dbeta", "dbias", "dresidual")


def inputs(B, N, dtype, seed=0, layout="contiguous", parameters=None):
    """x, gamma, beta, bias, residual, dy."""
    like = {"dtype": parameters or dtype, "decades": 2}
    x, residual, dy = (lay_out(wide(seed + n, B, N, dtype=dtype, decades=2), layout) for n in range(3))
    gamma, beta, bias = (lay_out(wide(seed + n, N, **like), layout) for n in range(3, 6))
    return x, gamma, beta, bias, residual, dy


def state_of(seed, where="cpu"):
    state = dropout_state(-(2**62) + seed, where)
    state[1] = 5 + seed
    return state


def both_ways(op, x, gamma, beta, bias, residual, dy):
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, gamma, beta, bias, residual)]
    y = op(*leaves[:3], bias=leaves[3], residual=leaves[4])
    found = iter(torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], dy))
    return [y, *(None if leaf is None else next(found) for leaf in leaves)]


def scales(x, gamma, beta, bias, residual, dy, p, state, eps):
    """What the terms of each result sum up to in size, in float64: what rounding errors grow with."""
    h = x.abs() if bias is None else x.abs() + bias.abs()
    keep = torch.ones_like(x) if not p else (random_bits(state, 0, *x.shape) >= threshold(p)) / (1 - p)
    h = h * keep if residual is None else h * keep + residual.abs()
    signed = x if bias is None else x + bias
    signed = signed * keep if residual is None else signed * keep + residual
    rstd = ((signed - signed.mean(1, keepdim=True)).square().mean(1, keepdim=True) + eps).rsqrt()
    largest = h.amax(1, keepdim=True) * rstd if x.numel() else h  # of the normalised row, before anything cancels
    z, g = largest.clamp_min(1), (dy * gamma).abs()
    dresidual = rstd * (g + g.mean(1, keepdim=True) * (1 + z * z))
    dx = dresidual * keep
    y = z * gamma.abs() + beta.abs()
    sums = (dy.abs() * z).sum(0), dy.abs().sum(0), dx.sum(0)
    return [y, dx, sums[0], sums[1], None if bias is None else sums[2], None if residual is None else dresidual]


def check(backend, tensors, p=0.0, seed=0, eps=1e-12):
    where = device(backend)
    x = tensors[0]
    state = state_of(seed)
    op = functools.partial(layer_norm, p=p, state=state.to(where), eps=eps, backend=backend)
    reference = functools.partial(layer_norm, p=p, state=state, eps=eps, backend="ref")
    got = both_ways(op, *(None if t is None else t.to(where) for t in tensors))
    rounded = [None if t is None else t.to(x.dtype) for t in tensors]
    wide_ = [None if t is None else t.double() for t in tensors]
    plain, truth = both_ways(reference, *rounded), both_ways(reference, *wide_)
    sizes = scales(*wide_, p, state, eps)
    for name, mine, theirs, right, size in zip(NAMES, got, plain, truth, sizes, strict=True):
        if right is not None:
            theirs = theirs.to(mine.dtype) if mine.dtype is torch.float32 else theirs
            compare(f"{OP} {name}", backend, mine, theirs, right, size, steps=3)


@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
@EXAMPLES
@given(
    B=st.integers(0, 70),
    N=st.integers(1, 200),
    p=st.sampled_from([0.0, 0.1, 0.9]),
    absent=st.sets(st.sampled_from(["bias", "residual"])),
    seed=st.integers(0, 999),
    layout=st.sampled_from(LAYOUTS),
)
def test_matches_reference(backend, dtype, B, N, p, absent, seed, layout):
    x, gamma, beta, bias, residual, dy = inputs(B, N, dtype, seed, layout)
    bias, residual = None if "bias" in absent else bias, None if "residual" in absent else residual
    check(backend, (x, gamma, beta, bias, residual, dy), p, seed)


# One number; BERT-large's rows, more than a block sums; rows longer than most, and not whole registers of them.
@pytest.mark.parametrize(("B", "N"), [(1, 1), (70, 1024), (3, 3001)])
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
def test_chosen_shapes(backend, dtype, B, N, p):
    check(backend, inputs(B, N, dtype), p)


@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
def test_float32_parameters(backend, dtype):
    check(backend, inputs(9, 40, dtype, parameters=torch.float32), 0.1)


@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
def test_a_row_of_equal_values_becomes_beta(backend, dtype):
    """1e-12 is 0 in float16; and the mean of many equal values, rounded, isn't their value."""
    x = torch.tensor([[0.0], [0.1], [-77.7], [3e4]], dtype=dtype, device=device(backend)).repeat(1, 999)
    gamma, beta = (torch.full((999,), value, dtype=dtype, device=x.device) for value in (1.5, 0.25))
    y, *gradients = both_ways(functools.partial(layer_norm, backend=backend), x, gamma, beta, None, None, x / 4096)
    assert torch.equal(y, beta.expand_as(y))
    assert all(g.isfinite().all() for g in gradients[1:3])
    assert not gradients[0].isnan().any()


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
@pytest.mark.parametrize(("B", "N"), [(5, 1), (3, 7), (20, 64), (4, 1000)])
@pytest.mark.parametrize("site", [0, 7, 2**32 - 1])
def test_drops_what_the_reference_drops_in_both_directions(backend, B, N, site):
    """Forward, dropped elements are equal and others aren't; backward, their gradient is 0 and others' isn't."""
    state = state_of(3)
    bits = random_bits(state, site, B, N)
    x = torch.rand(B, N) + 1
    for p in (0.25, 0.9):
        kept = bits >= threshold(p)
        op = functools.partial(layer_norm, p=p, state=state.to(device(backend)), site=site, backend=backend)
        one, zero = torch.ones(N), torch.zeros(N)
        tensors = (t.to(device(backend)) for t in (x, one, zero, zero, torch.zeros(B, N), torch.randn(B, N)))
        y, dx, *_ = (t.detach().cpu() for t in both_ways(op, *tensors))
        expected = layer_norm_ref(x, one, zero, threshold=threshold(p), state=state, site=site)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        if N > 7:  # where one is left of a few, it is normalised to a constant: its gradient is 0
            assert torch.equal(dx != 0, kept), f"p {p}"


@pytest.mark.parametrize("backend", [*backends(OP), pytest.param("ref")], indirect=True)
def test_p_of_0_drops_nothing(backend):
    x, gamma, beta, bias, residual, dy = (t.to(device(backend)) for t in inputs(400, 128, torch.float32))
    with_state = functools.partial(layer_norm, p=0.0, state=state_of(1, x.device), backend=backend)
    without = functools.partial(layer_norm, backend=backend)
    got, expected = (both_ways(op, x, gamma, beta, bias, residual, dy) for op in (with_state, without))
    assert all(map(torch.equal, got, expected))
    assert threshold(0) == 0


def test_random_bits_are_philox_with_seven_rounds():
    """Known answers of Random123 (kat_vectors), for seven rounds and for the ten of its default."""
    known = {
        7: ("5f6fb709 0d893f64 4f121f81 4f730a48", "4dfccaba 190a87f0 c47362ba b6b5242a"),
        10: ("6627e8d5 e169c58d bc57ac4c 9b00dbd8", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    }
    counters = (0, 0, 0, 0), (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    seeds = 0, 0x299F31D0A4093822
    for rounds, answers in known.items():
        for seed, counter, answer in zip(seeds, counters, answers, strict=True):
            words = philox(torch.tensor(seed), *(torch.tensor([word]) for word in counter), rounds=rounds)
            assert " ".join(f"{int(word):08x}" for word in words) == answer


def test_random_bits_are_even_and_independent_of_their_neighbours():
    """Of 2^18 elements: each bit's share of ones, and its agreement with the neighbour's, within five deviations."""
    state, n = state_of(0), 2**18
    bits = random_bits(state, 0, 512, 512)
    state[1] += 1
    neighbours = [bits.roll(1, 1), bits.roll(1, 0), bits.roll(8, 1), random_bits(state, 0, 512, 512)]
    neighbours.append(random_bits(state_of(0), 1, 512, 512))
    for bit in range(16):
        ones = bits >> bit & 1
        assert abs(float(ones.sum()) - n / 2) < 5 * (n / 4) ** 0.5
        for other in neighbours:
            assert abs(float((ones == (other >> bit & 1)).sum()) - n / 2) < 5 * (n / 4) ** 0.5
    for p in (0.1, 0.5):
        share = threshold(p) / 65536
        assert abs(float((bits < threshold(p)).sum()) - n * share) < 5 * (n * share * (1 - share)) ** 0.5


def test_reference_gradient():
    tensors = inputs(3, 5, torch.float64)[:5]
    op = lambda x, g, b, bias, r: layer_norm(  # noqa: E731
        x, g, b, bias=bias, residual=r, p=0.3, state=state_of(0), eps=1e-3, backend="ref"
    )
    assert torch.autograd.gradcheck(op, [t.requires_grad_() for t in tensors])


@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
def test_same_bits_in_every_run(backend, dtype):
    B = 300 if backend == "cpp" else 9
    tensors = [t.to(device(backend)) for t in inputs(B, 96, dtype)]
    op = functools.partial(layer_norm, p=0.1, state=state_of(1, device(backend)), backend=backend)
    first = both_ways(op, *tensors)
    for n in (1, 2, 5) if backend == "cpp" else (1,):
        with threads(n):
            for _ in range(10 if backend == "cpp" else 3):
                assert all(map(torch.equal, both_ways(op, *tensors), first)), f"{n} threads"


@pytest.mark.parametrize("backend", [p for p in backends(OP) if p.values[0].startswith("cpp")], indirect=True)
def test_large_outputs_past_the_caches_are_the_same(backend):
    """Over 16 MiB rows are written past the caches: the same bits as in two halves that aren't."""
    x, dy, gamma, beta = torch.randn(4200, 1024), torch.randn(4200, 1024), torch.rand(1024), torch.rand(1024)
    op = functools.partial(layer_norm, p=0.0, backend=backend)
    y, dx, *_ = both_ways(op, x, gamma, beta, None, x, dy)
    halves = [both_ways(op, x[r], gamma, beta, None, x[r], dy[r]) for r in (slice(0, 2100), slice(2100, None))]
    assert torch.equal(y, torch.cat([half[0] for half in halves]))
    assert torch.equal(dx, torch.cat([half[1] for half in halves]))


@pytest.mark.parametrize("backend", [p for p in backends(OP) if p.values[0] == "triton"], indirect=True)
def test_the_longest_rows_of_triton(backend):
    check(backend, inputs(2, 4096, torch.float32), p=0.1)
    x, gamma, beta, *_ = (t.to(device(backend)) for t in inputs(1, 4097, torch.float32))
    with pytest.raises(UserError, match="takes rows of up to 4096 elements, found 4097"):
        layer_norm(x, gamma, beta, backend=backend)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_more_dimensions_and_an_expanded_gradient(backend):
    x, gamma, beta, bias, residual, _ = (t.to(device(backend)) for t in inputs(12, 40, torch.float32))
    shaped = (x.view(3, 4, 40), gamma, beta, bias, residual.view(3, 4, 40))
    op = functools.partial(layer_norm, p=0.2, state=state_of(1, x.device))
    found, expected = (
        both_ways(functools.partial(op, backend=name), *shaped, gamma.new_ones(()).expand(3, 4, 40))
        for name in (backend, "ref")
    )
    assert found[0].shape == (3, 4, 40)
    for mine, theirs in zip(found[:1] + found[2:4], expected[:1] + expected[2:4], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_torch_op_contract(backend):
    x, gamma, beta, bias, residual, dy = (t.to(device(backend)) for t in inputs(4, 24, torch.float32))
    ops = torch.ops.mlperf_fast
    for added, kept_from, state in ((residual, 6554, state_of(0, x.device)), (None, 0, None)):
        forward = (x, gamma, beta, bias, added, kept_from, state, 3, 1e-12, backend)
        torch.library.opcheck(ops.layer_norm, forward)
        _, mean, rstd = ops.layer_norm(*forward)
        torch.library.opcheck(ops.layer_norm_bwd, (x, gamma, bias, added, mean, rstd, dy, kept_from, state, 3, backend))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_compiles_without_graph_break(backend):
    tensors = [t.to(device(backend)) for t in inputs(4, 24, torch.float32)]
    state = state_of(1, device(backend))

    def layer(x, gamma, beta, bias, residual):
        return layer_norm(x * 2, gamma, beta, bias=bias, residual=residual, p=0.1, state=state, backend=backend)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, both_ways(compiled, *tensors), both_ways(layer, *tensors)))


def test_a_step_that_advances_before_the_backward_pass_is_refused():
    """The mask of backward would be another one."""
    x, gamma, beta, *_ = inputs(4, 24, torch.float32)
    state = state_of(0)
    y = layer_norm(x.requires_grad_(), gamma, beta, p=0.1, state=state, backend="cpp")
    state[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_second_derivative_is_refused():
    x, gamma, beta, *_ = inputs(4, 24, torch.float32)
    y = layer_norm(x.requires_grad_(), gamma, beta, backend="cpp")
    with pytest.raises(UserError, match="layer_norm is differentiable once; with create_graph=True use backend='ref'"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": torch.ones(5)}, r"gamma has shape \[5\], expected \[4\]"),
        ({"beta": torch.ones(4, dtype=torch.float64)}, "beta is float64, expected float32"),
        ({"bias": torch.ones(4, 1)}, r"bias has shape \[4, 1\], expected \[4\]"),
        ({"residual": torch.ones(2, 4)}, r"residual has shape \[2, 4\], expected \[3, 4\]"),
        ({"residual": torch.ones(3, 4, dtype=torch.bfloat16)}, "residual is bfloat16, expected float32"),
        ({"gamma": torch.ones(4, device="meta")}, "gamma is on meta, expected cpu"),
        ({"p": 1.0}, "p is 1.0, expected a number of 0 or more and less than 1"),
        ({"p": 0.1}, r"p is 0.1, but there is no state; make one with dropout_state\(seed, device\)"),
        ({"p": 0.1, "state": torch.zeros(2)}, "state is float32, expected int64"),
        ({"p": 0.1, "state": torch.zeros(2, dtype=torch.int64), "site": -1}, "site is -1, expected a number of 0"),
        ({"eps": -1.0}, "eps is -1.0, expected a number of 0 or more"),
        ({"x": torch.ones(3, 4).double(), "gamma": torch.ones(4)}, "cpp takes float32 or bfloat16 or float16, found"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"x": torch.ones(3, 4), "gamma": torch.ones(4), "beta": torch.ones(4)} | change
    with pytest.raises(UserError, match=f"layer_norm: .*{message}"):
        layer_norm(**arguments, backend="cpp")
