"""The step and what it stands on: the loss scaler's rule, clock, terminal."""

import time

import pytest
import torch

from mlperf_fast.loop.clock import Clock
from mlperf_fast.loop.dist import Ranks
from mlperf_fast.loop.step import LossScaler, TrainStep
from mlperf_fast.loop.terminal import Outcome, Terminal, curve_lines, summary
from mlperf_fast.workloads.dlrm import workload
from mlperf_fast.workloads.dlrm.model import DLRM, initialise
from mlperf_fast.workloads.dlrm.presets import demo

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture
def dlrm_step(monkeypatch):
    """(step, batch) of DLRM's demo with made-up data; precision as asked."""
    rows = (40, 3, 200)
    monkeypatch.setattr(workload, "read_meta", lambda cfg: type("Meta", (), {"table_rows": rows}))

    def make(precision: str = "fp32"):
        cfg = demo()
        net = DLRM(rows, cfg.model.dim, cfg.model.bottom, cfg.model.top, ALONE)
        initialise(net, 1)
        step = TrainStep(workload.loss, net, workload.optimizer(cfg, net), ALONE, precision)
        return step, workload.synthetic(cfg, ALONE)

    return make


def test_steps_are_the_same_each_time(dlrm_step):
    """Equal start, equal batches: equal weights, bit for bit, also when something else ran in between."""
    ends = []
    for _ in range(3):
        step, batch = dlrm_step()
        for _ in range(5):
            step(batch)
        ends.append({name: tensor.clone() for name, tensor in step.model.state_dict().items()})
    for other in ends[1:]:
        assert all(torch.equal(ends[0][name], other[name]) for name in other)


def test_state_survives_a_round_trip(dlrm_step):
    step, batch = dlrm_step("fp16")
    for _ in range(3):
        step(batch)
    step.read_loss()
    step(batch)
    model, state = {k: v.clone() for k, v in step.model.state_dict().items()}, step.state_dict()
    other, _ = dlrm_step("fp16")
    other.model.load_state_dict(model)
    other.load_state_dict(state)
    step(batch)
    other(batch)
    assert other.count == step.count == 5
    assert other.read_loss() == step.read_loss()
    assert float(other.scaler.scale) == float(step.scaler.scale)


def test_the_loss_scaler_follows_torch_s_grad_scaler():
    """The same overflows at the same steps: the same scales, the same decisions to skip."""
    mine = LossScaler(ALONE.device)
    theirs = torch.amp.GradScaler("cpu", init_scale=65536.0)
    weight = torch.nn.Parameter(torch.zeros(3))
    sgd = torch.optim.SGD([weight], 1.0)
    for number in range(2100):
        gradient = torch.full((3,), float("inf") if number in (3, 50, 51) else 1.0)
        found_inf = torch.zeros(())
        scaled = [gradient * mine.scale]
        mine.unscale_(scaled, found_inf)
        mine.update(found_inf)
        weight.grad = gradient * theirs.scale(torch.ones(())).detach()
        theirs.step(sgd)
        theirs.update()
        assert float(found_inf) == (number in (3, 50, 51))
        assert float(mine.scale) == theirs.get_scale(), number
    assert float(mine.scale) == 65536.0 / 8 * 2


def test_the_clock_tells_waiting_from_work():
    clock = Clock()

    def slow():
        for item in range(3):
            time.sleep(0.03)
            yield item

    for _ in clock.timed(slow()):
        time.sleep(0.01)
    with clock.evaluation():
        time.sleep(0.05)
    assert 0.09 <= clock.waiting < clock.training < clock.elapsed
    assert clock.evaluating >= 0.05
    assert clock.data_wait_share == pytest.approx(clock.waiting / clock.training, rel=0.01)
    first, second = clock.lap(), clock.lap()
    assert first > 0.11
    assert second < 0.01


def an_outcome(**changes) -> Outcome:
    values = {
        "benchmark": "dlrm", "preset": "demo", "metric": "auc", "target": 0.8, "higher_is_better": True,
        "reached": True, "quality": 0.81, "steps": 10, "samples": 100, "run_seconds": 1.5, "init_seconds": 0.2,
        "samples_per_second": 66.0, "data_wait_share": 0.25, "backends": {"sgd": "cpp"}, "step_mode": "captured",
        "result": "r/result_0.txt", "seed": 1, "curve": [(1.05, 0.6), (1.1, 0.7), (1.15, 0.81)],
    }  # fmt: skip
    return Outcome(**{**values, **changes})


def test_the_summary_shows_verdict_curve_and_figures():
    text = summary(an_outcome())
    assert "dlrm demo: reached the target  (auc 0.8100 ≥ 0.8000)" in text
    assert "25% spent waiting" in text
    assert "  step            captured" in text
    bars = [line.count("█") for line in curve_lines(an_outcome())[1:]]
    assert bars == sorted(bars)
    assert bars[0] == 0
    assert bars[-1] > 35
    assert "did not reach the target  (auc 0.7000 misses 0.8000)" in summary(an_outcome(reached=False, quality=0.7))
    assert "no evaluation yet" in summary(an_outcome(curve=[]))


def test_only_the_first_rank_speaks(capsys):
    for first in (True, False):
        terminal = Terminal(first, 10)
        terminal.step(5, 0.5, 0.1, 100.0, 0.0)
        terminal.say("hello")
        terminal.close()
        assert ("step 5/10" in capsys.readouterr().out) is first
