"""The result log survives crashes and full disks, and holds what its reader can use."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlperf_fast.errors import UserError
from mlperf_fast.submission import runlog
from mlperf_fast.submission.records import read_records
from mlperf_fast.submission.runlog import NullLog, RunLog, open_log
from mlperf_fast.suite import BENCHMARKS


@pytest.fixture
def path(tmp_path):
    return tmp_path / "result_0.txt"


def records(path):
    found, findings = read_records(path)
    assert not findings
    return found


def test_a_record_is_the_librarys_line_and_nothing_is_printed(path, capfd):
    before = time.time() * 1e3
    with RunLog(path) as log:
        log.event("eval_accuracy", 0.5, {"epoch_num": 1})
        assert log.offset == path.stat().st_size
    line = path.read_text()
    assert line.startswith(":::MLLOG {")
    assert line.endswith("}\n")
    fields = json.loads(line.removeprefix(":::MLLOG "))
    assert before - 1 <= fields.pop("time_ms") <= time.time() * 1e3
    lineno = fields["metadata"].pop("lineno")
    assert "log.event(" in Path(__file__).read_text().splitlines()[lineno - 1]
    assert fields["metadata"].pop("file").endswith("tests/submission/test_runlog.py")
    assert fields == {
        "namespace": "",
        "event_type": "POINT_IN_TIME",
        "key": "eval_accuracy",
        "value": 0.5,
        "metadata": {"epoch_num": 1},
    }
    assert capfd.readouterr() == ("", "")


def test_event_types_and_times(path):
    with RunLog(path) as log:
        log.start("run_start", time_ms=1000)
        log.end("run_stop", metadata={"status": "aborted"}, time_ms=np.int64(2000))
    types = [json.loads(line[9:])["event_type"] for line in path.read_text().splitlines()]
    assert types == ["INTERVAL_START", "INTERVAL_END"]
    assert [record.time_ms for record in records(path)] == [1000, 2000]


def test_callers_in_the_package_are_named_relative_to_it(path, tmp_path):
    other = tmp_path / "result_1.txt"
    for file in (path, other):
        with RunLog(file) as log:
            runlog.log_seed(log, runlog.draw_seed())
    (first,), (second,) = records(path), records(other)
    assert first.metadata["file"] == "mlperf_fast/submission/runlog.py"
    assert first.metadata == second.metadata  # what the official seed check compares
    assert first.value != second.value


def test_values_of_numpy_and_torch_become_plain(path):
    with RunLog(path) as log:
        for value in (np.float32(0.5), np.int64(3), np.bool_(True), np.array(2.0), torch.tensor(0.25), torch.tensor(7)):
            log.event("x", value)
        log.event("x", {"a": [np.float64(1.5), (torch.tensor(True), None)]}, {"epoch_num": np.int32(4)})
        log.event("x", float("inf"))
    found = records(path)
    assert [record.value for record in found[:6]] == [0.5, 3, True, 2.0, 0.25, 7]
    assert [type(record.value) for record in found[:6]] == [float, int, bool, float, float, int]
    assert found[6].value == {"a": [1.5, [True, None]]}
    assert found[6].metadata["epoch_num"] == 4
    assert found[7].value == float("inf")


RECURSIVE: list = []
RECURSIVE.append(RECURSIVE)


@pytest.mark.parametrize(
    ("key", "value", "metadata", "error", "message"),
    [
        ("x", object(), None, TypeError, "x is a object"),
        ("x", {"a": {1, 2}}, None, TypeError, r"x\.a is a set"),
        ("x", {1: 2}, None, TypeError, "no string"),
        ("x", np.zeros(3), None, TypeError, "ndarray"),
        ("x", torch.zeros(1), None, TypeError, "Tensor"),
        ("x", 1j, None, TypeError, "complex"),
        ("x", RECURSIVE, None, TypeError, "too deep"),
        ("x", float("nan"), None, ValueError, "x is NaN"),
        ("x", [torch.tensor(float("nan"))], None, ValueError, "NaN"),
        ("x", 1, {"epoch_num": float("nan")}, ValueError, r"metadata of x\.epoch_num is NaN"),
        ("x", 1, [1], TypeError, "expected a mapping"),
        ("x", 1, {"file": "y"}, ValueError, "file or lineno"),
        ("x", "a :::MLLOG b", None, ValueError, "start of a record"),
        ("config", {"global_batch_size": 4}, None, ValueError, "looked up by that word"),
        ("my_eval_accuracy", 0.5, None, ValueError, "looked up by that word"),
        ("", 1, None, TypeError, "key"),
        (None, 1, None, TypeError, "key"),
        pytest.param("x", 10**5000, None, ValueError, "limit", id="a number too long to print"),
    ],
)
def test_what_no_reader_could_use_is_refused_before_anything_is_written(path, key, value, metadata, error, message):
    with RunLog(path) as log:
        log.event("before", 1)
        with pytest.raises(error, match=message):
            log.event(key, value, metadata)
        log.event("after", 2)
    assert [record.key for record in records(path)] == ["before", "after"]


def test_an_evaluation_may_be_nan(path):
    with RunLog(path) as log:
        log.event("eval_accuracy", {"BBOX": float("nan"), "SEGM": np.float32("nan")}, {"epoch_num": 1})
    assert "NaN" in path.read_text()


@given(st.text(), st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=3))
def test_any_text_stays_one_record(tmp_path_factory, text, value):
    path = tmp_path_factory.mktemp("text") / "result_0.txt"
    with RunLog(path) as log:
        log.event("a", text)
        log.event("b", value)
    assert [record.value for record in records(path)] == [text, value]
    assert path.read_bytes().count(b"\n") == 2
    assert path.read_bytes().isascii()


def test_logging_switched_off_or_doubled_elsewhere_changes_nothing(path, tmp_path, capfd):
    logging.disable(logging.CRITICAL)
    try:
        with RunLog(path) as one, RunLog(tmp_path / "other.txt") as two:
            one.event("a", 1)
            two.event("b", 2)
    finally:
        logging.disable(logging.NOTSET)
    assert [record.key for record in records(path)] == ["a"]
    assert [record.key for record in records(tmp_path / "other.txt")] == ["b"]
    assert capfd.readouterr() == ("", "")


def test_one_seed_a_run(path):
    with RunLog(path) as log:
        runlog.log_seed(log, 1)
        at = log.offset
        with pytest.raises(ValueError, match="has its seed"):
            runlog.log_seed(log, 2)
    with RunLog(path, resume_at=at) as log, pytest.raises(ValueError, match="has its seed"):
        runlog.log_seed(log, 3)


def test_seeds_are_drawn():
    seeds = {runlog.draw_seed() for _ in range(100)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**31 for seed in seeds)
    np.random.default_rng(max(seeds))
    torch.Generator().manual_seed(max(seeds))


def test_an_existing_file_is_refused(path):
    path.write_text("precious")
    with pytest.raises(UserError, match="exists: another run wrote it"):
        RunLog(path)
    assert path.read_text() == "precious"


def test_where_no_log_can_be(tmp_path):
    with pytest.raises(UserError, match="folder doesn't exist"):
        RunLog(tmp_path / "absent" / "result_0.txt")
    with pytest.raises(UserError, match="no such log to resume"):
        RunLog(tmp_path / "result_0.txt", resume_at=0)
    with pytest.raises(UserError, match="can't be opened"):
        RunLog(tmp_path, resume_at=0)
    with pytest.raises(UserError, match="no regular file"):
        RunLog("/dev/null", resume_at=0)


def test_resume_keeps_and_sets_aside(path):
    with RunLog(path) as log:
        log.event("kept", 1)
        at = log.offset
        log.event("lost", 1)
    with open(path, "ab") as file:
        file.write(b':::MLLOG {"half a rec')  # as a crash of another writer could leave it
    behind = path.read_bytes()[at:]
    with RunLog(path, resume_at=at) as log:
        assert log.offset == at
        log.event("again", 2)
    assert [record.key for record in records(path)] == ["kept", "again"]
    cut = path.with_name("result_0.txt.cut")
    assert cut.read_bytes() == behind
    with RunLog(path, resume_at=at):
        pass
    assert cut.read_bytes().startswith(behind)  # a second resume adds to it
    assert b"again" in cut.read_bytes()
    assert path.stat().st_size == at
    with RunLog(path, resume_at=at):
        assert path.stat().st_size == at  # nothing behind: nothing to cut


def test_resume_at_a_wrong_place_changes_nothing(path):
    with RunLog(path) as log:
        log.event("a", 1)
    content = path.read_bytes()
    with pytest.raises(UserError, match="fewer than the"):
        RunLog(path, resume_at=len(content) + 1)
    with pytest.raises(UserError, match="within a record"):
        RunLog(path, resume_at=len(content) - 1)
    assert path.read_bytes() == content
    assert not path.with_name("result_0.txt.cut").exists()
    RunLog(path, resume_at=len(content)).close()  # and the failed attempts hold no lock


def test_two_processes_can_not_continue_one_log(path):
    with RunLog(path), pytest.raises(UserError, match="being written by another process"):
        RunLog(path, resume_at=0)


def test_closed(path):
    log = RunLog(path)
    log.close()
    log.close()
    with pytest.raises(ValueError, match="is closed"):
        log.event("a", 1)


def test_full_disk(path):
    log = RunLog(path)
    log.event("kept", 1)
    content, fd = path.read_bytes(), os.dup(log._fd)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._fd)  # the same number, now a full disk
    with pytest.raises(UserError, match=r"No space left on device.*make room"):
        log.event("lost", 1)
    os.dup2(fd, log._fd)
    assert path.read_bytes() == content
    log.event("then", 2)
    log.close()
    os.close(fd)
    os.close(full)
    assert [record.key for record in records(path)] == ["kept", "then"]


LIMITED = """
import resource, sys
from mlperf_fast.errors import UserError
from mlperf_fast.submission.runlog import RunLog
log = RunLog(sys.argv[1])
log.event("first", 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (log.offset + int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    log.event("second", "x" * 200)
except UserError as error:
    print(error, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.event("third", 3)
"""


@pytest.mark.parametrize(("room", "reason"), [(0, "File too large"), (17, "took 17 of")])
def test_a_write_that_the_system_cuts_short_is_taken_back(path, room, reason):
    done = subprocess.run([sys.executable, "-c", LIMITED, path, str(room)], capture_output=True, text=True, check=True)
    assert reason in done.stdout
    assert "bytes before it are whole" in done.stdout
    assert [record.key for record in records(path)] == ["first", "third"]


KILLED = """
import sys
from mlperf_fast.submission.runlog import RunLog
log = RunLog(sys.argv[1])
print("ready", flush=True)
while True:
    log.event("x", "y" * 3000)
"""


def test_kill_9_leaves_whole_records(tmp_path):
    for attempt, delay in enumerate((0.01, 0.05, 0.1)):
        path = tmp_path / f"result_{attempt}.txt"
        child = subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        content = path.read_bytes()
        assert content.endswith(b"\n")
        assert len(records(path)) == content.count(b"\n") > 0
        with RunLog(path, resume_at=len(content)) as log:  # the lock died with its process
            log.event("after", 1)
        assert records(path)[-1].key == "after"


def test_threads_do_not_mix_records(path):
    with RunLog(path) as log:
        threads = [threading.Thread(target=lambda i=i: [log.event(f"t{i}", n) for n in range(50)]) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert log.offset == path.stat().st_size
    found = records(path)
    for i in range(4):
        assert [record.value for record in found if record.key == f"t{i}"] == list(range(50))


def test_run_stop_reaches_the_disk(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with RunLog(path) as log:
        log.event("a", 1)
        assert not synced
        log.end("run_stop", metadata={"status": "success"})
        assert log._fd in synced
        synced.clear()
        log.sync()
        assert log._fd in synced


def test_a_disk_that_refuses_to_sync_is_said(path, monkeypatch):
    def refuse(fd):
        raise OSError(5, "Input/output error")

    log = RunLog(path)
    log.event("a", 1)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match="Input/output error"):
        log.sync()
    log.close()


def test_other_ranks_write_nothing(path):
    with open_log(path, rank=1) as log:
        assert isinstance(log, NullLog)
        log.start("run_start")
        log.end("run_stop", metadata={"status": "success"})
        runlog.log_seed(log, 1)
        runlog.tracked_stats(log, step=1, samples=10, seconds=1.0)
        log.sync()
        assert log.offset == 0
    assert not path.exists()


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_submission_records(path, benchmark):
    with RunLog(path) as log:
        runlog.log_submission(
            log, benchmark, is_demo=False, division="closed", status="onprem", org="house", platform="1x machine"
        )
    values = {record.key: record.value for record in records(path)}
    assert values == {
        "submission_benchmark": BENCHMARKS[benchmark].log_name,
        "submission_org": "house",
        "submission_division": "closed",
        "submission_status": "onprem",
        "submission_platform": "1x machine",
    }


def test_a_demo_is_open_and_says_demo(path):
    with RunLog(path) as log:
        with pytest.raises(UserError, match="a demo is always logged as division open"):
            runlog.log_submission(
                log, "dlrm", is_demo=True, division="closed", status="research", org=None, platform="laptop"
            )
        assert log.offset == 0
        runlog.log_submission(log, "dlrm", is_demo=True, division=None, status="research", org=None, platform="laptop")
    values = {record.key: record.value for record in records(path)}
    assert values["submission_division"] == "open"
    assert values["submission_platform"] == "demo: laptop"
    assert values["submission_org"] == runlog.DEMO_ORG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmark": "ssd"}, "benchmark is 'ssd'; expected one of resnet"),
        ({"division": None}, "division is None; expected closed or open"),
        ({"division": "Closed"}, "division is 'Closed'"),
        ({"status": "available"}, "status is 'available'; expected one of cloud"),
        ({"org": " "}, "submission org is ' '"),
        ({"org": None}, "submission org is None"),
        ({"platform": ""}, "submission platform is ''"),
    ],
)
def test_wrong_submission_values_are_refused_on_every_rank(change, message):
    good = {"benchmark": "dlrm", "division": "open", "status": "cloud", "org": "o", "platform": "p", "is_demo": False}
    with pytest.raises(UserError, match=message):
        runlog.log_submission(NullLog(), **(good | change))


def test_tracked_stats(path):
    with RunLog(path) as log:
        runlog.tracked_stats(log, step=1.05, samples=1000, seconds=np.float64(0.5), data_wait=0.125)
        with pytest.raises(ValueError, match="positive time"):
            runlog.tracked_stats(log, step=2, samples=1000, seconds=0)
    (record,) = records(path)
    assert record.value == {"throughput": 2000.0, "data_wait": 0.125}
    assert record.metadata["step"] == 1.05


def test_no_torch_is_imported():
    code = (
        "import sys, mlperf_fast.suite, mlperf_fast.submission.runlog, mlperf_fast.submission.check;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
