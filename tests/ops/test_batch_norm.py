import functools
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import EXAMPLES, LAYOUTS, backends, cases, compare, device, lay_out, slow, threads, wide

from mlperf_fast.errors import UserError
from mlperf_fast.ops import batch_norm

OP = "batch_norm"
NAMES = ("y", "dx", "dweight", "dbias", "dresidual")
EPS = 1e-5


def inputs(N, C, H, W, dtype, seed=0, layout="contiguous"):
    """x, weight, bias, residual, dy."""
    x, residual, dy = (lay_out(wide(seed + n, N, H, W, C, dtype=dtype, decades=2), layout) for n in range(3))
    weight, bias = (wide(seed + n, C, decades=2) for n in range(3, 5))
    x, residual, dy = (t.permute(0, 3, 1, 2) for t in (x, residual, dy))
    return x, weight, bias, residual, dy


def running(C, like):
    """Statistics to begin with that aren't those of a new layer."""
    return torch.linspace(-1, 1, C).to(like), torch.linspace(0.5, 2, C).to(like)


def both_ways(op, x, weight, bias, residual, dy, statistics):
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias, residual)]
    y = op(*leaves[:3], *statistics, residual=leaves[3])
    found = iter(torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], dy))
    return [y, *(None if leaf is None else next(found) for leaf in leaves)]


def scales(x, weight, bias, residual, dy):
    """What the terms of each result sum up to in size, in float64: what rounding errors grow with."""
    over = (0, 2, 3)
    rstd = (x.var(over, correction=0, keepdim=True) + EPS).rsqrt()
    weight, bias = (t.view(1, -1, 1, 1) for t in (weight.abs(), bias.abs()))
    size = x.abs().amax(over, keepdim=True) * rstd  # of the normalised values, before anything cancels
    y = size * weight + bias + (0 if residual is None else residual.abs())
    total = dy.abs().mean(over, keepdim=True)
    dx = rstd * weight * (dy.abs() + total * (1 + size * size))
    sums = (dy.abs() * size).sum(over), dy.abs().sum(over)
    return [y.expand_as(x), dx.expand_as(x), *sums, None if residual is None else dy.abs()]


def undecided(x, weight, bias, residual, dy):
    """Where the sign of the sum is only rounding in float32: there ReLU may decide either way."""
    sums = batch_norm(x, weight, bias, *running(x.shape[1], x), residual=residual, eps=EPS, backend="ref")
    return sums.abs() <= 1e-4 * scales(x, weight, bias, residual, dy)[0]


def check(backend, tensors, relu):
    where, x = device(backend), tensors[0]
    if relu:
        unclear = undecided(*(None if t is None else t.double() for t in tensors))
        tensors = (*tensors[:4], tensors[4].masked_fill(unclear, 0))
    wide_ = [None if t is None else t.double() for t in tensors]
    op = functools.partial(batch_norm, relu=relu, eps=EPS)
    statistics = {name: running(x.shape[1], like) for name, like in (
        ("got", torch.zeros((), device=where)), ("plain", torch.zeros(())), ("truth", wide_[0]))}  # fmt: skip
    on = [None if t is None else t.to(where) for t in tensors]
    got = both_ways(functools.partial(op, backend=backend), *on, statistics["got"])
    plain = both_ways(functools.partial(op, backend="ref"), *tensors, statistics["plain"])
    truth = both_ways(functools.partial(op, backend="ref"), *wide_, statistics["truth"])
    for name, mine, theirs, right, size in zip(NAMES, got, plain, truth, scales(*wide_), strict=True):
        if right is not None:
            compare(f"{OP} {name}", backend, mine, theirs, right, size, steps=3)
    largest = wide_[0].abs().amax((0, 2, 3))
    for n, size in enumerate((1 + largest, 2 + largest * largest)):
        triple = (statistics[name][n] for name in ("got", "plain", "truth"))
        compare(f"{OP} running statistics", backend, *triple, size, steps=3)
    assert got[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
@EXAMPLES
@given(
    N=st.integers(2, 5),
    C=st.integers(1, 130),
    H=st.integers(1, 9),
    W=st.integers(1, 4),
    relu=st.booleans(),
    has_residual=st.booleans(),
    seed=st.integers(0, 999),
    layout=st.sampled_from(LAYOUTS),
)
def test_matches_reference(backend, dtype, N, C, H, W, relu, has_residual, seed, layout):
    x, weight, bias, residual, dy = inputs(N, C, H, W, dtype, seed, layout)
    check(backend, (x, weight, bias, residual if has_residual else None, dy), relu)


# Two values a channel; ResNet's last and first layers; blocks of rows with sums of their own; channels that fold.
@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 2048, 1, 1), (3, 64, 12, 11), (64, 8, 6, 6), (3, 24, 64, 1)])
@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
def test_chosen_shapes(backend, dtype, shape):
    check(backend, inputs(*shape, dtype), relu=True)


@pytest.mark.parametrize("backend", [*backends(OP), pytest.param("ref")], indirect=True)
def test_a_mean_far_from_zero_costs_no_accuracy(backend):
    """Means of 1,000 to 8,000 deviations: sums of squares would lose the variance."""
    x = torch.randn(4, 8, 16, 8, generator=torch.Generator().manual_seed(0))
    shift = 1000.0 * torch.arange(1, 9).view(1, 8, 1, 1)
    x = ((x + shift) - shift).to(device(backend))  # what is left of it in float32
    ones, zeros = torch.ones(8, device=x.device), torch.zeros(8, device=x.device)
    statistics = running(8, ones), running(8, ones)
    y = batch_norm(x + shift.to(x.device), ones, zeros, *statistics[0], backend=backend)
    expected = batch_norm(x.double().cpu(), *(t.double().cpu() for t in (ones, zeros, *statistics[1])), backend="ref")
    torch.testing.assert_close(y.cpu().double(), expected, rtol=2e-3, atol=2e-3)
    variance = (x.double().cpu() + shift).var((0, 2, 3))
    torch.testing.assert_close(statistics[0][1].cpu().double(), 0.9 * running(8, variance)[1] + 0.1 * variance,
                               rtol=1e-5, atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
@pytest.mark.parametrize("has_residual", [False, True])
def test_evaluation_uses_the_running_statistics(backend, has_residual):
    x, weight, bias, residual, _ = (t.to(device(backend)) for t in inputs(3, 40, 5, 3, torch.float32))
    statistics = running(40, weight)
    before = [t.clone() for t in statistics]
    op = functools.partial(batch_norm, residual=residual if has_residual else None, relu=True, training=False)
    with torch.no_grad():
        y = op(x, weight, bias, *statistics, backend=backend)
        torch.testing.assert_close(y, op(x, weight, bias, *statistics, backend="ref"), rtol=1e-5, atol=1e-4)
    assert all(map(torch.equal, statistics, before))
    with pytest.raises(UserError, match="evaluation has no gradient but on ref"):
        op(x, weight.requires_grad_(), bias, *statistics, backend=backend)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_nan_stays_nan_and_infinity_harms_its_channel_alone(backend):
    x, weight, bias, residual, dy = (t.to(device(backend)) for t in inputs(3, 6, 4, 4, torch.float32))
    x[1, 2, 3, 0], x[0, 4, 0, 0] = torch.nan, torch.inf
    statistics = running(6, weight)
    y, dx, *_ = both_ways(functools.partial(batch_norm, relu=True, backend=backend), x, weight, bias, residual, dy,
                          statistics)  # fmt: skip
    for t in (y, dx):
        bad = t.isnan().flatten(2).any(2).any(0)
        assert bad.tolist() == [False, False, True, False, True, False]
    assert statistics[1].isnan().tolist() == [False, False, True, False, True, False]


def test_reference_gradient():
    x, weight, bias, residual, _ = (t.double() for t in inputs(3, 2, 2, 2, torch.float32))
    op = lambda x, w, b, r: batch_norm(x, w, b, *running(2, x), residual=r, eps=1e-3, backend="ref")  # noqa: E731
    assert torch.autograd.gradcheck(op, [t.requires_grad_() for t in (x, weight, bias, residual)])


@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
def test_same_bits_in_every_run(backend, dtype):
    shape = (2, 40, 5, 3) if slow(backend) else (9, 96, 24, 31)
    tensors = [t.to(device(backend)) for t in inputs(*shape, dtype)]
    op = functools.partial(batch_norm, relu=True, backend=backend)
    first = both_ways(op, *tensors, running(shape[1], tensors[1]))
    for n in (1, 2, 5) if backend == "cpp" else (1,):
        with threads(n):
            for _ in range(10 if backend == "cpp" else 3):
                again = both_ways(op, *tensors, running(shape[1], tensors[1]))
                assert all(map(torch.equal, again, first)), f"{n} threads"


@pytest.mark.parametrize("backend", [p for p in backends(OP) if p.values[0].startswith("cpp")], indirect=True)
def test_large_outputs_past_the_caches_are_the_same(backend):
    """Over 16 MiB rows are written past the caches: the same bits as without, which fewer rows are."""
    x = torch.randn(80, 64, 32, 32).to(memory_format=torch.channels_last)
    one, statistics = torch.rand(64) + 0.5, running(64, torch.zeros(()))
    op = functools.partial(batch_norm, relu=True, training=False, backend=backend)
    with torch.no_grad():
        y = op(x, one, one, *statistics, residual=x)
        halves = [op(x[r], one, one, *statistics, residual=x[r]) for r in (slice(0, 40), slice(40, None))]
    assert torch.equal(y, torch.cat(halves))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_two_dimensions_and_channels_first_memory_and_an_expanded_gradient(backend):
    x, weight, bias, residual, _ = (t.to(device(backend)) for t in inputs(12, 40, 1, 1, torch.float32))
    ones = x.new_ones(())
    for shape in ((12, 40), (3, 40, 4), (3, 40, 2, 2)):
        shaped = (x.reshape(shape).contiguous(), weight, bias, residual.reshape(shape).contiguous())
        found, expected = (
            both_ways(functools.partial(batch_norm, relu=True, backend=name), *shaped, ones.expand(shape),
                      running(40, weight))
            for name in (backend, "ref")
        )  # fmt: skip
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_torch_op_contract(backend):
    x, weight, bias, residual, dy = (t.to(device(backend)) for t in inputs(4, 24, 1, 1, torch.float32))
    x, residual, dy = (t.flatten(1).contiguous() for t in (x, residual, dy))
    ops, (mean, variance) = torch.ops.mlperf_fast, running(24, weight)
    sums = torch.stack([mean, variance])
    torch.library.opcheck(ops.batch_norm_moments, (x, mean, variance, 0.1, backend))
    torch.library.opcheck(ops.batch_norm_moments, (x, None, None, 0.1, backend))
    for added, relu in ((residual, True), (None, False)):
        forward = (x, added, mean, variance, weight, bias, EPS, relu, relu, backend)
        torch.library.opcheck(ops.batch_norm_apply, forward)
        mask = ops.batch_norm_apply(*forward)[1] if relu else None
        torch.library.opcheck(ops.batch_norm_sums, (dy, x, mask, mean, variance, EPS, relu, backend))
        torch.library.opcheck(ops.batch_norm_dx, (dy, x, mask, mean, variance, weight, sums, EPS, 4, backend))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_compiles_without_graph_break(backend):
    tensors = [t.to(device(backend)) for t in inputs(4, 24, 3, 3, torch.float32)]

    def layer(x, weight, bias, mean, variance, residual):
        return batch_norm(x * 2, weight, bias, mean, variance, residual=residual, relu=True, backend=backend)

    statistics = running(24, tensors[1]), running(24, tensors[1])
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found, expected = (both_ways(op, *tensors, s) for op, s in zip((compiled, layer), statistics, strict=True))
    assert all(map(torch.equal, found, expected))
    assert all(map(torch.equal, *statistics))


def test_what_is_kept_for_backward_is_x_and_a_bit_an_element():
    x = torch.randn(8, 64, 16, 16).to(memory_format=torch.channels_last)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        batch_norm(x.requires_grad_(), torch.ones(64), torch.zeros(64), *running(64, x), residual=x, relu=True,
                   backend="cpp")  # fmt: skip
    own = [t for t in kept if t.data_ptr() != x.data_ptr()]
    assert sum(t.numel() * t.element_size() for t in own) == x.numel() // 8 + 3 * 64 * 4


@pytest.mark.parametrize("world", [2, 3])
def test_a_group_of_ranks_shares_its_statistics(world, tmp_path):
    """Each rank's results are those of its part in one batch of all; weight and bias get each its part's gradient."""
    path = Path(__file__).with_name("batch_norm_worker.py")
    spec = importlib.util.spec_from_file_location("batch_norm_worker", path)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    done = subprocess.run([*torchrun, str(path), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(world)]
    y, dx, dresidual, dweight, dbias, *running_ = worker.both_ways(*worker.draw(3 * world), backend="ref")
    for part, expected in enumerate((y, dx, dresidual)):
        torch.testing.assert_close(torch.cat([rank[part] for rank in ranks]), expected, rtol=1e-4, atol=1e-4)
    for part, expected in ((3, dweight), (4, dbias)):
        torch.testing.assert_close(sum(rank[part] for rank in ranks), expected, rtol=1e-4, atol=1e-4)
    for rank in ranks:
        for found, expected in zip(rank[5:], running_, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_second_derivative_is_refused():
    x, weight, bias, _, _ = inputs(3, 4, 2, 2, torch.float32)
    y = batch_norm(x.requires_grad_(), weight, bias, *running(4, weight), backend="cpp")
    (dx,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    with pytest.raises(UserError, match="batch_norm is differentiable once"):
        torch.autograd.grad(y.square().sum(), x, create_graph=True)
    assert dx.isfinite().all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": torch.zeros(3)}, r"x has shape \[3\], expected \[N, C, ...\]"),
        ({"x": torch.zeros(1, 4, 1, 1)}, "at least two values of each channel"),
        ({"x": torch.zeros(0, 4, 2, 2)}, "at least two values of each channel"),
        ({"weight": torch.ones(5)}, r"weight has shape \[5\], expected \[4\]"),
        ({"bias": torch.ones(4).double()}, "bias is float64, expected float32"),
        ({"running_var": torch.ones(4).half()}, "running_var is float16, expected float32"),
        ({"residual": torch.zeros(3, 4, 2, 1)}, r"residual has shape \[3, 4, 2, 1\]"),
        ({"residual": torch.zeros(3, 4, 2, 2).half()}, "residual is float16, expected float32"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"momentum": float("nan")}, "momentum is nan"),
        ({"backend": "cuda"}, "backend"),
        ({"x": torch.zeros(3, 4, 2, 2).double()}, "float64"),
    ],
)
def test_what_it_refuses(change, said):
    arguments = {
        "x": torch.zeros(3, 4, 2, 2),
        "weight": torch.ones(4),
        "bias": torch.zeros(4),
        "running_mean": torch.zeros(4),
        "running_var": torch.ones(4),
        "backend": "cpp",
    }
    with pytest.raises(UserError, match=said):
        batch_norm(**(arguments | change))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_no_rows_in_evaluation(backend):
    none = torch.zeros(0, 4, 2, 2, device=device(backend))
    ones, zeros = torch.ones(4, device=none.device), torch.zeros(4, device=none.device)
    with torch.no_grad():
        y = batch_norm(none, ones, zeros, *running(4, none), training=False, backend=backend)
    assert y.shape == none.shape
