import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import EXAMPLES, LAYOUTS, backends, compare, device, lay_out, threads, wide

from mlperf_fast.errors import UserError
from mlperf_fast.ops import sgd_

OP = "sgd"
ALL = [*backends(OP), pytest.param("ref")]


def make(sizes, seed=0, layout="contiguous"):
    layout = "contiguous" if layout == "strided" else layout  # what is updated in place must be contiguous
    params = [lay_out(wide(seed + i, *n), layout) for i, n in enumerate(sizes)]
    grads = [lay_out(wide(seed - i - 1, *n), layout) for i, n in enumerate(sizes)]
    return params, grads


def copies(tensors, where):
    return [x.to(where, copy=True) for x in tensors]


def check(backend, params, grads, **scalars):
    where = device(backend)
    lr = torch.tensor(0.3)
    got, plain, truth = (
        copies(params, where) if where != "cpu" else params,
        copies(params, "cpu"),
        copies(params, torch.float64),
    )
    sgd_(plain, grads, lr, **scalars, backend="ref")
    sgd_(truth, copies(grads, torch.float64), lr, **scalars, backend="ref")
    moved = {name: x.to(where) for name, x in scalars.items()}
    sgd_(got, grads if where == "cpu" else copies(grads, where), lr.to(where), **moved, backend=backend)
    for i, values in enumerate(zip(got, plain, truth, strict=True)):
        compare(f"sgd params[{i}]", backend, *(x.reshape(1, -1) for x in values))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
@EXAMPLES
@given(
    sizes=st.lists(st.sampled_from([(0,), (1,), (3, 5), (64,), (33, 0), (7, 11, 13), (5000,)]), max_size=9),
    seed=st.integers(100, 999),
    layout=st.sampled_from(LAYOUTS),
    scale=st.sampled_from([None, 1.0, 2.0**-10]),
)
def test_matches_reference(backend, sizes, seed, layout, scale):
    check(backend, *make(sizes, seed, layout), **({} if scale is None else {"grad_scale": torch.tensor(scale)}))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_tensors_of_many_chunks(backend):
    check(backend, *make([(3,), (200_003,), (1,), (65_536,)]))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_tables_of_addresses_follow_the_tensors(backend):
    """Other tensors, other sizes at the same addresses, and the same tensors again with other values."""
    memory, grads, where = torch.zeros(64), torch.ones(64), device(backend)
    memory, grads, lr = memory.to(where), grads.to(where), torch.ones((), device=where)
    sgd_([memory[:32]], [grads[:32]], lr, backend=backend)
    sgd_([memory[:48]], [grads[:48]], lr, backend=backend)
    sgd_([memory[:32], memory[32:]], [grads[:32], grads[32:]], 2 * lr, backend=backend)
    sgd_([memory[:32]], [grads[:32]], lr, backend=backend)
    assert memory.tolist() == [-5] * 32 + [-3] * 16 + [-2] * 16


@pytest.mark.parametrize("backend", ALL, indirect=True)
def test_hundreds_of_steps_under_loss_scaling(backend):
    """A mixed-precision loop: gradients arrive multiplied by a scale that halves at an overflow, which is skipped."""
    where, steps = device(backend), 60 if backend == "triton" else 400
    params, _ = make([(40,), (3, 7), (1,)])
    truth, plain, params = copies(params, torch.float64), copies(params, "cpu"), copies(params, where)
    lr, inverse, found = (torch.zeros(1, device=where) for _ in range(3))
    scale, skipped = 2.0**10, 0
    for step in range(steps):
        grads = [wide(1000 + 10 * step + i, *p.shape, decades=2) for i, p in enumerate(truth)]
        rate = 0.1 / (1 + step)
        scaled = [g * scale for g in grads]
        if step % 50 == 20:
            scaled[1][1, 2] = torch.inf if step % 100 == 20 else torch.nan
        lr.fill_(rate)
        inverse.fill_(1 / scale)
        found.fill_(float(any(not g.isfinite().all() for g in scaled)))
        sgd_(params, copies(scaled, where), lr, grad_scale=inverse, found_inf=found, backend=backend)
        if found:
            scale, skipped = scale / 2, skipped + 1
            continue
        for p, q, g in zip(truth, plain, grads, strict=True):
            p -= rate * g.double()
            q -= rate * g
    assert skipped == (steps + 29) // 50
    for i, values in enumerate(zip(params, plain, truth, strict=True)):
        compare(f"sgd params[{i}]", backend, *(x.reshape(1, -1) for x in values))


@pytest.mark.parametrize("backend", [p for p in backends(OP) if p.values[0].startswith("cpp")], indirect=True)
def test_same_bits_for_any_number_of_threads(backend):
    params, grads = make([(100,)] * 50 + [(150_001,)])
    lr, results = torch.tensor(0.3), []
    for n in (1, 2, 5):
        with threads(n):
            results.append(copies(params, "cpu"))
            sgd_(results[-1], grads, lr, backend=backend)
    assert all(map(torch.equal, results[0] * 2, results[1] + results[2]))


def test_reference_is_torch_optim_sgd():
    params, grads = make([(4, 5), (1,)])
    expected = [torch.nn.Parameter(p.clone()) for p in params]
    for p, g in zip(expected, grads, strict=True):
        p.grad = g.clone()
    torch.optim.SGD(expected, lr=0.25).step()
    sgd_(params, grads, torch.tensor(0.25), backend="ref")
    for got, p in zip(params, expected, strict=True):
        assert torch.equal(got, p.detach())


@pytest.mark.parametrize("backend", ALL, indirect=True)
def test_updates_parameters_that_require_a_gradient(backend):
    p = torch.nn.Parameter(torch.ones(3, device=device(backend)))
    version = p._version
    sgd_([p], [torch.ones_like(p)], torch.ones(1, device=p.device), backend=backend)
    assert p.tolist() == [0, 0, 0]
    assert p.is_leaf
    assert p._version > version, "autograd must see that the parameter has changed"


def test_nothing_to_do():
    sgd_([], [], torch.tensor(0.1))
    sgd_([torch.ones(0)], [torch.ones(0)], torch.tensor(0.1), backend="cpp")


@pytest.mark.parametrize(
    ("params", "grads", "lr", "message"),
    [
        ([torch.ones(2)], [], torch.ones(1), "0 grads, expected one for each of 1 params"),
        (
            [torch.ones(2)] * 2,
            [torch.ones(2), torch.ones(3)],
            torch.ones(1),
            r"grads\[1\] has shape \[3\], expected \[2\]",
        ),
        ([torch.ones(2)], [torch.ones(2).half()], torch.ones(1), r"grads\[0\] is float16, expected float32"),
        ([torch.ones(2)], [torch.ones(2, device="meta")], torch.ones(1), r"grads\[0\] is on meta, expected cpu"),
        ([torch.ones(4)[::2]], [torch.ones(2)], torch.ones(1), r"params\[0\] must be contiguous"),
        ([torch.ones(2)], [torch.ones(1).expand(2)], torch.ones(1), r"grads\[0\] must be contiguous"),
        ([torch.ones(2).double()], [torch.ones(2).double()], torch.ones(1), "cpp takes float32, found float64"),
        ([torch.ones(2)], [torch.ones(2)], 0.1, "lr is a float, expected a float32 tensor"),
    ],
)
def test_wrong_arguments(params, grads, lr, message):
    with pytest.raises(UserError, match=f"sgd_?: .*{message}"):
        sgd_(params, grads, lr, backend="cpp")


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_torch_op_contract(backend):
    params, grads = (copies(x, device(backend)) for x in make([(4, 5), (1,)]))
    lr = torch.ones(1, device=params[0].device)
    torch.library.opcheck(torch.ops.mlperf_fast.sgd_, (params, grads, lr, None, lr, backend))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_compiles_without_graph_break(backend):
    params, grads = (copies(x, device(backend)) for x in make([(4, 5), (1,)]))
    expected, lr = copies(params, params[0].device), torch.ones(1, device=params[0].device)
    torch.compile(lambda: sgd_(params, grads, lr, backend=backend), fullgraph=True, backend="aot_eager")()
    sgd_(expected, grads, lr, backend=backend)
    assert all(map(torch.equal, params, expected))
