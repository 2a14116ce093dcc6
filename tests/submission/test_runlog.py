"""The result log survives crashes and full disks, and holds what its reader can use."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from result_logs import records

from mlperf_fast.errors import UserError
from mlperf_fast.submission import runlog
from mlperf_fast.submission.records import TOKEN
from mlperf_fast.submission.runlog import NullLog, RunLog, open_log
from mlperf_fast.suite import BENCHMARKS


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


def test_without_the_library_a_run_says_how_to_get_it(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlperf_logging.mllog.mllog", None)
    with pytest.raises(UserError, match="pip install mlperf-logging"):
        RunLog(path)
    assert not path.exists()


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


# Hypothesis also draws strings that it finds in the code, so the refused words come up by themselves.
TEXT = st.text().filter(lambda text: not any(word in text for word in (*runlog._WORDS, TOKEN)))


@given(TEXT, st.dictionaries(TEXT, st.integers() | TEXT, max_size=3))
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
