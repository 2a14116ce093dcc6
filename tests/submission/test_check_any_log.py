"""`check` survives any bytes and any log, in reasonable time, and is never kinder than the official verdict."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mlperf_logging.compliance_checker import mlp_compliance
from mlperf_logging.compliance_checker.mlp_parser.ruleset_200 import strip_and_dedup
from result_logs import changed, line_of, official_verdict, two_on_a_line

from mlperf_fast.submission.check import check_file, passes
from mlperf_fast.submission.records import MAX_FAULTS, TOKEN, read_records


def test_every_prefix_has_findings_and_none_a_traceback(tmp_path, demo):
    whole = b"".join(line + b"\n" for line in demo)
    path = tmp_path / "result_0.txt"
    for size in range(len(whole) - 1):
        path.write_bytes(whole[:size])
        findings = check_file(path)
        assert not passes(findings), size
        if not whole[:size].endswith(b"\n") and TOKEN.encode() in whole[:size].rpartition(b"\n")[2]:
            cut = [f for f in findings if f.rule == "record/cut"]
            complete = whole[size : size + 1] == b"\n"
            assert complete or [f.line for f in cut] == [whole[:size].count(b"\n") + 1]
    path.write_bytes(whole[:-1])  # the last record is whole; only its line isn't ended
    assert passes(check_file(path))


def test_prefixes_of_a_real_log(tmp_path, samples):
    whole = (samples / "dgxa100_ngc22.04_merlin_hugectr/dlrm/result_0.txt").read_bytes()
    end = whole.index(b'"run_stop"')
    path = tmp_path / "result_0.txt"
    for size in range(0, end, 97):
        path.write_bytes(whole[:size])
        assert not passes(check_file(path)), size


NESTED = b"[" * 100_000 + b"]" * 100_000
HUGE = b'":::MLLOG' + b"x" * 2_000_000


@pytest.mark.parametrize(
    ("content", "rule", "line", "message"),
    [
        (b"", "log/empty", None, "the file is empty"),
        (b"no record here\n", "log/empty", None, "is this a result log?"),
        (bytes(range(256)) * 40, "log/empty", None, "is this a result log?"),
        (b"\0" * 4096, "log/empty", None, "is this a result log?"),
        (b'\n:::MLLOG{"key": 1}\n', "record/token", 2, "isn't followed by a space"),
        (b":::MLLOG \n", "record/json", 1, "not valid JSON"),
        (b":::MLLOG {]\n", "record/json", 1, "not valid JSON"),
        (b':::MLLOG {"key": "a"} tail\n', "record/json", 1, "not valid JSON"),
        (b":::MLLOG {}\0\n", "record/json", 1, "not valid JSON"),
        (b':::MLLOG {"key": "\x1b[31m\xff"\n', "record/json", 1, r"\u001b[31m\u00ff"),
        (b":::MLLOG " + b"9" * 5000 + b"\n", "record/json", 1, "too long"),
        (b":::MLLOG " + NESTED + b"\n", "record/json", 1, "nested too deeply"),
        (b":::MLLOG " + HUGE[:1_000_000] + b"\n", "record/json", 1, "not valid JSON"),
        (b":::MLLOG " + HUGE + b"\n", "record/long", 1, "a record of 2,000,018 bytes: at most 1,048,576 are read"),
        (b'a\rb\r\n:::MLLOG {"key', "record/cut", 3, "the file ends within this record"),
        (b":::MLLOG [1]\n", "record/fields", 1, "expected an object, found [1]"),
        (b':::MLLOG "text"\n', "record/fields", 1, 'expected an object, found "text"'),
    ],
)
def test_any_bytes_have_a_finding(file, content, rule, line, message):
    path = file(content)
    before = time.process_time()
    findings = check_file(path)
    assert time.process_time() - before < 2  # the official parser takes hours for the longest
    assert not passes(findings)
    found = [finding for finding in findings if finding.rule == rule and finding.line == line]
    assert found, findings
    assert message in found[0].message
    assert found[0].message.isascii()
    assert len(found[0].message) < 300
    assert path.read_bytes() == content


def test_a_value_of_the_log_leads_to_no_rule_file(tmp_path, file, demo):
    """The official checker opens, and executes, the rule file that a division's name leads to."""
    (tmp_path / "evil_common.yaml").write_text("- BEGIN:\n    CODE: \"raise SystemExit('executed')\"\n")
    hostile = os.path.relpath(tmp_path / "evil", os.path.dirname(mlp_compliance.__file__) + "/training_2.0.0")
    path = file(changed(demo, "submission_division", value=hostile))
    checker = mlp_compliance.make_checker("training", "2.0.0", False, False)
    with pytest.raises(SystemExit, match="executed"):  # the hole is real ...
        mlp_compliance.main(str(path), "training_2.0.0/common.yaml", checker)
    mlp_compliance.enqueued_configs.clear()
    findings = check_file(path)  # ... and closed here
    assert "compliance/submission_division" in {finding.rule for finding in findings}


def test_the_checkers_globals_and_the_root_logger_are_left_alone(file, demo):
    names = ("enqueued_configs", "preety_dict", "yaml")
    before = [getattr(mlp_compliance, name) for name in names]
    mlp_compliance.enqueued_configs.append("left over by someone else's crash")
    handlers = logging.getLogger().handlers[:]
    try:
        for lines in (demo, changed(demo, "eval_accuracy", value="high")):
            check_file(file(lines))
        assert mlp_compliance.enqueued_configs == ["left over by someone else's crash"]
    finally:
        mlp_compliance.enqueued_configs.clear()
    assert all(getattr(mlp_compliance, name) is kept for name, kept in zip(names, before, strict=True))
    assert logging.getLogger().handlers == handlers


def test_many_faulty_lines_take_time_in_proportion(file, demo):
    """The official checker prints its whole state for each of them, and says the last alone."""
    closed = changed(changed(demo, "submission_division", value="closed"), "submission_platform", value="machine")
    at = line_of(demo, "eval_accuracy")
    tensor = (
        TOKEN.encode() + b'{"key": "weights_initialization", "value": 1, "time_ms": 1, "metadata": {"tensor": "t"}}'
    )
    bad = changed(demo, "eval_accuracy", metadata={})[at]
    before = time.process_time()
    findings = check_file(file([*closed[:at], *[tensor] * 3000, *[bad] * 3000, *closed[at:]]))
    assert time.process_time() - before < 4
    assert sum("no 'epoch_num' in its metadata" in finding.message for finding in findings) == 3000


def test_a_rule_file_is_applied_once(file, demo):
    """Each optimizer record enqueues one more time the rule file of that optimizer."""
    closed = changed(demo, "submission_division", value="closed")
    closed = changed(closed, "submission_benchmark", value="resnet")
    lars = TOKEN.encode() + b'{"key": "opt_name", "value": "lars", "time_ms": 1, "metadata": {}}'
    before = time.process_time()
    findings = check_file(file([*closed, *[lars] * 10_000]))
    assert time.process_time() - before < 4
    assert len([finding for finding in findings if finding.rule == "compliance/lars_epsilon"]) == 1


SIZE = 50 * 2**20 - 1000  # the most that is read
LINE = b':::MLLOG {"key":"%s","value":%s,"metadata":{},"time_ms":1}\n'
CLOSED = LINE % (b"submission_benchmark", b'"maskrcnn"') + LINE % (b"submission_division", b'"closed"')


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    [
        b":::MLLOG\n",
        b":::MLLOG ",
        b"\r",
        b"\0",
        b"x:::MLLOG {\n",
        LINE % (b"a", b"1"),
        LINE % (b"eval_accuracy", b"{}"),
    ],
)
def test_the_largest_hostile_file_takes_bounded_time_and_memory(file, unit):
    """In a process of its own: 50 MiB of the worst lines."""
    path = file(CLOSED + unit * (SIZE // len(unit)))
    code = (
        "import re, sys, time; from mlperf_fast.submission.check import check_file, passes;"
        "found = check_file(sys.argv[1]);"
        # Not getrusage: its peak includes that of the process this one was started from.
        "peak = int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]);"
        "print(passes(found), len(found), peak // 1024, time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    good, findings, mebibytes, seconds = done.stdout.split()
    assert good == "False"
    assert int(findings) <= MAX_FAULTS + 2
    assert int(mebibytes) < 600
    assert float(seconds) < 30


def test_of_two_records_on_a_line_the_last_is_seen(file, demo):
    records, findings = read_records(file(two_on_a_line(demo)))
    assert [finding.rule for finding in findings] == ["record/two-on-a-line"]
    seen = [record.key for record in records]
    assert "eval_samples" in seen
    assert "train_samples" not in seen


def test_files_that_are_none(tmp_path):
    folder, pipe, absent = tmp_path, tmp_path / "pipe", tmp_path / "absent"
    os.mkfifo(pipe)
    for path, message in (
        (folder, "this is a folder"),
        (pipe, "no regular file"),
        ("/dev/zero", "no regular file"),
        (absent, "can't be read: No such file"),
        ("/proc/self/mem", "can't be read: Input/output error"),
        ("a\0b", "can't be read"),
        ("x" * 5000, "can't be read: File name too long"),
    ):
        (finding,) = check_file(path)
        assert finding.rule == "file"
        assert message in finding.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(file):
    path = file(b"x")
    path.chmod(0)
    (finding,) = check_file(path)
    assert "can't be read: Permission denied" in finding.message


def test_a_file_larger_than_a_submission_may_hold(tmp_path):
    path = tmp_path / "result_0.txt"
    with open(path, "wb") as file:
        file.truncate(50 * 2**20 + 1)
    (finding,) = check_file(path)
    assert "larger than 50 MiB" in finding.message


# --- any log at all: never a traceback, and never a verdict that is kinder than the official one -------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("closed") | st.just("dlrm"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["BBOX", "SEGM", "status"]), inner),
    max_leaves=4,
)
FIELDS = st.sampled_from(["key", "value", "metadata", "time_ms"])
BYTES = st.sampled_from([b"\0", b"\xff", b"\r", b"\n", b":::MLLOG ", b"{", b"}", b'"', b"[", b"1", b" "])


@st.composite
def spoilt(draw, lines):
    """A good log with lines dropped, doubled, moved, cut, joined, and with other values and bytes in them."""
    lines = list(lines)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["drop", "double", "move", "cut", "join", "field", "byte"])):
            case "drop" if len(lines) > 1:
                del lines[at]
            case "double":
                lines.insert(draw(st.integers(0, len(lines))), lines[at])
            case "move":
                lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
            case "cut":
                lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
            case "join":
                lines[at] += lines[draw(st.integers(0, len(lines) - 1))]
            case "byte":
                place = draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:place] + draw(BYTES) + lines[at][place:]
            case "field":
                with contextlib.suppress(ValueError):
                    record = json.loads(lines[at].decode().removeprefix(TOKEN))
                    record[draw(FIELDS)] = draw(VALUES)
                    lines[at] = (TOKEN + json.dumps(record)).encode()
    return b"\n".join(lines) + draw(st.sampled_from([b"\n", b"", b"\r\n"]))


FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)


@FUZZ
@given(data=st.data())
def test_spoilt_logs(tmp_path, demo, data):
    path = tmp_path / "result_0.txt"
    path.write_bytes(data.draw(spoilt(demo)))
    findings = check_file(path)
    official = official_verdict(path)
    if official is not True:
        assert not passes(findings)
    # What we say on behalf of the official checker is what it says.
    theirs = [f for f in findings if f.severity == "error" and f.rule.startswith(("compliance/", "record/", "log/"))]
    if not theirs and not any(finding.rule == "sanity/init-time" for finding in findings):
        assert official is True, findings
    json.dumps([finding.message for finding in findings])


@FUZZ
@given(st.binary(max_size=400) | st.lists(BYTES | st.binary(max_size=6), max_size=60).map(b"".join))
@example(b":::MLLOG null\n")
@example(b':::MLLOG {"key": "a", "value": 1, "metadata": {}, "time_ms": NaN}\n')
@example(b':::MLLOG {"key": "eval_accuracy", "value": {"\\ud800": 1}, "metadata": {}, "time_ms": 1}\n')
def test_any_bytes(tmp_path, content):
    path = tmp_path / "result_0.txt"
    path.write_bytes(content)
    assert not passes(check_file(path))
    assert path.read_bytes() == content


@FUZZ
@given(st.binary(max_size=200).map(lambda noise: b"noise" + noise + b':::MLLOG {"key": 1}' + noise))
def test_the_official_parser_sees_the_same_lines(tmp_path, content):
    path = tmp_path / "result_0.txt"
    path.write_bytes(content)
    with open(path, encoding="latin-1") as file:
        official = strip_and_dedup(file)
    records, findings = read_records(path)
    seen = {record.line for record in records} | {f.line for f in findings if f.rule in ("record/json", "record/cut")}
    assert len(official) == len(seen)
