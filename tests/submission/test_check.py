"""`check` gives the official verdict and names the line of each fault."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from result_logs import change, changed, line_of, moved, official_verdict, twice, two_on_a_line, without

from mlperf_fast.submission import check
from mlperf_fast.submission.advice import ADVICE, advice
from mlperf_fast.submission.check import check_file, passes
from mlperf_fast.suite import BENCHMARKS


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize("status", ["success", "aborted"])
def test_what_runlog_writes_passes_as_open(tmp_path, write_log, benchmark, status):
    path = write_log(tmp_path / "result_0.txt", benchmark, status)
    assert check_file(path) == []
    assert official_verdict(path) is True


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=lambda b: b.name)
def test_verdicts_on_real_logs_are_the_official_command_lines(tmp_path, samples, benchmark):
    logs = sorted(samples.glob(f"*/{benchmark.log_name}/result_*.txt"))
    picked = logs[2] if benchmark.name == "resnet" else logs[0]  # that one of ResNet's didn't converge
    command = [sys.executable, "-m", "mlperf_logging.compliance_checker", "--usage", "training", "--ruleset", "2.0.0"]
    done = subprocess.run([*command, str(picked)], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == (1 if benchmark.name == "resnet" else 0)
    assert passes(check_file(picked)) == (done.returncode == 0)


def test_the_real_logs(samples):
    failed = {}
    for path in sorted(samples.glob("*/*/result_*.txt")):
        errors = [finding for finding in check_file(path) if finding.severity == "error"]
        if errors:
            failed[f"{path.parent.name}/{path.name}"] = [finding.rule for finding in errors]
    assert failed == {"resnet/result_2.txt": ["compliance/eval_accuracy"]}


PLANTED = [
    # (what is done to a good log, rule, key whose line it should name or None, part of the message)
    (two_on_a_line, "record/two-on-a-line", "train_samples", "two records on one line"),
    (change("run_stop", metadata=None), "record/fields", "run_stop", "has no metadata"),
    (change("run_stop", metadata=[]), "record/fields", "run_stop", "metadata is []; expected an object"),
    (change("init_stop", time_ms=None), "record/fields", "init_stop", "has no time_ms"),
    (change("init_stop", time_ms="soon"), "record/fields", "init_stop", 'time_ms is "soon"'),
    (change("init_stop", time_ms=10**400), "record/fields", "init_stop", "expected milliseconds"),
    (change("cache_clear", key=7), "record/fields", None, "key is 7; expected a string"),
    (without("run_stop"), "compliance/run_stop", None, "exactly one record of run_stop, found 0"),
    (without("cache_clear"), "compliance/cache_clear", None, "at least one record of cache_clear, found 0"),
    (without("block_start"), "compliance/block_start", None, "block_start or epoch_start, found none"),
    (change("submission_division", value="medium"), "compliance/submission_division", "submission_division", "wants"),
    (change("submission_benchmark", value="go"), "compliance/submission_benchmark", "submission_benchmark", '"go"'),
    (change("submission_benchmark", value={}), "compliance/submission_benchmark", "submission_benchmark", "{}"),
    (change("submission_status", value=""), "compliance/submission_status", "submission_status", '""'),
    (change("run_stop", metadata={}), "compliance/run_stop", "run_stop", "no 'status' in its metadata"),
    (change("eval_accuracy", metadata={}), "compliance/eval_accuracy", "eval_accuracy", "no 'epoch_num'"),
    (change("eval_accuracy", value=1.0), "compliance/eval_accuracy", "eval_accuracy", "no evaluation passes"),
    (
        change("block_start", metadata={"first_epoch_num": 1, "epoch_count": "2"}),
        "compliance/block_start",
        "block_start",
        "",
    ),
    (moved("init_stop", "run_start"), "compliance/run_start", "run_start", "has no init_stop before it"),
    (moved("init_start", "init_stop"), "compliance/init_stop", "init_stop", "has no init_start before it"),
    (twice("eval_samples", value=3), "compliance/eval_samples", None, "found 2, with different values (3, 512)"),
    (change("eval_accuracy", value="high"), "compliance/stopped", None, "the official checker can't judge"),
    (change("eval_accuracy", value="high"), "sanity/evaluation-value", "eval_accuracy", 'eval_accuracy is "high"'),
    (moved("eval_accuracy", "run_stop"), "sanity/evaluation-outside-run", None, "logged after run_stop"),
    (moved("eval_accuracy", "init_stop"), "sanity/evaluation-outside-run", None, "logged before run_start"),
    (
        change("eval_accuracy", time_ms=1),
        "sanity/evaluation-outside-run",
        "eval_accuracy",
        "before run_start by its time",
    ),
    (change("eval_accuracy", time_ms=2**62), "sanity/evaluation-outside-run", "eval_accuracy", "after run_stop by its"),
    (
        change("submission_division", value="closed"),
        "sanity/closed-demo",
        "submission_platform",
        "that is open, never closed",
    ),
    (change("init_start", time_ms=1000), "sanity/init-time", "init_stop", "open allows less than 240"),
    (change("run_stop", time_ms=1000), "sanity/run-time", "run_stop", "earlier than run_start"),
    (change("run_stop", metadata={"status": "done"}), "sanity/status", "run_stop", "expected success or aborted"),
]


@pytest.mark.parametrize(("plant", "rule", "key", "message"), PLANTED)
def test_a_planted_fault_is_named_with_its_line(file, demo, plant, rule, key, message):
    lines = plant(demo)
    findings = check_file(file(lines))
    found = [finding for finding in findings if finding.rule == rule and message in finding.message]
    assert found, findings
    assert not passes(findings)
    if key:
        assert any(f'"key": "{key}"'.encode() in lines[finding.line - 1] for finding in found)


def test_the_length_of_the_initialization_is_said_once(file, demo):
    findings = check_file(file(changed(demo, "init_start", time_ms=1000)))
    assert [finding.rule for finding in findings if finding.severity == "error"] == ["sanity/init-time"]


def test_a_faulty_record_is_not_blamed_twice(file, demo):
    findings = check_file(file(changed(demo, "run_stop", metadata=None)))
    assert [finding.rule for finding in findings] == ["record/fields"]


@pytest.mark.parametrize("plant", [twice("seed"), twice("train_samples")])
def test_warnings_leave_the_verdict(file, demo, plant):
    findings = check_file(file(plant(demo)))
    assert [finding.severity for finding in findings] == ["warning"]
    assert findings[0].line
    assert passes(findings)


def test_an_evaluation_that_is_nan_is_a_warning(file, demo):
    nan = changed(demo, "eval_accuracy", value=float("nan"))
    findings = check_file(file([*nan[:-2], demo[line_of(demo, "eval_accuracy")], *nan[-2:]]))
    assert [(finding.rule, finding.severity) for finding in findings] == [("sanity/evaluation-value", "warning")]


def test_missing_unknown_and_doubled_tensors(file, samples):
    real = (samples / "dgxa100_ngc22.04_merlin_hugectr/dlrm/result_0.txt").read_bytes()
    path = file(real.replace(b'"embeddings"', b'"top_mlp_dense5"'))
    (finding,) = check_file(path)
    assert finding.rule == "compliance/weights_initialization"
    assert '1 missing ("embeddings"); 1 too many ("top_mlp_dense5")' in finding.message
    assert b"top_mlp_dense5" in path.read_bytes().splitlines()[finding.line - 1]


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command(tmp_path, demo, capsys):
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_bytes(b"\n".join(demo) + b"\n")
    bad.write_bytes(b"\n".join(without("run_stop")(twice("seed")(demo))) + b"\n")
    assert check.main([good]) == 0
    assert capsys.readouterr().out == f"{good}: passes ruleset 2.0.0 as open dlrm, 0 error(s), 0 warning(s)\n"
    assert check.main([good, bad]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"{good}: passes")
    assert out[1] == f"{bad} compliance/run_stop expected exactly one record of run_stop, found 0"
    assert out[2] == "    rule: mlperf-logging training_2.0.0/common.yaml"
    assert out[3].startswith("    do: ")
    assert out[4].startswith(f"{bad}:{line_of(demo, 'seed') + 2} sanity/seeds warning: 2 records of seed;")
    assert out[7] == f"{bad}: FAILS ruleset 2.0.0 as open dlrm, 1 error(s), 1 warning(s)"
    assert out[-1] == "2 checked: 1 pass, 1 fail"


def test_the_command_as_json(tmp_path, demo, capsys):
    path = tmp_path / "result_0.txt"
    path.write_bytes(b"\n".join(demo[:-1]) + b"\n")
    assert check.main([path], as_json=True) == 1
    everything = json.loads(capsys.readouterr().out)
    (entry,) = everything["reports"]
    assert (everything["ruleset"], everything["passes"]) == ("2.0.0", False)
    assert (entry["path"], entry["kind"], entry["passes"]) == (str(path), "log", False)
    assert (entry["benchmark"], entry["division"], entry["logs"]) == ("dlrm", "open", 1)
    (finding,) = entry["findings"]
    assert finding.pop("advice")
    assert finding == {
        "rule": "compliance/run_stop",
        "line": None,
        "message": "expected exactly one record of run_stop, found 0",
        "source": "mlperf-logging training_2.0.0/common.yaml",
        "severity": "error",
        "file": str(path),
    }


def test_of_many_alike_some_are_shown(tmp_path, demo, capsys):
    path = tmp_path / "result_0.txt"
    at = line_of(demo, "eval_accuracy")
    path.write_bytes(b"\n".join([*demo[:at], *[changed(demo, "eval_accuracy", metadata={})[at]] * 50, *demo[at:]]))
    assert check.main([path]) == 1
    out = capsys.readouterr().out
    assert out.count("no 'epoch_num' in its metadata") == check.MOST_SHOWN
    assert "and 40 more of compliance/eval_accuracy (--json has all)" in out


def test_names_that_a_terminal_would_obey_are_escaped(tmp_path, capsys):
    path = os.fsencode(tmp_path) + b"/\x1b[31m\xff.txt"
    with open(path, "wb") as file:
        file.write(b':::MLLOG {"key": "submission_benchmark", "value": "\\u001b[2J", "metadata": {}, "time_ms": 1}\n')
    for as_json in (False, True):
        assert check.main([os.fsdecode(path)], as_json) == 1
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert r"x1b[31m\udcff.txt" in out.replace("\\\\", "\\")


def test_every_rule_has_advice():
    """Each rule that the code can find has an entry, its own or its group's, and no entry is for one that isn't."""
    folder = Path(check.__file__).parent
    code = "".join(path.read_text() for path in folder.glob("*.py") if path.name != "advice.py")
    rules = set(re.findall(r'"((?:sanity|runs|seeds|rcp|system|package|log)/[a-z-]+)"', code))
    assert len(rules) > 45
    for rule in rules:
        assert advice(rule)
    entries = {rule for rule in ADVICE if "/" in rule and not rule.startswith(("compliance/", "record/"))}
    assert entries - rules <= {f"package/{key}" for key in ("division", "status", "submitter")}
    groups = {rule for rule in ADVICE if "/" not in rule}
    assert {rule for rule in rules if rule not in ADVICE and rule.partition("/")[0] not in groups} == set()
