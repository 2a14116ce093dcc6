"""What all multi-tensor updates promise alike."""

import pytest
import torch
from multi_tensor import calling, copied, random
from numerics import backends, compare, device, threads

from mlperf_fast.errors import UserError
from mlperf_fast.loop.capture_safety import capture_safe
from mlperf_fast.ops import adam_, ema_, lamb_, lars_, sgd_, sgd_momentum_
from mlperf_fast.ops.lists import Kept

LR_AND_STEP = {"lr": 0.03, "step": 7.0}
# The op, its lists (the first is written, and all but the gradients), its device scalars.
UPDATES = {
    "adam": (adam_, ("params", "grads", "exp_avgs", "exp_avg_sqs", "copies"), LR_AND_STEP),
    "ema": (ema_, ("averages", "params"), {"decay": 0.9}),
    "lamb": (lamb_, ("params", "grads", "exp_avgs", "exp_avg_sqs", "copies"), LR_AND_STEP),
    "lars": (lars_, ("params", "grads", "momentum_buffers", "copies"), {"lr": 0.03}),
    "sgd": (sgd_, ("params", "grads"), {"lr": 0.03}),
    "sgd_momentum": (sgd_momentum_, ("params", "grads", "momentum_buffers", "copies"), LR_AND_STEP),
}
STATE = ("exp_avgs", "exp_avg_sqs", "momentum_buffers")
NATIVE = [pytest.param(name, *p.values, marks=p.marks) for name in UPDATES for p in backends(name)]
ALL = NATIVE + [pytest.param(name, "ref") for name in UPDATES]
CPP = [p for p in NATIVE if p.values[1].startswith("cpp")]
on = {
    "cpp": pytest.mark.parametrize(("name", "backend"), CPP, indirect=["backend"]),
    "native": pytest.mark.parametrize(("name", "backend"), NATIVE, indirect=["backend"]),
    "all": pytest.mark.parametrize(("name", "backend"), ALL, indirect=["backend"]),
}


def make(name, sizes, where="cpu"):
    lists = {
        part: random(sizes, 100 * i, dtype=torch.bfloat16 if part == "copies" else torch.float32)
        for i, part in enumerate(UPDATES[name][1])
    }
    for x in lists.get("exp_avg_sqs", []):
        x.abs_()
    return copied(lists, where)


def call(name, **scalars):
    op, _, given = UPDATES[name]
    return calling(op, given | scalars)


def assert_same(lists, others):
    for name in lists:
        assert all(map(torch.equal, lists[name], others[name])), name


@on["cpp"]
def test_same_bits_for_any_number_of_threads(name, backend):
    results = []
    for n in (1, 2, 5):
        with threads(n):
            results.append(make(name, [(100,)] * 50 + [(150_001,), (1,), (70_000,)]))
            call(name)(results[-1], backend)
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@on["native"]
def test_same_bits_each_time(name, backend):
    """In the emulator blocks run in another order each time."""
    results = [make(name, [(100,)] * 5 + [(9_000,), (1,)], device(backend)) for _ in range(5)]
    for lists in results:
        call(name)(lists, backend)
        assert_same(lists, results[0])


@on["all"]
def test_can_be_captured(name, backend):
    op, _, scalars = UPDATES[name]
    lists = make(name, [(4, 5), (1,)], device(backend))
    given = {scalar: torch.tensor(x, device=device(backend)) for scalar, x in {**scalars, "found_inf": 0.0}.items()}
    with capture_safe():
        op(**lists, **given, backend=backend)


@on["all"]
def test_found_inf_leaves_everything_as_it_is(name, backend):
    lists, expected = (make(name, [(4, 5), (1,)], device(backend)) for _ in range(2))
    for some in (lists, expected):
        some.get("grads", some["params"])[0][1, 1] = torch.inf
    call(name, found_inf=1.0)(lists, backend)
    assert_same(lists, expected)


@on["all"]
def test_a_found_inf_of_zero_updates(name, backend):
    lists, expected = (make(name, [(4, 5), (1,)], device(backend)) for _ in range(2))
    call(name, found_inf=0.0)(lists, backend)
    call(name)(expected, backend)
    assert_same(lists, expected)


@on["all"]
def test_updates_parameters_that_require_a_gradient(name, backend):
    lists = make(name, [(3,)], device(backend))
    first = UPDATES[name][1][0]
    written = [part for part in (first, "copies") if part in lists]
    lists[first] = [torch.nn.Parameter(x) for x in lists[first]]
    versions = {part: lists[part][0]._version for part in written}
    call(name)(lists, backend)
    assert lists[first][0].requires_grad
    assert [part for part in written if lists[part][0]._version == versions[part]] == []


@on["native"]
def test_kept_state_is_read_once(name, backend):
    lists, expected = (make(name, [(5,), (6,)], device(backend)) for _ in range(2))
    lists |= {part: Kept(lists[part]) for part in STATE if part in lists}
    for _ in range(3):
        call(name)(lists, backend)
        call(name)(expected, backend)
    assert all(lists[part].found is not None for part in STATE if part in lists)
    assert_same(lists, expected)


@on["all"]
def test_nothing_to_do(name, backend):
    call(name)({part: [] for part in UPDATES[name][1] if part != "copies"}, backend)
    call(name)(make(name, [(0,), (0, 3)], device(backend)), backend)


@on["all"]
def test_tensors_may_be_channels_last(name, backend):
    """The values are those of contiguous tensors, and the order of dimensions stays."""
    lists, expected = (make(name, [(5, 3, 4, 2), (7,)], device(backend)) for _ in range(2))
    for tensors in lists.values():
        tensors[0] = tensors[0].to(memory_format=torch.channels_last)
    call(name)(lists, backend)
    call(name)(expected, backend)
    for part, tensors in lists.items():
        assert tensors[0].is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(tensors, expected[part])  # norms are summed in another order


@on["native"]
def test_lists_that_do_not_match(name, backend):
    first, second, *_ = UPDATES[name][1]
    with torch.device(device(backend)):
        cases = [
            ({second: []}, f"0 {second}, expected one for each of 1 {first}"),
            ({second: [torch.ones(3)]}, rf"{second}\[0\] has shape \[3\], expected \[2\]"),
            ({second: [torch.ones(4)[::2]]}, rf"{second}\[0\] must be contiguous"),
            ({second: [torch.ones(2).double()]}, rf"{second}\[0\] is float64, expected float32"),
            ({first: [torch.ones(2).double()]}, "takes float32, found float64"),
        ]
        for part in set(STATE) & set(UPDATES[name][1]):
            cases.append(({part: [torch.ones(2).half()]}, rf"{part}\[0\] is float16, expected float32"))
        for changes, message in cases:
            lists = {part: [torch.ones(2)] for part in UPDATES[name][1]} | changes
            with pytest.raises(UserError, match=f"{name}_?: .*{message}"):
                call(name)(lists, backend)


@pytest.mark.parametrize("name", UPDATES)
def test_scalars_are_checked(name):
    op, _, scalars = UPDATES[name]
    lists, given = make(name, [(2,)]), {scalar: torch.ones(()) for scalar in scalars}
    for scalar in scalars:
        with pytest.raises(UserError, match=f"{name}_: {scalar} is a float, expected a float32 tensor"):
            op(**lists, **given | {scalar: 0.1})
        with pytest.raises(UserError, match=f"{name}_: {scalar} has .* int64, expected a float32 tensor"):
            op(**lists, **given | {scalar: torch.ones((), dtype=torch.int64)})
    with pytest.raises(UserError, match=f"{name}_: found_inf has shape"):
        op(**lists, **given, found_inf=torch.ones(2))


@on["native"]
def test_torch_op_contract(name, backend):
    lists = make(name, [(4, 5), (1,)], device(backend))
    one = torch.ones(1, device=device(backend))
    by_type = {"Tensor": one, "Optional[Tensor]": one, "float": 0.1, "bool": True, "str": backend}
    by_type |= {"List[float]": [0.1, 0.2], "List[bool]": [True, False]}
    by_name = lists | {"grad_norm": torch.ones((), dtype=torch.float64, device=one.device)}
    op = getattr(torch.ops.mlperf_fast, f"{name}_")
    torch.library.opcheck(
        op, [by_name[a.name] if a.name in by_name else by_type[str(a.type)] for a in op.default._schema.arguments]
    )


@on["native"]
def test_compiles_without_graph_break(name, backend):
    lists, expected = (make(name, [(4, 5), (1,)], device(backend)) for _ in range(2))
    torch.compile(lambda: call(name)(lists, backend), fullgraph=True, backend="aot_eager")()
    call(name)(expected, backend)
    assert_same(lists, expected)


@on["native"]
def test_more_tensors_than_one_launch_takes(name, backend):
    """CUDA's kernels get up to some hundred tensors as parameters; empty ones take a place too."""
    where, sizes = device(backend), [(3 * (i % 5 > 0),) for i in range(300)]
    got, plain, truth = make(name, sizes, where), make(name, sizes), make(name, sizes, torch.float64)
    for lists, by in ((got, backend), (plain, "ref"), (truth, "ref")):
        call(name)(lists, by)
    for part in got:
        rows = ([x.cpu() for x in lists[part] if x.numel()] for lists in (got, plain, truth))
        compare(f"{name} {part}", backend, *map(torch.stack, rows))
