"""Points recorded from runs on plain PyTorch, and the test with two sides against them."""

import io
import json
from dataclasses import replace
from pathlib import Path

import closed_logs
import numpy as np
import pytest
import small_dlrm
from mlperf_logging.rcp_checker import rcp_checker

from mlperf_fast import cli
from mlperf_fast.errors import UserError
from mlperf_fast.submission import campaign, rcp, recording
from mlperf_fast.submission.logs import read_log, read_logs
from mlperf_fast.suite import BENCHMARKS
from mlperf_fast.workloads import presets

COMMITTED = Path(__file__).parents[2] / "benchmarks/results/rcp/dlrm_demo.json"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_dlrm.write(tmp_path_factory.mktemp("data") / "dlrm")


def command(data, file, *sets):
    return ["rcp", "record", "dlrm", "--runs", "3", "-o", str(file), *small_dlrm.settings(data, "target=0.6", *sets)]


@pytest.fixture(scope="module")
def recorded(data, tmp_path_factory):
    file = tmp_path_factory.mktemp("recorded") / "points.json"
    assert cli.main(command(data, file)) == 0
    return file


def the_point(file):
    ((name, point),) = json.loads(file.read_text()).items()
    return name, point


def test_the_file_says_what_made_it(recorded, data):
    name, point = the_point(recorded)
    logs = [read_log(recorded.with_suffix(".runs") / f"result_{i}.txt") for i in range(3)]
    assert name == "dlrm_demo_ref_64"
    assert (point["Benchmark"], point["BS"], point["Preset"], point["Target"]) == ("dlrm", 64, "demo", 0.6)
    assert point["Epochs to converge"] == [log.converged_at for log in logs]
    assert point["Seeds"] == [log.seeds[0].value for log in logs]
    assert point["Hyperparams"]["opt_base_learning_rate"] == 0.5
    assert set(point["Versions"]) == {"mlperf_fast", "torch", "python"}
    assert f"data.path={data}" in point["Settings"]
    for log in logs:
        assert set(recording.value(log, "op_backends").values()) == {"ref"}


def test_the_official_checker_takes_the_file(recorded, monkeypatch):
    monkeypatch.setitem(rcp_checker.submission_runs["training"], "dlrm", 5)
    _, point = the_point(recorded)
    own = (recorded, 64, point["Epochs to converge"], True)
    for path, batch, epochs, passes in (own, (COMMITTED, 1024, [1.66] * 5, True), (COMMITTED, 1024, [1.5] * 5, False)):
        monkeypatch.setattr(rcp_checker, "get_submission_epochs", lambda *_, b=batch, e=epochs: (b, e, "dlrm"))
        file = io.StringIO(path.read_text())
        verdict = rcp_checker.check_directory("", "training", "2.0.0", False, False, file, rcp_pass="pruned_rcps")
        assert verdict[0] is passes, verdict


def test_a_recording_that_was_stopped_goes_on(recorded, data, capsys):
    before = recorded.read_bytes()
    assert cli.main(command(data, recorded)) == 2
    assert "exists: choose another file" in capsys.readouterr().err
    recorded.unlink()  # as if the kill had come before it was written
    assert cli.main(command(data, recorded)) == 0
    assert recorded.read_bytes() == before
    assert "holds 3 of 3 runs" in capsys.readouterr().out


def test_a_run_that_misses_makes_no_reference(data, tmp_path, capsys):
    file = tmp_path / "points.json"
    assert cli.main(command(data, file, "target=0.99", "max_epochs=1")) == 1
    assert not file.exists()
    said = capsys.readouterr().out
    assert "run 1 failed, where all must converge: it stops here" in said
    assert "isn't written" in said


def test_runs_that_are_no_one_reference_are_refused(recorded):
    plan = campaign.plan("dlrm", "demo", presets("dlrm")["demo"], [], 1, "3")
    logs = read_logs([str(recorded.with_suffix(".runs") / f"result_{i}.txt") for i in range(3)])
    with pytest.raises(UserError, match="differ in batch"):
        recording.content(plan, [replace(logs[0], batch=128), *logs[1:]])
    with pytest.raises(UserError, match="differ in settings"):
        recording.content(plan, [replace(logs[0], settings=()), *logs[1:]])


def test_a_log_of_native_kernels_is_refused(recorded, tmp_path):
    plan = campaign.plan("dlrm", "demo", presets("dlrm")["demo"], [], 1, "3")
    text = (recorded.with_suffix(".runs") / "result_0.txt").read_text()
    (tmp_path / "result_0.txt").write_text(text.replace('"sgd": "ref"', '"sgd": "cpp"'))
    with pytest.raises(UserError, match="sgd ran on other backends than ref"):
        recording.content(plan, [read_log(tmp_path / "result_0.txt")])


# --- the test with two sides ----------------------------------------------------------------------------------------


def open_runs(path, *epochs, failed=0):
    """Logs of open runs at the committed point's batch size."""
    folder = closed_logs.folder(path, "dlrm", batch=1024, runs=len(epochs), epochs=epochs, failed=failed)
    for log in folder.glob("*.txt"):
        log.write_text(log.read_text().replace('"closed"', '"open"'))
    return str(folder)


@pytest.mark.parametrize(
    ("epochs", "failed", "code", "said"),
    [
        ((1.66, 1.7, 1.61, 1.75, 1.56), 0, 0, "two-sided, all runs: passes: neither faster nor slower"),
        ((1.8, 1.85, 1.8, 1.9, 1.85), 0, 1, "two-sided, all runs: fails: slower than the reference"),
        ((1.45, 1.5, 1.4, 1.45, 1.5), 0, 1, "two-sided, all runs: fails: faster than the reference"),
        ((1.85, 1.85, 1.8, 1.9, 2), 1, 1, "fails: slower than the reference"),
    ],
)
def test_neither_faster_nor_slower_than_the_demos_reference(tmp_path, capsys, epochs, failed, code, said):
    folder = open_runs(tmp_path / "runs", *epochs, failed=failed)
    assert cli.main(["rcp", folder, "--rcps", str(COMMITTED)]) == code
    assert said in capsys.readouterr().out


def test_points_that_do_not_ask_for_it_have_one_side(tmp_path):
    name, point = the_point(COMMITTED)
    del point["Two-sided"]
    (tmp_path / "points.json").write_text(json.dumps({name: point}))
    folder = open_runs(tmp_path / "runs", 1.85, 1.85, 1.8, 1.9, 1.85)
    assert cli.main(["rcp", folder, "--rcps", str(tmp_path / "points.json")]) == 0


def test_the_two_sided_test_is_wrong_as_seldom_and_finds_as_much_as_it_says():
    """2,000 pairs of recordings with the spread and the steps of DLRM's demo."""
    _, point = the_point(COMMITTED)
    step, rng = 0.0469, np.random.default_rng(0)  # epochs between two evaluations: 12 steps of 1,024 samples
    spread = np.std(point["Epochs to converge"], ddof=1)

    def found(shift):
        draws = 1.65 + spread * rng.standard_normal((2000, 10 + len(point["Epochs to converge"])))
        ours, theirs = (np.ceil(runs / step) * step for runs in (draws[:, :10] + shift, draws[:, 10:]))
        return np.mean([not rcp.difference(a, b).passes for a, b in zip(ours, theirs, strict=True)])

    assert 0.02 < found(0) < 0.06
    assert found(0.75 * rcp.difference([1.6] * 10, point["Epochs to converge"]).resolution) < 0.75
    assert 0.7 < found(rcp.difference([1.6] * 10, point["Epochs to converge"]).resolution) < 0.85


def test_equal_runs_and_runs_that_never_converge():
    assert rcp.difference([1.6] * 5, [1.6] * 10).p == 1
    never = rcp.difference([None] * 5, [1.5, 1.6, 1.7, 1.6, 1.5])
    assert never.mean is None
    assert not never.passes
    assert len(the_point(COMMITTED)[1]["Epochs to converge"]) >= 2 * BENCHMARKS["dlrm"].runs
