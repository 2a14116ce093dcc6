import functools
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import EXAMPLES, LAYOUTS, backends, cases, compare, device, lay_out, threads, wide
from torch import Tensor

from mlperf_fast.errors import UserError
from mlperf_fast.loop.capture_safety import capture_safe
from mlperf_fast.ops import embedding_layer_norm, raise_if_bad_tokens
from mlperf_fast.ops.dropout import dropout_state, random_bits, threshold

OP = "embedding_layer_norm"
NAMES = ("y", "dword", "dposition", "dsegment", "dgamma", "dbeta")
TRITON = [p for p in backends(OP) if p.values[0] == "triton"]


@dataclass(frozen=True)
class Case:
    ids: Tensor
    positions: Tensor
    segments: Tensor
    word: Tensor
    position: Tensor
    segment: Tensor
    gamma: Tensor
    beta: Tensor
    dy: Tensor

    def to(self, where: torch.dtype | str) -> "Case":
        """On a device, or its floats in a dtype."""
        floats = isinstance(where, torch.dtype)
        return Case(*(x.to(where) if not floats or x.is_floating_point() else x for x in vars(self).values()))


def make_case(T=7, rows=(50, 12, 2), H=24, dtype=torch.float32, seed=0, layout="contiguous", parameters=None):
    generator = torch.Generator().manual_seed(seed)
    numbers = [lay_out(torch.randint(0, n, (T,), generator=generator, dtype=torch.int32), layout) for n in rows]
    tables = [lay_out(wide(seed + n, rows[n], H, dtype=dtype, decades=2), layout) for n in range(3)]
    like = {"dtype": parameters or dtype, "decades": 2}
    gamma, beta = (lay_out(wide(seed + n, H, **like), layout) for n in (3, 4))
    return Case(*numbers, *tables, gamma, beta, lay_out(wide(seed + 5, T, H, dtype=dtype, decades=2), layout))


def state_of(seed, where="cpu"):
    state = dropout_state(-(2**62) + seed, where)
    state[1] = 5 + seed
    return state


def both_ways(op, c: Case):
    *numbers, word, position, segment, gamma, beta, dy = vars(c).values()
    leaves = [t.detach().requires_grad_() for t in (word, position, segment, gamma, beta)]
    y = op(*numbers, *leaves)
    return [y, *torch.autograd.grad(y, leaves, dy)]


def scales(c: Case, p, state, site, eps):
    """What the terms of each result sum up to in size, in float64."""
    numbers, tables = (c.ids, c.positions, c.segments), (c.word, c.position, c.segment)
    signed = sum(table[n] for n, table in zip(numbers, tables, strict=True))
    size = sum(table[n].abs() for n, table in zip(numbers, tables, strict=True))
    keep = torch.ones_like(c.dy) if not p else (random_bits(state, site, *c.dy.shape) >= threshold(p)) / (1 - p)
    rstd = ((signed - signed.mean(1, keepdim=True)).square().mean(1, keepdim=True) + eps).rsqrt()
    z = (size.amax(1, keepdim=True) * rstd).clamp_min(1)  # of the normalised row, before anything cancels
    dy = c.dy.abs() * keep
    g = dy * c.gamma.abs()
    dsum = rstd * (g + g.mean(1, keepdim=True) * (1 + z * z))
    dtables = [torch.zeros_like(table).index_add_(0, n, dsum) for n, table in zip(numbers, tables, strict=True)]
    return [(z * c.gamma.abs() + c.beta.abs()) * keep, *dtables, (dy * z).sum(0), dy.sum(0)]


def check(backend, c: Case, p=0.0, seed=0, site=0, eps=1e-12):
    where, state = device(backend), state_of(seed)
    op = functools.partial(embedding_layer_norm, p=p, site=site, eps=eps)
    reference = functools.partial(op, state=state, backend="ref")
    got = both_ways(functools.partial(op, state=state.to(where), backend=backend), c.to(where))
    plain, truth = both_ways(reference, c.to(c.word.dtype)), both_ways(reference, c.to(torch.float64))
    if c.dy.numel() == 0:
        assert all(not g.any() for g in got)
        return
    sizes = scales(c.to(torch.float64), p, state, site, eps)
    for name, mine, theirs, right, size in zip(NAMES, got, plain, truth, sizes, strict=True):
        compare(f"{OP} {name}", backend, mine, theirs.to(mine.dtype), right, size, steps=3)


@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
@EXAMPLES
@given(
    T=st.integers(0, 70),
    rows=st.tuples(st.sampled_from([1, 7, 300]), st.sampled_from([1, 20]), st.sampled_from([1, 2, 5])),
    H=st.integers(1, 200),
    p=st.sampled_from([0.0, 0.1, 0.9]),
    seed=st.integers(0, 999),
    layout=st.sampled_from(LAYOUTS),
)
def test_matches_reference(backend, dtype, T, rows, H, p, seed, layout):
    check(backend, make_case(T, rows, H, dtype, seed, layout), p, seed)


# One number; BERT-large's rows, more than a block sums, words that come often; rows that aren't whole registers.
@pytest.mark.parametrize(("T", "rows", "H"), [(1, (1, 1, 1), 1), (150, (20, 64, 2), 1024), (3, (9, 9, 2), 1030)])
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
def test_chosen_shapes(backend, dtype, T, rows, H, p):
    check(backend, make_case(T, rows, H, dtype), p, site=3)


@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
def test_float32_parameters(backend, dtype):
    check(backend, make_case(9, H=40, dtype=dtype, parameters=torch.float32), 0.1)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_drops_after_the_norm_what_the_reference_drops(backend):
    """Dropped elements are 0; the others are those without dropout, scaled; and gradients see the same choice."""
    c, state = make_case(40, H=64).to(device(backend)), state_of(3, device(backend))
    op = functools.partial(embedding_layer_norm, state=state, site=7, backend=backend)
    (dropped, *_, dbeta), (whole, *_) = both_ways(functools.partial(op, p=0.25), c), both_ways(op, c)
    kept = random_bits(state, 7, 40, 64) >= threshold(0.25)
    torch.testing.assert_close(dropped, torch.where(kept, whole / 0.75, 0))
    torch.testing.assert_close(dbeta, (torch.where(kept, c.dy, 0) / 0.75).sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_rows_that_no_token_has_get_no_gradient(backend):
    c = make_case(30, rows=(300, 40, 3)).to(device(backend))
    gradients = both_ways(functools.partial(embedding_layer_norm, backend=backend), c)[1:4]
    for numbers, gradient in zip((c.ids, c.positions, c.segments), gradients, strict=True):
        unused = torch.ones(gradient.shape[0], dtype=torch.bool, device=gradient.device)
        unused[numbers.long()] = False
        assert (gradient[unused] == 0).all()
        assert gradient[~unused].any(1).all()


def test_a_table_without_a_gradient_costs_none():
    c = make_case()
    word, gamma = c.word.requires_grad_(), c.gamma.requires_grad_()
    y = embedding_layer_norm(c.ids, c.positions, c.segments, word, c.position, c.segment, gamma, c.beta, backend="cpp")
    y.backward(c.dy)
    assert word.grad.shape == word.shape
    assert c.position.grad is None


def test_reference_gradient():
    c = make_case(5, (4, 3, 2), 6, torch.float64)
    op = functools.partial(embedding_layer_norm, p=0.3, state=state_of(0), eps=1e-3, backend="ref")
    floats = [t.requires_grad_() for t in (c.word, c.position, c.segment, c.gamma, c.beta)]
    assert torch.autograd.gradcheck(functools.partial(op, c.ids, c.positions, c.segments), floats)


@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
def test_same_bits_in_every_run(backend, dtype):
    c = make_case(300 if backend == "cpp" else 9, H=96, dtype=dtype).to(device(backend))
    op = functools.partial(embedding_layer_norm, p=0.1, state=state_of(1, device(backend)), backend=backend)
    first = both_ways(op, c)
    for n in (1, 2, 5) if backend == "cpp" else (1,):
        with threads(n):
            for _ in range(10 if backend == "cpp" else 3):
                assert all(map(torch.equal, both_ways(op, c), first)), f"{n} threads"


@pytest.mark.parametrize("backend", [p for p in backends(OP) if p.values[0].startswith("cpp")], indirect=True)
def test_gradient_of_a_table_past_the_caches(backend):
    """Over 16 MiB zeros are written past the caches: the same rows as in a table that isn't."""
    c = make_case(40, rows=(600, 40, 2), H=1024)
    large = replace(c, word=torch.cat([c.word, torch.ones(4000, 1024)]))
    op = functools.partial(embedding_layer_norm, backend=backend)
    dword, expected = both_ways(op, large)[1], both_ways(op, c)[1]
    assert torch.equal(dword[:600], expected)
    assert not dword[600:].any()


BAD = r"embedding_layer_norm: token 2: {} {} is outside \[0, {}\)"


@pytest.mark.parametrize("backend", [*backends(OP), pytest.param("ref")], indirect=True)
@pytest.mark.parametrize("bad", [-1, 50, 2**31 - 1])
@pytest.mark.parametrize(("name", "kind", "rows"), [("ids", "word", 50), ("positions", "position", 12)])
def test_number_outside_its_table(backend, name, kind, rows, bad):
    c = make_case().to(device(backend))
    getattr(c, name)[2] = bad
    with pytest.raises(UserError, match=BAD.format(kind, bad, rows)):
        embedding_layer_norm(*list(vars(c).values())[:-1], backend=backend)


@pytest.mark.parametrize("backend", TRITON, indirect=True)
def test_bad_number_is_kept_for_later_where_nothing_may_wait(backend):
    c = make_case().to(device(backend))
    errors = torch.zeros(3, dtype=torch.int64, device=c.ids.device)
    op = functools.partial(embedding_layer_norm, errors=errors, backend=backend)
    expected = both_ways(op, c)
    raise_if_bad_tokens(errors, c.word, c.position, c.segment)
    bad = replace(c, segments=c.segments.clone())
    bad.segments[2] = 9
    found = both_ways(op, bad)
    others = torch.arange(7, device=c.ids.device) != 2
    assert torch.equal(found[0][others], expected[0][others])
    assert all(g.isfinite().all() for g in found)
    with pytest.raises(UserError, match=BAD.format("segment", 9, 2)):
        raise_if_bad_tokens(errors, c.word, c.position, c.segment)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_waits_for_nothing(backend):
    c = make_case().to(device(backend))
    *numbers, word, position, segment, gamma, beta, dy = vars(c).values()
    leaves = [t.requires_grad_() for t in (word, position, segment, gamma, beta)]
    errors, state = torch.zeros(3, dtype=torch.int64, device=word.device), state_of(1, word.device)
    with capture_safe():
        y = embedding_layer_norm(*numbers, *leaves, p=0.1, state=state, errors=errors, backend=backend)
        y.backward(dy)


@pytest.mark.parametrize("backend", backends(OP)[:1] + TRITON, indirect=True)
def test_torch_op_contract_and_no_graph_break(backend):
    c = make_case(4).to(device(backend))
    ops, errors, state = torch.ops.mlperf_fast, torch.zeros(3, dtype=torch.int64), state_of(0, c.ids.device)
    numbers, tables = [c.ids, c.positions, c.segments], [c.word, c.position, c.segment]
    for kept_from, used in ((6554, state), (0, None)):
        forward = (numbers, tables, c.gamma, c.beta, kept_from, used, 3, 1e-12, errors.to(c.ids.device), backend)
        torch.library.opcheck(ops.embedding_layer_norm, forward)
        _, mean, rstd = ops.embedding_layer_norm(*forward)
        backward = (numbers, tables, c.gamma, mean, rstd, c.dy, kept_from, used, 3, backend)
        torch.library.opcheck(ops.embedding_layer_norm_bwd, backward)
    for needed in ([True] * 3, [False, True, False]):
        torch.library.opcheck(ops.embedding_layer_norm_tables, (c.dy, numbers, [50, 12, 2], needed, backend))

    def layer(*tensors):
        # Without `errors` triton would wait for the device.
        return 2 * embedding_layer_norm(*tensors, p=0.1, state=state, errors=errors.to(c.ids.device), backend=backend)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, both_ways(compiled, c), both_ways(layer, c)))


def test_a_step_that_advances_before_the_backward_pass_is_refused():
    c, state = make_case(), state_of(0)
    c.word.requires_grad_()
    y = embedding_layer_norm(*list(vars(c).values())[:-1], p=0.1, state=state, backend="cpp")
    state[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_second_derivative_is_refused():
    c = make_case()
    y = embedding_layer_norm(*list(vars(replace(c, word=c.word.requires_grad_())).values())[:-1], backend="cpp")
    with pytest.raises(UserError, match=f"{OP} is differentiable once; with create_graph=True use backend='ref'"):
        torch.autograd.grad(y.sum(), c.word, create_graph=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.zeros(7, 1).int()}, r"ids has shape \[7, 1\], expected \[T\]"),
        ({"ids": torch.zeros(7).long()}, "ids is int64, expected int32"),
        ({"positions": torch.zeros(6).int()}, r"positions has shape \[6\], expected \[7\]"),
        ({"segments": torch.zeros(7, device="meta").int()}, "segments is on meta, expected cpu"),
        ({"word": torch.ones(24)}, r"word has shape \[24\], expected \[V, H\]"),
        ({"position": torch.ones(9, 23)}, r"position has shape \[9, 23\], expected \[9, 24\]"),
        ({"segment": torch.ones(2, 24).bfloat16()}, "segment is bfloat16, expected float32"),
        ({"gamma": torch.ones(23)}, r"gamma has shape \[23\], expected \[24\]"),
        ({"beta": torch.ones(24).double()}, "beta is float64, expected float32"),
        ({"p": 0.1}, "p is 0.1, but there is no state"),
        ({"eps": -1.0}, "eps is -1.0, expected a number of 0 or more"),
        ({"errors": torch.zeros(2).long()}, r"errors has shape \[2\], expected \[3\]"),
    ],
)
def test_wrong_arguments(change, message):
    c = vars(make_case()).copy()
    c.pop("dy")
    with pytest.raises(UserError, match=f"{OP}: .*{message}"):
        embedding_layer_norm(**(c | change), backend="cpp")
