import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import EXAMPLES, backends, compare, device, lay_out, threads, wide

from mlperf_fast.errors import UserError
from mlperf_fast.ops import grad_norm, unscale_
from mlperf_fast.ops.checks import FLOATS

OP = "grad_norm"
ALL = [*backends(OP), pytest.param("ref")]
SIZES = st.sampled_from([(0,), (1,), (3, 5), (64,), (33, 0), (7, 11, 13), (1024,), (5000,)])


def make(sizes, seed=0, dtypes=FLOATS, layout="contiguous"):
    return [
        lay_out(wide(seed + i, *n, dtype=dtypes[i % len(dtypes)]), layout) for i, n in enumerate(sizes)
    ]  # fmt: skip


def moved(tensors, where):
    return [x.to(where, copy=True) for x in tensors]


def check(backend, grads, scale=1.0):
    where = device(backend)
    scale, found = torch.tensor(scale, device=where), torch.zeros((), device=where)
    got = grad_norm(moved(grads, where), grad_scale=scale, found_inf=found, backend=backend)
    assert got.dtype is torch.float64
    assert got.shape == ()
    assert found == 0
    doubles = moved(grads, torch.float64)
    truth = scale.cpu().double() * torch.cat([g.flatten() for g in doubles]).norm()
    plain = scale.cpu() * torch.cat([g.float().flatten() for g in grads]).norm()
    compare("norm", backend, *(x.float().reshape(1) if x is not truth else x.reshape(1) for x in (got, plain, truth)))

    grads = moved(grads, where)
    expected = [(g * scale).cpu() for g in grads]
    assert unscale_(grads, scale, found, backend=backend) == got
    assert found == 0
    for i, (g, e, d) in enumerate(zip(grads, expected, doubles, strict=True)):
        compare(f"unscaled[{i}]", backend, *(x.reshape(1, -1) for x in (g, e, scale.cpu().double() * d)))


@pytest.mark.parametrize("backend", ALL, indirect=True)
@EXAMPLES
@given(
    sizes=st.lists(SIZES, min_size=1, max_size=9),
    seed=st.integers(0, 999),
    dtypes=st.sampled_from([FLOATS, FLOATS[:1], FLOATS[1:2], FLOATS[2:], FLOATS[::-1]]),
    layout=st.sampled_from(["contiguous", "unaligned"]),
    scale=st.sampled_from([1.0, 2.0**-10, 0.3]),
)
def test_matches_reference(backend, sizes, seed, dtypes, layout, scale):
    check(backend, make(sizes, seed, dtypes, layout), scale)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_tensors_of_many_chunks(backend):
    check(backend, make([(3,), (200_003,), (1,), (65_536,), (65_537,), (131_000,)]))


@pytest.mark.parametrize("backend", ALL, indirect=True)
@pytest.mark.parametrize("size", [1e-30, 1e-22, 1e18, 2e19, 3e38])
def test_squares_neither_overflow_nor_vanish(backend, size):
    grads = [torch.full((5000,), size, device=device(backend)), torch.zeros(3000, device=device(backend))]
    found = torch.zeros(1, device=device(backend))
    norm = grad_norm(grads, found_inf=found, backend=backend)
    assert float(norm) == pytest.approx(float(grads[0][0]) * math.sqrt(5000), rel=1e-6)
    assert found == 0


@pytest.mark.parametrize("backend", ALL, indirect=True)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", [0, 1500, 69_999])
def test_finds_what_is_not_finite(backend, dtype, value, place):
    where = device(backend)
    grads = [torch.ones(10, device=where), torch.ones(70_000, dtype=dtype, device=where)]
    found, scale = torch.zeros(1, device=where), torch.full((), 0.5, device=where)
    grad_norm(grads, found_inf=found, backend=backend)
    assert found == 0
    grads[1][place] = value
    norm = grad_norm(grads, found_inf=found, backend=backend)
    assert found == 1
    assert not norm.isfinite()
    found.zero_()
    unscale_(grads, scale, found, backend=backend)
    assert found == 1
    grads[1][place] = 0
    grad_norm(grads, found_inf=found, backend=backend)
    assert found == 1, "what others found stays"
    assert (grads[0] == 0.5).all()


def test_reference_is_what_torch_does():
    grads = make([(4, 5), (1,), (3000,)], dtypes=FLOATS[:1])
    parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads]
    for p, g in zip(parameters, grads, strict=True):
        p.grad = g.clone()
    expected = torch.nn.utils.get_total_norm(grads)
    torch.testing.assert_close(grad_norm(grads, backend="ref").float(), expected)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = torch.optim.SGD(parameters, 1.0)
    scaler.scale(torch.zeros(()))
    scaler.unscale_(optimizer)
    unscale_(grads, torch.tensor(0.125), torch.zeros(()), backend="ref")
    assert all(torch.equal(g, p.grad) for g, p in zip(grads, parameters, strict=True))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_same_bits_for_any_number_of_threads(backend):
    grads, results = make([(100,)] * 50 + [(150_001,), (1000,), (70_000,)]), []
    for n in (1, 2, 5):
        with threads(n):
            results += [grad_norm(moved(grads, device(backend)), backend=backend) for _ in range(3)]
    assert len({float(x) for x in results}) == 1


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_shards_that_hold_whole_blocks_add_up_to_the_same_norm(backend):
    """What a distributed optimizer relies on: a tensor cut at a multiple of 1,024 elements has the same block sums."""
    grads = moved(make([(40_000,), (150_001,), (7,)], dtypes=FLOATS[:1]), device(backend))
    whole = grad_norm(grads, backend=backend)
    first = grad_norm([grads[0], grads[1][: 51 * 1024]], backend=backend)
    second = grad_norm([grads[1][51 * 1024 :], grads[2]], backend=backend)
    assert torch.equal((first.square() + second.square()).sqrt().float(), whole.float())


@pytest.mark.parametrize(
    ("grads", "scale", "found", "message"),
    [
        ([], None, None, "no gradients; expected at least one"),
        ([torch.ones(2), torch.ones(2).double()], None, None, r"grads\[1\] is float64, expected float32 or bfloat16"),
        ([torch.ones(2).double()], None, None, "cpp takes float32 or bfloat16 or float16, found float64"),
        ([torch.ones(2), torch.ones(2, device="meta")], None, None, r"grads\[1\] is on meta, expected cpu"),
        ([torch.ones(2), torch.ones(4)[::2]], None, None, r"grads\[1\] must be contiguous"),
        ([torch.ones(2)], 0.5, None, "grad_scale is a float, expected a float32 tensor"),
        ([torch.ones(2)], torch.ones(2), None, r"grad_scale has shape \[2\]"),
        ([torch.ones(2)], None, torch.zeros(1, dtype=torch.int32), "found_inf has shape .* dtype int32"),
    ],
)
def test_wrong_arguments(grads, scale, found, message):
    with pytest.raises(UserError, match=f"grad_norm: .*{message}"):
        grad_norm(grads, grad_scale=scale, found_inf=found, backend="cpp")
    if grads and found is not None:
        with pytest.raises(UserError, match=f"unscale_: .*{message}"):
            unscale_(grads, torch.ones(1), found, backend="cpp")


def test_unscaling_needs_its_scalars():
    with pytest.raises(UserError, match="grad_scale is a NoneType"):
        unscale_([torch.ones(2)], None, torch.zeros(1))
    with pytest.raises(UserError, match="found_inf is a NoneType"):
        unscale_([torch.ones(2)], torch.ones(1), None)


@pytest.mark.parametrize("backend", ALL, indirect=True)
def test_autograd_sees_what_has_changed(backend):
    grads, found = moved(make([(5,), (70,)]), device(backend)), torch.zeros(1, device=device(backend))
    versions = [g._version for g in grads]
    grad_norm(grads, found_inf=found, backend=backend)
    assert [g._version for g in grads] == versions
    unscale_(grads, torch.ones_like(found), found, backend=backend)
    assert all(g._version > v for g, v in zip(grads, versions, strict=True))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_torch_op_contract(backend):
    grads = moved(make([(4, 5), (1,), (7,)]), device(backend))
    one = torch.ones(1, device=grads[0].device)
    torch.library.opcheck(torch.ops.mlperf_fast.grad_norm, (grads, None, None, backend))
    torch.library.opcheck(torch.ops.mlperf_fast.grad_norm, (grads, one, one, backend))
    torch.library.opcheck(torch.ops.mlperf_fast.unscale_, (grads, one, one, backend))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_compiles_without_graph_break(backend):
    grads = moved(make([(4, 5), (1,), (7,)]), device(backend))
    half, found = torch.full((1,), 0.5, device=grads[0].device), torch.zeros(1, device=grads[0].device)

    def both():
        before = grad_norm(grads, found_inf=found, backend=backend)
        return before, unscale_(grads, half, found, backend=backend), grad_norm(grads, backend=backend)

    before, scaled, after = torch.compile(both, fullgraph=True, backend="aot_eager")()
    assert before == 2 * scaled
    torch.testing.assert_close(after, scaled, rtol=1e-2, atol=0.0)
