"""ShardedLAMB over gloo with two and three processes: the results of one process with the mean gradient."""

import contextlib
import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mlperf_fast.errors import UserError
from mlperf_fast.loop.capture_safety import capture_safe
from mlperf_fast.optim.lamb import LAMB
from mlperf_fast.optim.sgd import SGD
from mlperf_fast.optim.sharded import ShardedLAMB
from mlperf_fast.optim.together import Together

WORKER = Path(__file__).with_name("sharded_worker.py")
spec = importlib.util.spec_from_file_location("sharded_worker", WORKER)
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
CASES = [
    *((case, torch.float32) for case in worker.CASES if "each" not in case),
    ("BERT", torch.bfloat16),
    ("BERT", torch.float16),
]  # fmt: skip


@pytest.fixture(scope="module", params=[2, 3])
def processes(request, tmp_path_factory):
    """(world, what each rank saved)"""
    folder = tmp_path_factory.mktemp(f"world-{request.param}")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(request.param)]
    answer = subprocess.run([*torchrun, str(WORKER), str(folder)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    ranks = [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(request.param)]
    return request.param, ranks


def one_process(case, half, world):
    params = worker.parameters(half)
    optimizer = LAMB(params.items(), worker.schedule, worker.CPU, **worker.CASES[case])
    worker.train(optimizer, params, range(1, worker.STEPS), None, world)
    return params, optimizer.state_dict()


@pytest.mark.parametrize(("case", "half"), CASES)
def test_equals_one_process(processes, case, half):
    """Bit for bit: the gradients are such that their sums are exact, and the norms' sums are float64."""
    world, ranks = processes
    params, state = one_process(case, half, world)
    found = [rank["cases"][case, str(half)] for rank in ranks]
    for rank in found:
        assert all(torch.equal(rank["params"][name], p) for name, p in params.items() if p.requires_grad)
        assert rank["state"]["step"] == state["step"] == 9
    for kind in ("exp_avgs", "exp_avg_sqs", *(["masters"] if half is not torch.float32 else [])):
        for name, whole in state[kind].items():
            names = [f"{name}[{part}]" for part in range(3)] if case == "fused" and name == "word.weight" else [name]
            kept = [rank["state"][kind].get(part) for part in names for rank in found]
            assert torch.equal(torch.cat([x for x in kept if x is not None]), whole.flatten()), (kind, name)


def test_each_process_keeps_its_share(processes):
    world, ranks = processes
    sizes = [rank["cases"]["BERT", "torch.float32"]["elements"] for rank in ranks]
    trained = [p for p in worker.parameters(torch.float32).values() if p.requires_grad]
    assert sum(sizes) == sum(p.numel() for p in trained)
    assert max(sizes) <= sum(sizes) / world + 1024 * len(trained) / world


def test_clipping_on_each_rank(processes):
    """The mean of clipped gradients, and no clipping after it."""
    world, ranks = processes
    params, rules = worker.parameters(torch.float32), dict(worker.CASES["clipped on each rank"])
    assert rules.pop("clip_each_rank")
    optimizer = LAMB(params.items(), worker.schedule, worker.CPU, max_grad_norm=math.inf, **rules)
    for step in range(1, worker.STEPS):
        means = {name: torch.zeros_like(p) for name, p in params.items()}
        for rank in range(world):
            worker.set_gradients(params, step, rank, world)
            grads = {name: p.grad for name, p in params.items() if p.grad is not None}
            norm = torch.cat([g.flatten() for g in grads.values()]).norm()
            for name, g in grads.items():
                means[name] += g * (1 / norm).clamp(max=1) / world
        for name, p in params.items():
            p.grad = means[name] if p.grad is not None else None
        optimizer.begin(step)
        optimizer.apply(torch.tensor(float(step in worker.OVERFLOWS)))
    for rank in ranks:
        found = rank["cases"]["clipped on each rank", "torch.float32"]["params"]
        for name, p in ((name, p) for name, p in found.items() if params[name].requires_grad):
            torch.testing.assert_close(p, params[name].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_in_the_training_step(processes, precision):
    """The losses of the training step whose gradients are all-reduced; with fp16, overflows are found by all ranks."""
    _, ranks = processes
    whole, sharded = ranks[0]["losses"][precision]
    assert sharded == pytest.approx(whole, rel=1e-3)
    assert all(rank["losses"][precision][1] == sharded for rank in ranks)
    if precision == "fp16":
        assert sharded[0] != sharded[-1], "it has trained after the overflows"
    assert sharded[-1] < sharded[0]


def alone(**rules):
    params = worker.parameters(torch.float32)
    return ShardedLAMB(params.items(), worker.schedule, worker.CPU, **rules), params


def test_one_process_without_a_group_is_lamb():
    optimizer, params = alone(**worker.CASES["BERT"])
    expected = worker.parameters(torch.float32)
    whole = LAMB(expected.items(), worker.schedule, worker.CPU, **worker.CASES["BERT"])
    for one, its in ((optimizer, params), (whole, expected)):
        worker.train(one, its, range(1, worker.STEPS), None, 1)
    assert all(torch.equal(p, expected[name]) for name, p in params.items())


def test_an_update_can_be_captured():
    optimizer, params = alone()
    worker.set_gradients(params, 1, None, 1)
    for watch in (contextlib.nullcontext(), capture_safe()):  # the first step makes tables
        with watch:
            optimizer.exchange()
            optimizer.apply(torch.zeros(()))


def test_another_model_s_state_is_refused():
    optimizer, _ = alone()
    state = optimizer.state_dict()
    state["exp_avgs"] = {name: x for name, x in state["exp_avgs"].items() if name != "dense.bias"}
    with pytest.raises(UserError, match=r"ShardedLAMB's state: exp_avgs: the checkpoint doesn't hold 'dense\.bias'"):
        optimizer.load_state_dict(state)


def test_it_stands_alone_among_several_optimizers():
    optimizer, params = alone()
    other = torch.nn.Parameter(torch.ones(3))
    both = Together(lamb=optimizer, sgd=SGD([other], worker.schedule, worker.CPU))
    assert both.exchange == optimizer.exchange
    other.grad = torch.ones(3)
    with pytest.raises(
        UserError, match="ShardedLAMB exchanges the gradients of its own parameters only, but there are"
    ):
        both.exchange(None)
    assert Together(sgd=SGD(params.values(), worker.schedule, worker.CPU)).exchange is None
