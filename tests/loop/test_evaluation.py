"""Evaluations beside the training: the same qualities, the log's order, where the run stops, and what goes wrong."""

import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
from small_dlrm import losses, records

pytest.importorskip("PIL", reason="needs Pillow: pip install 'mlperf_fast[resnet]'")

import small_resnet

from mlperf_fast import cli
from mlperf_fast.config import from_preset
from mlperf_fast.errors import UserError
from mlperf_fast.loop import checkpoint
from mlperf_fast.loop.run import run
from mlperf_fast.submission.check import check_file, passes
from mlperf_fast.workloads.resnet.workload import WORKLOAD

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mlperf_fast"]
STEPS = 5  # an epoch, after which an evaluation is due
KEYS = ("block_start", "block_stop", "eval_start", "eval_accuracy", "eval_stop", "run_stop")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_resnet.write(tmp_path_factory.mktemp("resnet") / "data")


@pytest.fixture(scope="module")
def between(data, tmp_path_factory):
    """A run whose training stops for its evaluations."""
    out = tmp_path_factory.mktemp("between") / "run"
    assert cli.main(["run", "resnet", "--out", str(out), *small_resnet.settings(data, "seed=11")]) == 1
    return out


def started(data, out, w, *more):
    """The outcome of a run of `w` whose evaluations are beside the training."""
    sets = small_resnet.settings(data, "seed=11", "eval_async=true", *more)[1::2]
    cfg, origins = from_preset(w.presets["demo"], "demo", sets)
    return run(w, cfg, origins, "demo", out, resume=False, say=print)


def late(step, end=None):
    """ResNet whose first evaluation ends when training has taken `step` steps, by `end()` where that is given."""
    taken = threading.Event()

    def train_batches(cfg, ranks, seed, first):
        @contextmanager
        def batches():
            with WORKLOAD.train_batches(cfg, ranks, seed, first) as those:
                yield watched(those)

        return batches()

    def watched(batches):
        for number, batch in enumerate(batches):
            if number == step:
                taken.set()
                time.sleep(0.5)  # the evaluation, on its way, is over before another step
            yield batch

    def evaluate(*arguments):
        quality = WORKLOAD.evaluate(*arguments)
        assert taken.wait(60), "training waits for the evaluation"
        return end() if end else quality

    return replace(WORKLOAD, train_batches=train_batches, evaluate=evaluate)


def summary_of(out):
    return json.loads((out / "summary.json").read_text())


def events(out):
    """(key, epoch) of the log's blocks and evaluations, in its order."""
    return [
        (r["key"], r["metadata"].get("epoch_num", r["metadata"].get("first_epoch_num")))
        for r in records(out / "result_0.txt")
        if r["key"] in KEYS
    ]


def test_losses_and_qualities_are_those_of_a_run_that_stops_for_them(data, tmp_path, between):
    out = tmp_path / "run"
    started(data, out, WORKLOAD)
    assert losses(out / "result_0.txt") == losses(between / "result_0.txt"), "bit for bit"
    assert summary_of(out)["curve"] == summary_of(between)["curve"]
    assert [epoch for epoch, _ in summary_of(out)["curve"]] == [1, 2, 3, 4]
    assert passes(check_file(out / "result_0.txt"))
    # The next block begins while the evaluation is under way; the last one has nothing beside it.
    each = lambda e: [("block_stop", e), ("eval_start", e), ("block_start", e + 1)]  # noqa: E731
    over = lambda e: [("eval_accuracy", e), ("eval_stop", e)]  # noqa: E731
    wanted = [("block_start", 1), *each(1), *over(1), *each(2), *over(2), *each(3), *over(3), ("block_stop", 4),
              ("eval_start", 4), *over(4), ("run_stop", None)]  # fmt: skip
    assert events(out) == wanted


def test_the_run_stops_when_the_result_is_there_and_training_went_on_until_then(data, between, tmp_path):
    quality = summary_of(between)["curve"][0][1]
    found = started(data, tmp_path / "run", late(STEPS + 3), f"target={quality}")
    assert found.reached
    assert found.curve == [(1, quality)], "of the weights after epoch 1, not of later ones"
    assert found.steps == STEPS + 4
    assert events(tmp_path / "run") == [
        ("block_start", 1), ("block_stop", 1), ("eval_start", 1), ("block_start", 2), ("eval_accuracy", 1),
        ("eval_stop", 1), ("block_stop", 2), ("run_stop", None),
    ]  # fmt: skip
    assert records(tmp_path / "run" / "result_0.txt")[-1]["metadata"]["status"] == "success"
    assert passes(check_file(tmp_path / "run" / "result_0.txt"))


def test_what_goes_wrong_in_an_evaluation_ends_the_run_with_its_message(data, tmp_path):
    def fail():
        raise UserError("image 7 can't be read")

    with pytest.raises(UserError, match="image 7 can't be read"):
        started(data, tmp_path / "run", late(STEPS + 2, fail))
    log = records(tmp_path / "run" / "result_0.txt")
    assert (log[-1]["key"], log[-1]["metadata"]["status"]) == ("run_stop", "aborted")
    assert "eval_accuracy" not in {record["key"] for record in log}
    assert max(losses(tmp_path / "run" / "result_0.txt")) == STEPS + 3, "it doesn't train on until the next evaluation"


def test_a_run_that_breaks_off_ends_its_evaluation_too(data, tmp_path):
    """Alone at the next batch: the evaluation would wait for a step that never comes."""
    begun = threading.Event()

    def evaluate(cfg, ranks, net):
        begun.set()
        while True:
            WORKLOAD.evaluate(cfg, ranks, net)

    def check(net):
        WORKLOAD.check(net)
        if begun.is_set():
            raise UserError("a fault of the training")

    with pytest.raises(UserError, match="a fault of the training"):
        started(data, tmp_path / "run", replace(WORKLOAD, evaluate=evaluate, check=check))
    assert not [t for t in threading.enumerate() if t.name.startswith("evaluation")]


def test_a_checkpoint_waits_for_the_evaluation_and_a_resumed_run_has_it(data, between, tmp_path, monkeypatch):
    save, out = checkpoint.save, tmp_path / "run"

    def save_and_die(folder, step, *rest):
        save(folder, step, *rest)
        if step.count == 12:
            raise UserError("killed")

    def evaluate(*arguments):
        time.sleep(0.3)  # two steps take less
        return WORKLOAD.evaluate(*arguments)

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    with pytest.raises(UserError, match="killed"):
        started(data, out, replace(WORKLOAD, evaluate=evaluate), "checkpoint_every=6")
    monkeypatch.undo()
    whole = summary_of(between)["curve"]
    assert json.loads((out / "checkpoints" / "latest.json").read_text())["curve"] == whole[:2]
    assert cli.main(["run", "resnet", "--resume", str(out)]) == 1
    assert losses(out / "result_0.txt") == losses(between / "result_0.txt"), "bit for bit"
    assert summary_of(out)["curve"] == whole
    assert [event for event in events(out) if event[0] == "eval_accuracy"] == [
        ("eval_accuracy", e) for e in range(1, 5)
    ]
    assert passes(check_file(out / "result_0.txt"))


def test_two_processes_stop_after_the_same_step(data, tmp_path):
    """They would wait for each other's gradients otherwise."""
    out = tmp_path / "run"
    settings = small_resnet.settings(data, "seed=11", "eval_async=true", "eval_every=1", "target=0.5", "max_epochs=8",
                                     "optimizer.epochs=8")  # fmt: skip
    command = [*TORCHRUN, "run", "resnet", "--out", str(out), *settings]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert "reached the target" in answer.stdout
    assert passes(check_file(out / "result_0.txt"))
    curve = summary_of(out)["curve"]
    assert curve[-1][1] >= 0.5
    assert all(quality < 0.5 for _, quality in curve[:-1])


def test_a_workload_that_is_evaluated_between_steps_only_says_so(tmp_path, capsys):
    for command in (["run"], ["profile", "--tool", "torch"]):
        arguments = [*command, "dlrm", "--out", str(tmp_path / "run"), "--set", "eval_async=true"]
        assert cli.main(arguments) == 2
        assert "eval_async=true, but dlrm is evaluated between two steps only" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
