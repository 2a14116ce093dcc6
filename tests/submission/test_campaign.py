"""Campaigns, really run on a small data set: their files, what a kill leaves, who may go on, when they stop."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
import small_dlrm
from hypothesis import given
from hypothesis import strategies as st
from small_dlrm import records

from mlperf_fast import cli
from mlperf_fast.loop import caches
from mlperf_fast.submission import campaign, score
from mlperf_fast.submission.logs import Log, read_log
from mlperf_fast.suite import BENCHMARKS

MLPERF_FAST = [sys.executable, "-m", "mlperf_fast"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_dlrm.write(tmp_path_factory.mktemp("data") / "dlrm")


def command(data, out, runs, *sets):
    """Arguments of a campaign whose runs reach their target after an epoch or two, unless `sets` say otherwise."""
    settings = small_dlrm.settings(data, "target=0.6", "max_epochs=8", "drop_caches=off", *sets)
    return ["campaign", "dlrm", "--runs", str(runs), "--out", str(out), *settings]


def state(out):
    return json.loads((out / "campaign.json").read_text())


def how(out):
    return [one["how"] for one in state(out)["ended"]]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """(folder, what the command said) of a campaign of as many runs as DLRM demands."""
    out = tmp_path_factory.mktemp("whole") / "dlrm"
    answer = subprocess.run(
        [*MLPERF_FAST, *command(data, out, "official", "checkpoint_every=20")], capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return out, answer.stdout


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "copy")


def again(data, out, runs="official", *sets):
    return cli.main(command(data, out, runs, "checkpoint_every=20", *sets))


def test_the_folder_is_one_benchmarks_result(whole, capsys):
    out, said = whole
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock", "campaign.json", *(f"result_{i}.txt" for i in range(5)), "runs",
    ]  # fmt: skip
    for judge in ("check", "score", "rcp"):
        assert cli.main([judge, str(out)]) == 0
    assert "5 logs, 0 error(s)" in capsys.readouterr().out
    logs = [read_log(out / f"result_{i}.txt") for i in range(5)]
    assert all(log.converged for log in logs)
    assert len({log.seeds[0].value for log in logs}) == 5
    for earlier, later in pairwise(logs):
        assert earlier.stopped < later.started, "one after the other"
    for i in range(5):
        run = out / "runs" / str(i)
        assert sorted(path.name for path in run.iterdir()) == [".lock", "config.json", "output.txt", "summary.json"]
        assert json.loads((run / "summary.json").read_text())["result"] == str(out / f"result_{i}.txt")
    assert f"{logs[0].seeds[0].value}" in said
    assert "run 5 of 5 converged" in said
    assert re.search(r"run 2 of 5 begins  about 0:\d\d:\d\d left", said), "the time left, from finished runs"


def test_campaign_json_says_how_it_was_started_and_how_each_run_ended(whole, data):
    out, _ = whole
    found = state(out)
    assert (found["workload"], found["preset"], found["nproc"], found["runs"]) == ("dlrm", "demo", 1, 5)
    assert f"data.path={data}" in found["sets"]
    assert found["config"]["batch_size"] == 64
    assert set(found["versions"]) == {"mlperf_fast", "torch", "python"}
    for i, one in enumerate(found["ended"]):
        log = read_log(out / f"result_{i}.txt")
        assert (one["run"], one["how"], one["code"], one["cache_clear"]) == (i, "converged", 0, False)
        assert (one["seed"], one["epochs"], one["minutes"]) == (log.seeds[0].value, log.converged_at, log.minutes)
        assert one["quality"] >= 0.6


def contents(out):
    return {path.name: path.read_bytes() for path in out.glob("result_*.txt")}


def test_the_same_command_again_repeats_nothing(data, copy, capsys):
    before = contents(copy)
    assert again(data, copy) == 0
    assert contents(copy) == before
    assert "holds 5 of 5 runs" in capsys.readouterr().out


@pytest.mark.parametrize("moved", [True, False])
def test_a_kill_between_the_end_of_a_run_and_its_booking_loses_nothing(data, copy, moved):
    """The two states that a kill can leave there: with the log in its place, or not yet."""
    before = contents(copy)
    saved = state(copy)
    last = saved["ended"].pop()
    (copy / "campaign.json").write_text(json.dumps(saved))
    if not moved:
        os.rename(copy / "result_4.txt", copy / "runs/4/result_0.txt")
    assert again(data, copy) == 0
    assert contents(copy) == before
    assert state(copy)["ended"][-1] == {**last, "code": None, "seconds": None}


def test_another_configuration_is_refused_with_the_difference(data, copy, capsys):
    before = contents(copy)
    for sets, difference in (
        (["optimizer.lr=0.25"], "optimizer.lr: 0.5, 0.25"),
        (["precision=bf16"], 'precision: "fp32", "bf16"'),
    ):
        assert again(data, copy, "official", *sets) == 2
        assert difference in capsys.readouterr().err
    assert cli.main([*command(data, copy, "official", "checkpoint_every=20"), "--preset", "demo_flights"]) == 2
    assert "preset: demo, demo_flights" in capsys.readouterr().err
    assert cli.main([*command(data, copy, "official", "checkpoint_every=20"), "--nproc", "2"]) == 2
    assert "nproc: 1, 2" in capsys.readouterr().err
    assert again(data, copy, 4) == 2
    assert "all that were started count" in capsys.readouterr().err
    assert contents(copy) == before


def test_a_missing_or_foreign_log_is_refused(data, copy, tmp_path, capsys):
    (copy / "result_2.txt").unlink()
    assert again(data, copy) == 2
    assert "result_2.txt is missing" in capsys.readouterr().err
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/result_0.txt").write_text("mine")
    assert again(data, tmp_path / "foreign") == 2
    assert "no campaign.json" in capsys.readouterr().err
    assert (tmp_path / "foreign/result_0.txt").read_text() == "mine"


def test_two_campaigns_can_not_share_a_folder(data, copy, capsys, monkeypatch):
    monkeypatch.setattr(campaign, "PATIENCE", 0.2)
    with campaign.locked(copy):
        assert again(data, copy) == 2
    assert "another campaign is at work" in capsys.readouterr().err


# --- runs that end otherwise ----------------------------------------------------------------------------------------


LONG = ("target=0.99", "max_epochs=25")  # long enough to be killed in, on a busy machine too


def start(data, out, *sets):
    """A campaign of two runs whose target is out of reach, in a process of its own."""
    arguments = command(data, out, 2, *LONG, *sets)
    return subprocess.Popen(
        [*MLPERF_FAST, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests are a background job
    )  # fmt: skip


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_kill_9_costs_the_run_whose_clock_had_started_and_no_other(data, tmp_path):
    out = tmp_path / "out"
    killed = start(data, out)
    log = out / "runs/1/result_0.txt"
    wait_for(lambda: log.exists() and "block_stop" in log.read_text(), killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    first = (out / "result_0.txt").read_bytes()
    assert cli.main(command(data, out, 3, *LONG)) == 1
    assert how(out) == ["missed", "interrupted", "missed"]
    assert (out / "result_0.txt").read_bytes() == first
    assert "run_start" in (out / "result_1.txt").read_text()
    assert not read_log(out / "result_1.txt").converged
    ((one,),) = score.scores([str(out)])
    assert (one.runs, one.failed) == (3, 3)


def test_kill_9_before_the_clock_starts_costs_no_run(data, tmp_path):
    out = tmp_path / "out"
    killed = start(data, out)
    wait_for((out / "runs/0/output.txt").exists, killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (out / "result_0.txt").exists()
    assert cli.main(command(data, out, 1, *LONG)) == 1
    assert how(out) == ["missed"]


def test_ctrl_c_closes_the_log(data, tmp_path):
    out = tmp_path / "out"
    interrupted = start(data, out, "max_epochs=2000")
    log = out / "runs/0/result_0.txt"
    wait_for(lambda: log.exists() and "block_stop" in log.read_text(), interrupted)
    interrupted.send_signal(signal.SIGINT)
    said, _ = interrupted.communicate()
    assert interrupted.returncode == 130, said
    assert "Traceback" not in said
    assert how(out) == ["interrupted"]
    last = records(out / "result_0.txt")[-1]
    assert (last["key"], last["metadata"]["status"]) == ("run_stop", "aborted")


def test_it_stops_when_no_score_can_come_any_more(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(command(data, out, "official", "target=0.99", "max_epochs=1")) == 1
    assert how(out) == ["missed", "missed"]
    said = capsys.readouterr().out
    assert "2 runs failed, where 1 of 5 may: no score can come of 5 runs, so it stops here" in said
    assert "no score: 2 runs failed, where 1 may" in said


def test_a_crashed_run_is_kept_and_counts_as_failed(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(command(data, out, 1, "optimizer.lr=1e30")) == 1
    (one,) = state(out)["ended"]
    assert (one["how"], one["code"]) == ("crashed", 2)
    assert "the loss became" in (out / "runs/0/output.txt").read_text()
    assert "run 1 of 1 crashed (exit code 2)" in capsys.readouterr().out
    ((scored,),) = score.scores([str(out)])
    assert (scored.runs, scored.failed) == (1, 1)
    assert cli.main(["check", str(out)]) == 1
    assert "1 of 1 runs failed" in capsys.readouterr().out


def test_a_run_that_cannot_start_ends_the_campaign_and_another_configuration_may_follow(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["campaign", "dlrm", "--preset", "closed", "--runs", "5", "--out", str(out)]) == 2
    assert "run 1 wrote no log, so it is none that counts: mlperf-fast run:" in capsys.readouterr().err
    assert cli.main(command(data, out, 1)) == 1
    assert how(out) == ["converged"]


def test_several_processes(data, tmp_path):
    out = tmp_path / "out"
    assert cli.main([*command(data, out, 1), "--nproc", "2"]) == 1
    assert how(out) == ["converged"]
    assert state(out)["nproc"] == 2


# --- caches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "allowed", "logged"),
    [("off", True, False), ("auto", True, True), ("auto", False, False), ("on", True, True), ("on", False, None)],
)
def test_the_log_says_truly_whether_caches_were_dropped(data, tmp_path, monkeypatch, capsys, wanted, allowed, logged):
    place = tmp_path / ("drop_caches" if allowed else "absent/drop_caches")
    monkeypatch.setattr(caches, "DROP", place)
    sets = small_dlrm.settings(data, "max_epochs=1", f"drop_caches={wanted}")
    out = tmp_path / "run"
    code = cli.main(["run", "dlrm", "--out", str(out), *sets])
    if logged is None:
        assert code == 2
        assert "drop_caches=on, but" in capsys.readouterr().err
        assert not out.exists()
        return
    keys = {record["key"]: (i, record["value"]) for i, record in enumerate(records(out / "result_0.txt"))}
    assert keys["cache_clear"][1] is logged
    assert keys["cache_clear"][0] < keys["init_start"][0] < keys["run_start"][0]
    assert place.exists() == logged
    assert not logged or place.read_text() == "3\n"


# --- the rule of the median window ----------------------------------------------------------------------------------


def test_a_log_without_a_start_stands_behind_the_one_before_it():
    """A run that crashed before its clock started still has its place in the row."""
    logs = [Log(path=str(i), findings=(), started=started) for i, started in enumerate((None, 50, 10, None, 30))]
    ordered = score.median_window(logs, 5, 1)
    assert [log.path for log in ordered] == ["0", "2", "3", "4", "1"]


@given(failed=st.lists(st.booleans(), min_size=5, max_size=12))
def test_a_score_is_possible_exactly_if_the_median_window_has_one(failed):
    bench = BENCHMARKS["dlrm"]
    logs = [
        Log(
            path=str(i), findings=(), complies=True, outcome="aborted" if f else "success", started=i, stopped=2 * i + 1
        )
        for i, f in enumerate(failed)
    ]
    window = score.median_window(logs, bench.runs, bench.dropped)
    valid = sum(not log.converged for log in window) <= bench.dropped
    assert campaign.score_possible(failed, bench.runs, bench.dropped) == valid
