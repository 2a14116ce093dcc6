import statistics
import subprocess
import sys
import time

import pytest
import torch
from numerics import NO_TRITON

from mlperf_fast import _C
from mlperf_fast.errors import UserError
from mlperf_fast.ops import backend as backends
from mlperf_fast.ops import dot_interaction, embedding_bag, roc_auc
from mlperf_fast.ops.backend import (
    INTERPRETED,
    OPS,
    choices,
    chosen,
    reasons,
    resolve,
    set_default_backend,
    use_backend,
)

DENSE, SPARSE = torch.ones(2, 4), torch.ones(2, 3, 4)
ONE_THAT_IS_ABSENT = pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="triton can run here")


@pytest.fixture(autouse=True)
def no_default_is_left():
    yield
    set_default_backend(None)


@pytest.fixture
def runs(monkeypatch):
    """Notes which native functions are called."""
    called = []
    for name in ("dot_interaction_fwd", "embedding_bag_fwd", "roc_auc"):
        monkeypatch.setattr(_C, name, lambda *arguments, name=name: called.append(name))
    return called


def test_argument_then_block_then_default_then_table(runs):
    def native(**options):
        runs.clear()
        dot_interaction(DENSE, SPARSE, **options)
        return bool(runs)

    assert native()
    set_default_backend("ref")
    assert not native()
    with use_backend("cpp"):
        with use_backend("ref"):
            assert not native()
        assert native()
        with use_backend("ref", op="dot_interaction"):
            assert not native()
            assert native(backend="cpp")
        assert native()
    assert not native()
    set_default_backend(None)
    assert native()


def test_block_ends_with_an_error_too():
    with pytest.raises(ZeroDivisionError), use_backend("ref"):
        raise ZeroDivisionError
    assert chosen("dot_interaction", "cpu") == "cpp"


@NO_TRITON
def test_wish_for_all_ops_leaves_alone_those_without_that_backend():
    with use_backend("triton"):
        assert chosen("roc_auc", "cpu") == "cpp"
        assert choices("cpu") == {name: "triton" if "triton" in op.table else "cpp" for name, op in OPS.items()}


def test_choices_are_the_first_of_each_table():
    assert choices("cpu") == dict.fromkeys(OPS, "cpp")
    assert list(choices()) == sorted(OPS)
    assert {chosen(op, "cpu", torch.float64) for op in OPS} == {"ref"}


def test_reasons_name_every_backend():
    assert set(reasons()) == set(backends.BACKENDS)
    assert reasons()["cpp"] is None
    assert reasons()["ref"] is None


@ONE_THAT_IS_ABSENT
def test_absent_backend_says_how_to_get_it(monkeypatch):
    message = "backend triton can't be used: no CUDA device.*TRITON_INTERPRET=1"
    for ask in (
        lambda: dot_interaction(DENSE, SPARSE, backend="triton"),
        lambda: set_default_backend("triton"),
        lambda: use_backend("triton").__enter__(),
    ):
        with pytest.raises(UserError, match=message):
            ask()
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"triton is not installed; get it with `pip install"):
        dot_interaction(DENSE, SPARSE, backend="triton")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda: dot_interaction(DENSE, SPARSE, backend="tritno"),
            "no backend is called 'tritno'; did you mean 'triton'",
        ),
        (
            lambda: set_default_backend("xyz"),
            "no backend is called 'xyz'; there are cpp, cuda, flash_attn, ref, triton, varlen_attn",
        ),
        (lambda: use_backend("cpp", op="dot_interacton").__enter__(), "did you mean 'dot_interaction'"),
        (lambda: resolve(OPS["dot_interaction"], DENSE.to("meta"), "cpp"), "cpp takes tensors on cpu, found meta"),
        (lambda: dot_interaction(DENSE.half(), SPARSE.half(), backend="cpp"), "found float16; backend='ref'"),
    ],
)
def test_wrong_names_and_places(ask, message):
    with pytest.raises(UserError, match=message):
        ask()


@NO_TRITON
def test_op_without_a_backend_says_which_it_has():
    for ask in (
        lambda: roc_auc(torch.ones(2), torch.tensor([True, False]), backend="triton"),
        lambda: use_backend("triton", op="roc_auc").__enter__(),
    ):
        with pytest.raises(UserError, match=r"roc_auc has no backend 'triton'; it has cpp, ref"):
            ask()


def microseconds(call, calls=200, rounds=51):
    """The median of the fastest quarter of rounds, in this thread's own processor time: others may use the core too."""
    costs = []
    for _ in range(rounds):
        start = time.thread_time()
        for _ in range(calls):
            call()
        costs.append((time.thread_time() - start) / calls * 1e6)
    return statistics.median(sorted(costs)[: rounds // 4])


def test_native_calls_cost_little():
    lr, offsets = torch.ones(1), torch.tensor([0, 1])
    assert microseconds(lambda: _C.sgd(0, 0, 0, 0, lr.data_ptr(), 0, 0)) < 5
    assert microseconds(lambda: _C.dot_interaction_fwd(0, 0, 0, 0, 1, 1, False)) < 5
    assert microseconds(lambda: _C.embedding_bag_fwd(0, offsets.data_ptr(), 0, True, 0, 0, 0, 1, 1)) < 5


def test_choice_and_checks_cost_little():
    assert microseconds(lambda: resolve(OPS["dot_interaction"], DENSE)) < 5
    weight, offsets, ids = torch.ones(3, 4), torch.tensor([0, 3]), torch.zeros(2, 1, dtype=torch.int32)
    with torch.no_grad():
        assert microseconds(lambda: dot_interaction(DENSE, SPARSE)) < 100
        assert microseconds(lambda: embedding_bag(weight, offsets, ids)) < 100


def test_importing_the_ops_leaves_the_kernels_alone():
    code = (
        "import torch, sys; before = 'triton' in sys.modules; import mlperf_fast.ops;"
        "sys.exit(not before and 'triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
