"""`make gpu` without a GPU: what can run runs, the rest is skipped with its reason, and the budget holds."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mlperf_fast.benchmarks import gpu
from mlperf_fast.benchmarks.stages import Report, Stage, read_junit

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable


@pytest.fixture
def report(tmp_path):
    return Report(tmp_path, {"card": "none"}, budget=60)


def stages(folder: Path) -> dict[str, dict]:
    return {stage["name"]: stage for stage in json.loads((folder / "gpu.json").read_text())["stages"]}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a rehearsal is for machines without a GPU")
def test_rehearsal(tmp_path):
    """The whole call: it builds, the GPU's tests say why they skip, and what needs a card isn't pretended."""
    command = [PYTHON, "-m", "benchmarks.gpu", "--out", str(tmp_path), "--budget", "420"]
    # What `make` has compiled already is only linked again; tests/packaging builds from nothing, and `_cuda`.
    environment = {**os.environ, "MLPERF_FAST_CUDA": "0", "MLPERF_FAST_LEVELS": "generic"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=480, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = stages(tmp_path)
    assert found["build"]["verdict"] == "ok"
    assert any("_C: built for" in line for line in found["build"]["facts"]["built"])
    assert found["tests"]["facts"]["failed"] == 0
    assert any("no GPU" in reason for reason in found["tests"]["facts"]["reasons for skipping"])
    for name in ("steps", "bench", "memcheck", "racecheck", "synccheck"):
        assert found[name]["verdict"] == "skipped: no CUDA device"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.log", "gpu.md"]
    assert "| build | ok |" in (tmp_path / "gpu.md").read_text()


def test_a_command_past_its_limit_ends_with_its_children(report, tmp_path):
    mark = tmp_path / "alive"
    child = (
        f"import time, pathlib\nwhile True: pathlib.Path({str(mark)!r}).write_text(str(time.time())); time.sleep(0.05)"
    )
    parent = f"import subprocess, sys; print('started', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    done = report.call([PYTHON, "-c", parent], most=2)
    assert done.code is None
    assert done.verdict == "stopped"
    assert "started" in done.output
    ended = mark.read_text()
    time.sleep(0.3)
    assert mark.read_text() == ended


def test_what_fails_or_is_missing_is_reported_and_the_next_stage_runs(report, tmp_path):
    def breaks(report, name, python, card):
        raise ValueError("no such figure")

    def fails(report, name, python, card):
        return gpu.from_call(name, report.call([PYTHON, "-c", "import sys; print('why'); sys.exit(3)"], 30))

    def absent(report, name, python, card):
        return gpu.from_call(name, report.call(["no-such-program"], 30))

    def fine(report, name, python, card):
        return gpu.from_call(name, report.call([PYTHON, "-c", "print(1)"], 30))

    for name, stage in (("breaks", breaks), ("fails", fails), ("absent", absent), ("fine", fine)):
        gpu.run_stage(report, name, stage, Path(PYTHON), None)
    found = stages(tmp_path)
    assert [stage["verdict"] for stage in found.values()] == [
        "failed: ValueError: no such figure", "failed (3)", "failed: no-such-program: No such file or directory", "ok",
    ]  # fmt: skip
    assert "why" in (tmp_path / "gpu.md").read_text()


def test_nothing_begins_when_the_budget_is_used_up(tmp_path):
    report = Report(tmp_path, {}, budget=1)
    gpu.run_stage(report, "late", lambda *_: Stage("late", "ok"), Path(PYTHON), None)
    assert "budget of 1 s is used up" in stages(tmp_path)["late"]["verdict"]
    assert not report.stages[0].is_fine


def test_pyread_junit_name_failures_reasons_and_missing_packages(report, tmp_path):
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_one.py").write_text(
        "import pytest\ndef test_good(): assert True\ndef test_bad(): assert 1 == 2\n"
        "@pytest.mark.skip(reason='no card')\ndef test_skipped(): assert True\n"
    )
    (tests / "test_two.py").write_text("import a_package_that_is_not_there\ndef test_never(): assert True\n")
    stage = gpu.pytest_stage(report, "tests", [PYTHON], [str(tests), f"--rootdir={tests}"], most=60)
    assert (stage.facts["passed"], stage.facts["failed"], stage.facts["skipped"]) == (1, 1, 2)
    assert "test_bad: assert 1 == 2" in stage.facts["failures"][0]
    assert (
        "a_package_that_is_not_there is not installed, and a test file needs it (1)"
        in stage.facts["reasons for skipping"]
    )
    assert not stage.is_fine
    (tests / "test_one.py").write_text("def test_good(): assert True\n")
    assert gpu.pytest_stage(report, "tests", [PYTHON], [str(tests), f"--rootdir={tests}"], most=60).verdict == "ok"


def test_a_package_of_ours_that_is_missing_is_a_failure(tmp_path):
    file = tmp_path / "junit.xml"
    file.write_text(
        "<testsuites><testsuite><testcase classname='' name='tests.test_x'>"
        "<error message='collection failure'>E ModuleNotFoundError: No module named 'mlperf_fast.kernels'</error>"
        "</testcase></testsuite></testsuites>"
    )
    counts, failures, _ = read_junit(file)
    assert counts["failed"] == 1
    assert failures == ["::tests.test_x: collection failure"]


@pytest.mark.parametrize("value", ["0", "-5", "soon", "nan", "inf"])
def test_a_bad_budget_is_refused(value):
    done = subprocess.run(
        [PYTHON, "-m", "benchmarks.gpu", f"--budget={value}"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "expected seconds, 1 or more" in done.stderr
