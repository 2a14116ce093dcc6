"""The measurement of `check` and `score` against the official tools runs, on a few made logs."""

import json
import subprocess
import sys
from pathlib import Path

import closed_logs

ROOT = Path(__file__).parents[2]


def test_it_repeats_the_logs_and_measures_both_sides(tmp_path):
    samples = closed_logs.package(tmp_path / "ajax", ("resnet",))
    command = [sys.executable, "-m", "benchmarks.submission", "--samples", samples, "--out", tmp_path]
    done = subprocess.run([*command, "--logs", "12", "--megabytes", "2"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "submission.json").read_text())
    assert found["logs"] == 10, "whole benchmarks only"
    assert 1.5e6 < found["bytes"] < 2.1e6
    assert set(found["costs"]["ours"]) == {"check", "score"}
    assert set(found["costs"]["official"]) == {"package_checker", "result_summarizer"}
    cpu = {side: sum(cost["cpu"] for cost in parts.values()) for side, parts in found["costs"].items()}
    assert found["ours_to_official"]["cpu"] == cpu["ours"] / cpu["official"]
    assert "ours takes" in done.stdout


def test_samples_that_are_none(tmp_path):
    command = [sys.executable, "-m", "benchmarks.submission", "--samples", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no results/SYSTEM/BENCHMARK in it" in done.stderr
