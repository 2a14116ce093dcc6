"""The captured step: the same bits as eager, graphs by shape, what can't be captured, warm-up and resume.

Each test runs on a GPU where there is one, and on the CPU with CpuGraphs in place of CudaGraphs.
"""

import copy
import importlib
import json
import pkgutil
import re
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pytest
import small_dlrm
import torch
from cpu_graphs import capture_on_cpu
from steps import ALONE, PRECISIONS, SMALL, WORKLOADS, make_step, small_config
from torch import nn

from mlperf_fast import cli, optim
from mlperf_fast.data.prefetch import Prefetcher
from mlperf_fast.errors import UserError
from mlperf_fast.loop import graph
from mlperf_fast.loop.capture_safety import capture_safe
from mlperf_fast.loop.dist import Ranks
from mlperf_fast.loop.graph import eager_reason
from mlperf_fast.loop.step import TrainStep, rng_state, set_rng_state
from mlperf_fast.ops.backend import use_backend
from mlperf_fast.optim.adam import Adam
from mlperf_fast.optim.ema import EMA
from mlperf_fast.optim.lamb import LAMB
from mlperf_fast.optim.lars import LARS
from mlperf_fast.optim.optimizer import Optimizer
from mlperf_fast.optim.sgd import SGD
from mlperf_fast.optim.together import Together
from mlperf_fast.workloads import find

CUDA = Ranks(0, 1, torch.device("cuda", 0))
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=GPU)])
def ranks(request, monkeypatch) -> Ranks:
    """The process whose steps are captured."""
    if request.param == "cuda":
        return CUDA
    capture_on_cpu(monkeypatch)
    return ALONE


def state(step: TrainStep) -> dict[str, torch.Tensor]:
    """Every tensor that a step leaves behind, copied; with the generators."""
    held = {**step.model.state_dict(), **dict(step.model.named_buffers()), **rng_state(step.ranks.device)}
    held |= {f"step {name}": value for name, value in step.state_dict().items() if isinstance(value, torch.Tensor)}
    held |= {f"optimizer {name}": value for name, value in tensors(step.optimizer.state_dict()).items()}
    return {name: tensor.clone() for name, tensor in held.items()}


def tensors(values, prefix="") -> dict[str, torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return {prefix: values}
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return {name: tensor for key, value in items for name, tensor in tensors(value, f"{prefix}.{key}").items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different, "bit for bit"


def train(step: TrainStep, batches) -> list[float]:
    losses = []
    for batch in batches:
        step(batch)
        losses.append(step.read_loss()[0])
    return losses


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", WORKLOADS)
def test_a_captured_step_gives_the_bits_of_an_eager_one(ranks, name, precision, tmp_path):
    """Over real batches, a padded last one among them, warmed up as a run is."""
    cfg = small_config(name, tmp_path, f"precision={precision}", "deterministic=true")
    ends = {}
    for choice in ("off", "on"):
        torch.manual_seed(3)
        step, made_up = make_step(name, cfg, ranks, cuda_graph=choice)
        step.warm_up(made_up)
        with find(name).train_batches(cfg, ranks, 5, 0) as batches:
            losses = train(step, islice(batches, 12))
        ends[choice] = losses, state(step), step.mode
    assert ends["off"][2] == "eager: cuda_graph=off"
    assert ends["on"][2] == "captured"
    assert len(ends["on"][0]) >= 4, "too few steps to tell"
    assert ends["on"][0] == ends["off"][0]
    assert len(set(ends["on"][0])) == len(ends["on"][0]), "each batch has a loss of its own"
    assert_same(ends["on"][1], ends["off"][1])


class Net(nn.Module):
    """Dropout draws numbers, batch norm keeps buffers: what a warm-up must put back."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.3))
        self.last = nn.Linear(8, 1)

    def forward(self, x):
        return self.last(self.layers(x))


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor
    weight: float = 1.0


def pair(ranks: Ranks, rows: int, seed: int = 0, **more) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(rows, 4, generator=generator), torch.randn(rows, 1, generator=generator)
    return Pair(x.to(ranks.device), y.to(ranks.device), **more)


def pairs(ranks: Ranks, rows: Sequence[int]) -> list[Pair]:
    """Batches of so many rows each, all different."""
    return [pair(ranks, count, seed) for seed, count in enumerate(rows)]


def loss(model, batch):
    return batch.weight * (model(batch.x) - batch.y).square().mean()


def averaged(parameters, schedule, device) -> Together:
    parameters = list(parameters)
    return Together(sgd=SGD(parameters, schedule, device), average=EMA(parameters, lambda step: 1 - 1 / step, device))


OPTIMIZERS = {
    "SGD": SGD,
    "SGD with momentum": partial(SGD, momentum=0.9, weight_decay=1e-3),
    "Adam": partial(Adam, weight_decay=1e-3, decoupled=True),
    "LAMB": LAMB,
    "LARS": LARS,
    "EMA": averaged,
}
OF_SEVERAL_PROCESSES = {"ShardedLAMB"}


def net_step(ranks, cuda_graph: str = "on", precision: str = "fp32", loss=loss, optimizer=SGD) -> TrainStep:
    torch.manual_seed(0)
    net = Net().to(ranks.device)
    made = optimizer(net.parameters(), lambda step: 0.1 / step, ranks.device)
    return TrainStep(loss, net, made, ranks, precision, cuda_graph)


def test_every_optimizer_is_here():
    for module in pkgutil.iter_modules(optim.__path__):
        importlib.import_module(f"mlperf_fast.optim.{module.name}")
    names = {kind.__name__ for kind in Optimizer.__subclasses__() if kind.__module__.startswith("mlperf_fast.")}
    assert names == {name.split()[0] for name in OPTIMIZERS} - {"EMA"} | OF_SEVERAL_PROCESSES


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_moments_random_numbers_buffers_and_schedule_go_on_in_replays(ranks, precision, optimizer):
    """In fp16 the first steps overflow and are skipped, which the moments and the count of updates must follow."""
    ends = []
    for choice in ("off", "on"):
        step = net_step(ranks, choice, precision, optimizer=OPTIMIZERS[optimizer])
        step.warm_up(pair(ranks, 8))
        losses = train(step, pairs(ranks, [8] * 12))
        ends.append((losses, state(step)))
    assert ends[0][0] == ends[1][0]
    assert_same(ends[1][1], ends[0][1])
    assert ends[1][1]["layers.1.num_batches_tracked"] == 12
    if precision == "fp16":
        assert 2**4 < step.scaler.scale < 2**16, "some were skipped, not all"


@pytest.mark.parametrize("backend", [None, "ref"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_is_capture_safe(optimizer, backend):
    """On the references as well: a GPU takes them for ops without a kernel there."""
    step = net_step(ALONE, "off", "fp16", optimizer=OPTIMIZERS[optimizer])
    with use_backend(backend) if backend else nullcontext():
        step(pair(ALONE, 8))
        with capture_safe():
            step(pair(ALONE, 8))


class FrozenRate(SGD):
    """Keeps its learning rate on the host, so that a graph holds that of its capture."""

    def begin(self, step: int) -> None:
        self.rate = self.schedule(step)

    def apply(self, found_inf) -> None:
        self.lr.fill_(self.rate)
        super().apply(found_inf)


def test_a_rate_that_lives_on_the_host_shows(ranks):
    batches = pairs(ranks, [8] * 4)
    eager, captured = (train(net_step(ranks, choice, optimizer=FrozenRate), batches) for choice in ("off", "on"))
    assert eager[:2] == captured[:2]
    assert eager != captured, "else the comparison with eager could not fail"


@pytest.mark.parametrize("choice", ["off", "on"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_warm_up_changes_nothing(ranks, choice, precision, optimizer):
    """Not the weights, not a moment, not the device's count of updates."""
    step = net_step(ranks, choice, precision, optimizer=OPTIMIZERS[optimizer])
    before = state(step)
    step.warm_up(pair(ranks, 8))
    assert_same(state(step), before)
    assert step.count == 0
    train(step, pairs(ranks, [8] * 8))  # in fp16 the first ones overflow, until the scale has halved
    assert not torch.equal(state(step)["last.weight"], before["last.weight"]), "but a step does"


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("choice", ["off", "on"])
def test_warm_up_changes_nothing_in_a_workload(ranks, name, choice, tmp_path):
    step, batch = make_step(name, small_config(name, tmp_path, "precision=fp16"), ranks, cuda_graph=choice)
    before = state(step)
    step.warm_up(batch)
    assert_same(state(step), before)


def test_each_shape_has_its_graph_from_its_second_batch_on(ranks):
    step, counts = net_step(ranks), []
    captures = count_captures(step)
    for batch in pairs(ranks, (8, 6, 8, 6, 8, 6, 4)):
        step(batch)
        counts.append(len(captures))
    assert counts == [0, 0, 1, 2, 2, 2, 2]
    assert step.mode == "captured"
    batches = pairs(ranks, (8, 6, 8, 6, 8, 6, 4, 4, 8))
    assert train(net_step(ranks), batches) == train(net_step(ranks, "off"), batches)


def count_captures(step: TrainStep) -> list:
    """A list that grows by one with each capture."""
    capture, captures = step._graphs.graphs.capture, []
    step._graphs.graphs.capture = lambda run: (captures.append(run), capture(run))[1]
    return captures


def test_layout_and_plain_values_tell_batches_apart(ranks):
    a, b = pair(ranks, 8), pair(ranks, 8, weight=2.0)
    c = Pair(a.x.t().contiguous().t(), a.y)
    step = net_step(ranks)
    captures = count_captures(step)
    train(step, (a, a, b, b, c, c, a, b, c))
    assert len(captures) == 3
    assert train(net_step(ranks), (a, a, b, b, a, b)) == train(net_step(ranks, "off"), (a, a, b, b, a, b))


def test_past_the_limit_new_shapes_run_eagerly_and_old_ones_go_on(ranks, monkeypatch):
    monkeypatch.setattr(graph, "MAX_GRAPHS", 2)
    first, *batches = pairs(ranks, (8, 8, 6, 6, 4, 4, 8, 6, 5, 5))
    step = net_step(ranks)
    captures = count_captures(step)
    train(step, [first])
    assert step.mode_change() == "captured"
    losses = train(step, batches)
    assert len(captures) == 2
    assert step.mode == "captured; batches of further shapes run eagerly, 2 graphs is the limit"
    assert (step.mode_change(), step.mode_change()) == (step.mode, None)
    assert losses == train(net_step(ranks, "off"), [first, *batches])[1:]


def waiting_loss(model, batch):
    value = loss(model, batch)
    return value * 2 if value > 0 else value


def x_only(model, batch):
    return model(batch.x).mean()


@pytest.mark.parametrize(
    ("change", "loss", "reason"),
    [
        ({}, waiting_loss, r"aten::_local_scalar_dense makes the host wait for the device, at .*test_graph.py:\d+"),
        ({"weight": object()}, x_only, "a batch holds a object, expected tensors, numbers and text"),
        ({"y": torch.ones(8, 1, device="meta")}, x_only, "a batch holds a tensor on meta, expected all on "),
    ],
    ids=["waits", "object", "other device"],
)
def test_what_can_not_be_captured_runs_eagerly_or_is_refused(ranks, change, loss, reason):
    batches = [batch._replace(**change) for batch in pairs(ranks, [8] * 4)]
    step = net_step(ranks, "auto", loss=loss)
    losses = train(step, batches)
    assert losses == train(net_step(ranks, "off", loss=loss), batches)
    assert re.match(f"eager: .*{reason}", step.mode)
    step = net_step(ranks, "on", loss=loss)
    with pytest.raises(UserError, match=f"cuda_graph=on, but the step can't be captured: .*{reason}"):
        train(step, batches)


def test_a_capture_that_was_broken_off_leaves_no_gradients(ranks):
    """They would lie in memory of a graph that is gone, and the next backward pass would add to them."""
    step = net_step(ranks, "auto")
    update = step.optimizer.apply
    step.optimizer.apply = lambda found_inf: (float(step.loss_sum), update(found_inf))
    losses = train(step, pairs(ranks, [8] * 4))
    assert "makes the host wait" in step.mode
    assert losses == train(net_step(ranks, "off"), pairs(ranks, [8] * 4))


def test_a_capture_that_fails_says_how_to_run_without(ranks, monkeypatch):
    def broken(run):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    step = net_step(ranks, "auto")
    monkeypatch.setattr(step._graphs.graphs, "capture", broken)
    with pytest.raises(UserError, match=r"not permitted when stream is capturing.*cuda_graph=off"):
        train(step, pairs(ranks, [8] * 2))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_state_is_loaded_into_a_graph_that_exists(ranks, optimizer):
    """As a resumed run does: captured while warming up, then filled from the checkpoint."""
    batches = pairs(ranks, [8] * 8)
    whole, again = (net_step(ranks, "on", "fp16", optimizer=OPTIMIZERS[optimizer]) for _ in range(2))
    whole.warm_up(pair(ranks, 8))
    train(whole, batches[:4])
    saved = copy.deepcopy([whole.model.state_dict(), whole.state_dict(), rng_state(ranks.device)])
    losses, end = train(whole, batches[4:]), state(whole)
    again.warm_up(pair(ranks, 8))
    again.model.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    set_rng_state(saved[2], ranks.device)
    assert train(again, batches[4:]) == losses
    assert_same(state(again), end)


def test_a_whole_run_and_a_resumed_one_are_captured(ranks, tmp_path):
    """Data loading, evaluations and checkpoints around it: every loss and quality as in an eager run."""
    pytest.importorskip("mlperf_logging", reason="a run writes its log with mlperf-logging")
    from mlperf_fast.submission.check import check_file

    more = ("max_epochs=2", "seed=11", "checkpoint_every=3", "log_every=1", "deterministic=true")
    settings = SMALL["dlrm"](tmp_path)
    settings += [part for setting in (*more, f"device={ranks.device.type}") for part in ("--set", setting)]
    found = {}
    for choice in ("on", "off"):
        out = tmp_path / choice
        assert cli.main(["run", "dlrm", "--out", str(out), *settings, "--set", f"cuda_graph={choice}"]) == 1
        found[choice] = small_dlrm.losses(out / "result_0.txt"), summary(out)["curve"]
    assert found["on"] == found["off"]
    assert summary(tmp_path / "on")["step_mode"] == "captured"
    assert cli.main(["run", "dlrm", "--resume", str(tmp_path / "on")]) == 1
    assert (small_dlrm.losses(tmp_path / "on" / "result_0.txt"), summary(tmp_path / "on")["curve"]) == found["off"]
    modes = [r["value"] for r in small_dlrm.records(tmp_path / "on" / "result_0.txt") if r["key"] == "step_mode"]
    assert modes == ["captured", "captured"], "at the start, and when it was resumed"
    assert check_file(tmp_path / "on" / "result_0.txt") == []


def summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


def test_the_choice_and_its_reason(monkeypatch):
    assert eager_reason("off", CUDA) == "cuda_graph=off"
    assert eager_reason("auto", ALONE) == "no CUDA device"
    assert eager_reason("auto", CUDA) is eager_reason("on", CUDA) is None
    monkeypatch.setattr(graph.torch_dist, "get_backend", lambda: "nccl")
    assert eager_reason("auto", Ranks(0, 2, CUDA.device)) is None
    monkeypatch.setattr(graph.torch_dist, "get_backend", lambda: "gloo")
    reason = "collectives of gloo can't be captured, only NCCL's"
    assert eager_reason("auto", Ranks(0, 2, CUDA.device)) == reason
    for ranks, why in ((ALONE, "no CUDA device"), (Ranks(0, 2, CUDA.device), reason)):
        with pytest.raises(UserError, match=f"cuda_graph=on, but no step can be captured: {why}"):
            eager_reason("on", ranks)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert eager_reason("auto", ALONE) == "device=cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_random_numbers_go_on_after_a_refused_capture():
    """A capture that is left half done keeps the generator waiting for its end."""
    step = net_step(CUDA, "auto", loss=waiting_loss)
    train(step, pairs(CUDA, [8] * 3))
    assert step.mode.startswith("eager")
    assert torch.rand(3, device="cuda").isfinite().all()
    train(net_step(CUDA, "on"), pairs(CUDA, [8] * 3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_may_be_prefetched_while_a_step_is_captured():
    """The thread that copies batches to the device allocates pinned and device memory meanwhile."""
    sizes = [8, 8, 16, 16, 32, 32, 64, 64] * 4
    host = [Pair(torch.randn(n, 4).pin_memory(), torch.randn(n, 1).pin_memory()) for n in sizes]
    with Prefetcher(iter(host), device=CUDA.device) as batches:
        losses = train(net_step(CUDA), batches)
    assert losses == train(net_step(CUDA, "off"), [Pair(b.x.cuda(), b.y.cuda()) for b in host])
