"""Our own rules on one log, each on a log that only it objects to, and on one that comes close and is fine."""

import json
import re

import closed_logs
import pytest

from mlperf_fast.submission.check import check_file
from mlperf_fast.submission.records import TOKEN


def found(path):
    return {(finding.rule, finding.severity): finding.message for finding in check_file(path)}


def edit(path, key, number=0, **fields):
    """Changes the fields of the number-th record of a key; returns the path."""
    lines = path.read_text().splitlines()
    at = [i for i, line in enumerate(lines) if f'"key": "{key}"' in line][number]
    lines[at] = TOKEN + json.dumps(json.loads(lines[at].removeprefix(TOKEN)) | fields)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def log(tmp_path):
    def write(benchmark="resnet", **options):
        return closed_logs.write(tmp_path / "result_0.txt", benchmark, **options)

    return write


@pytest.mark.parametrize(
    ("benchmark", "options"),
    [
        ("resnet", {}),
        ("retinanet", {"batch": 256, "epochs": 5}),
        ("bert", {"batch": 448, "epochs": 2_700_000}),
        ("dlrm", {"batch": 65536, "epochs": 1.9}),
        ("unet3d", {"batch": 80, "epochs": 1600}),
    ],
)
def test_a_good_closed_log_has_no_finding(log, benchmark, options):
    assert found(log(benchmark, **options)) == {}


START = 10**12  # run_start of these logs, which last 30 minutes


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (("eval_accuracy", 3, {"time_ms": START + 60_000}), ("sanity/clock", "error")),  # behind two later evaluations
        (("seed", 0, {"time_ms": START - 120_000}), ("sanity/clock-order", "warning")),
        (("init_stop", 0, {"time_ms": START - 500}), None),
        (("run_start", 0, {"time_ms": START + 6 * 60_000}), ("sanity/pause", "warning")),
    ],
)
def test_the_clock(log, change, rule):
    key, number, fields = change
    findings = found(edit(log(), key, number, **fields))
    findings.pop(("sanity/evaluation-outside-run", "error"), None)  # a run that starts later leaves some behind
    assert (rule in findings) if rule else not findings, findings


def test_two_run_starts_are_no_clock(log):
    path = log()
    lines = path.read_text().splitlines()
    starts = [line for line in lines if '"run_start"' in line]
    path.write_text("\n".join([*lines, *starts]))
    assert "2 records of run_start" in found(path)["sanity/clock", "error"]


def test_minigo_may_date_run_stop_back(samples):
    path = next(iter(sorted(samples.glob("*/minigo/result_0.txt"))))
    times = [int(match) for match in re.findall(r'"time_ms": (\d+)', path.read_text(encoding="latin-1"))]
    assert times != sorted(times)
    assert found(path) == {}


@pytest.mark.parametrize(
    ("benchmark", "options", "dropped", "message"),
    [
        ("resnet", {}, 3, "no evaluation between 12 and 20; the reference evaluates every 4"),
        ("retinanet", {"batch": 256, "epochs": 5}, 0, "no evaluation between 0 and 2; the reference evaluates every 1"),
        ("bert", {"batch": 448, "epochs": 2_700_000}, 1, "no evaluation between 150000 and 450000"),
        ("dlrm", {"batch": 65536, "epochs": 1.9}, 4, "no evaluation between 1.2 and 1.3"),
        ("unet3d", {"batch": 80, "epochs": 1600}, 0, "no evaluation between 1029 and 1100"),
    ],
)
def test_an_evaluation_left_out(log, benchmark, options, dropped, message):
    path = log(benchmark, **options)
    lines = path.read_text().splitlines()
    at = [i for i, line in enumerate(lines) if '"eval_accuracy"' in line]
    if benchmark == "unet3d":  # it is first evaluated late: leave out several
        for i in at[4:0:-1]:
            del lines[i]
    del lines[at[dropped]]
    path.write_text("\n".join(lines))
    assert found(path)["sanity/evaluation-interval", "warning"].startswith(message)


def test_bert_counts_samples(log):
    path = log("bert", batch=448, epochs=2_700_000)
    path.write_text(re.sub(r'"epoch_num": \d+', '"epoch_num": 3', path.read_text()))
    assert "bert's must count samples" in found(path)["sanity/epoch-num", "warning"]
    assert ("sanity/epoch-num", "error") in found(edit(log(), "eval_accuracy", metadata={"epoch_num": "one"}))


@pytest.mark.parametrize(
    "value",
    [
        "TBD", "todo", " ", "N/A", "none", "x" * 5, "<your organization>", "1xSUBMISSION_PLATFORM_PLACEHOLDER",
        "${MLPERF_SUBMISSION_ORG}", "$MLPERF_SUBMISSION_ORG", "{{ org }}", "my_company", "Submitter",
        "reference_implementation",
    ],
)  # fmt: skip
def test_placeholders(log, value):
    for key in ("submission_org", "submission_platform"):
        assert ("sanity/placeholder", "error") in found(edit(log(), key, value=value))


@pytest.mark.parametrize(
    "value", ["NVIDIA", "Org-X Computing", "2xDGX H100", "system76 Thelio", "TBDgx", "Platform9 node"]
)
def test_names_that_are_names(log, value):
    assert found(edit(log(), "submission_platform", value=value)) == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("submission_platform", "demo: two cores"), ("submission_org", "Demo Inc"), ("preset", "demo"),
        ("dataset", "synthetic"), ("data_source", "generated clicks"), ("use_synthetic_data", True), ("fake_data", 1),
    ],
)  # fmt: skip
def test_made_up_data_is_never_closed(log, key, value):
    path = log()
    if key.startswith("submission"):
        edit(path, key, value=value)
    else:
        record = {"key": key, "value": value, "time_ms": START + 30 * 60_000, "metadata": {}}
        path.write_text(path.read_text() + TOKEN + json.dumps(record) + "\n")
    assert ("sanity/closed-demo", "error") in found(path)
    if key in ("use_synthetic_data", "fake_data"):
        path.write_text(path.read_text().replace(f'"{key}", "value": {json.dumps(value)}', f'"{key}", "value": false'))
        assert found(path) == {}


@pytest.mark.parametrize(("value", "fine"), [(True, True), (None, True), (False, False), (0, False), ("no", False)])
def test_caches_must_have_been_dropped(log, value, fine):
    assert (found(edit(log(), "cache_clear", value=value)) == {}) == fine


def test_counts_of_batches_are_no_counts_of_items(log):
    findings = found(edit(log(), "eval_samples", value=97))
    assert findings["sanity/evaluation-items", "warning"].endswith("the benchmark's evaluation set has 50,000")
