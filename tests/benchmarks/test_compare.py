"""compare.py: verdicts, exit codes, and what it says about bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlperf_fast.benchmarks import compare, report
from mlperf_fast.benchmarks.measure import Row, Timing

ROOT = Path(__file__).parents[2]
HEADER = {"torch": "2.13.0", "others during the run": "0.01 cores on average"}


def write(path: Path, times: dict[str, tuple[float, float, float] | str], machine: str = "a-machine", **header) -> Path:
    """A benchmark's JSON with one case; `times` are median, 20th and 80th percentile."""
    results = {
        name: one if isinstance(one, str) else Timing(one, one, samples=20, calls=3) for name, one in times.items()
    }
    row = Row("sgd", "2,000 small tensors", "fp32", 2, 12_000, 2_000, "triad", results, "cpp")
    report.write(path.parent, path.stem, [row], machine, HEADER | header, {"triad": 29.0})
    return path


@pytest.mark.parametrize(
    ("a", "b", "verdict", "code"),
    [
        ((2.0, 1.9, 2.1), (1.5, 1.4, 1.6), "improved", 0),
        ((2.0, 1.9, 2.1), (2.5, 2.4, 2.6), "slower", 1),
        ((2.0, 1.9, 2.1), (2.1, 2.0, 2.2), "within noise", 0),  # 5 % longer, but the percentiles overlap
        ((2.0, 1.9, 2.1), (2.0, 1.9, 2.1), "within noise", 0),
        ((2.0, 2.0, 2.0), (2.02, 2.02, 2.02), "slower", 1),  # a quiet machine shows one percent
        ((2.0, 1.0, 4.0), (3.9, 3.8, 4.1), "within noise", 0),  # a noisy one doesn't show a factor of two
    ],
)
def test_verdict_and_exit_code_follow_the_percentiles(a, b, verdict, code, tmp_path, capsys):
    before, after = write(tmp_path / "a.json", {"cpp": a}), write(tmp_path / "b.json", {"cpp": b})
    assert compare.main([str(before), str(after)]) == code
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.strip().startswith("cpp"))
    assert line.endswith(verdict)
    assert f"{100 * (b[0] / a[0] - 1):+.1f} %" in line
    assert f"{100 * (b[1] / a[2] - 1):+.1f} to {100 * (b[2] / a[1] - 1):+.1f} %" in line
    assert f"1 {verdict}" in printed.splitlines()[-1]


def test_rows_of_one_side_are_named_and_judged_by_nobody(tmp_path, capsys):
    before = write(tmp_path / "a.json", {"cpp": (2.0, 1.9, 2.1), "torch fused": (3.0, 2.9, 3.1), "apex": "not run: …"})
    after = write(tmp_path / "b.json", {"cpp": (2.0, 1.9, 2.1), "cuda": (0.1, 0.1, 0.1), "apex": "not run: …"})
    assert compare.main([str(before), str(after)]) == 0
    printed = capsys.readouterr().out
    assert "only in A: sgd: 2,000 small tensors, fp32, 2 threads: torch fused" in printed
    assert "only in B: sgd: 2,000 small tensors, fp32, 2 threads: cuda" in printed
    assert "apex" not in printed
    assert "0 improved, 0 slower, 1 within noise" in printed


def test_folders_go_file_by_file(tmp_path, capsys):
    for folder, ms in (("before", 2.0), ("after", 1.0)):
        write(tmp_path / folder / "sgd.json", {"cpp": (ms, ms, ms)})
        write(tmp_path / folder / f"only_{folder}.json", {"cpp": (ms, ms, ms)})
        (tmp_path / folder / "other.json").write_text("[1, 2]")
    assert compare.main([str(tmp_path / "before"), str(tmp_path / "after")]) == 0
    printed = capsys.readouterr().out
    assert "1 improved, 0 slower, 0 within noise" in printed
    assert "only_before.json: only in A" in printed
    assert "only_after.json: only in B" in printed
    assert "other.json: not what a benchmark writes" in printed
    assert compare.main([str(tmp_path / "after"), str(tmp_path / "before" / "sgd.json")]) == 1


def test_other_settings_and_a_busy_machine_are_noted(tmp_path, capsys):
    before = write(tmp_path / "a.json", {"cpp": (2.0, 1.9, 2.1)})
    busy = {"others during the run": "0.9 cores on average (busy: treat the figures as rough)"}
    after = write(tmp_path / "b.json", {"cpp": (2.0, 1.9, 2.1)}, **{"torch": "2.14.1", **busy})
    assert compare.main([str(before), str(after)]) == 0
    printed = capsys.readouterr().out
    assert "note: torch differs: 2.13.0 -> 2.14.1" in printed
    assert "b.json: others used the machine: 0.9 cores on average" in printed


GOOD = {"cpp": (2.0, 1.9, 2.1)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_text(path.read_text()[:300]), "can't be read as JSON, it may have been cut off"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "can't be read as JSON"),
        (lambda path: path.write_text(""), "can't be read as JSON"),
        (lambda path: path.write_text("[1, 2]"), "expected an object with `rows`"),
        (lambda path: path.unlink(), "there is no such file or folder"),
        (lambda path: write(path, GOOD, machine="another"), "measured on a-machine and"),
        (lambda path: edit(path, lambda found: found.update(format=0)), "expected format 1, found 0"),
        (lambda path: edit(path, lambda found: found["rows"][0].pop("results")), "not what a benchmark writes: KeyE"),
        (lambda path: edit(path, lambda found: found["rows"].append(7)), "not what a benchmark writes"),
        (
            lambda path: edit(path, lambda found: found["rows"][0]["results"]["cpp"].update(wall=[0, 0, 0])),
            "are no perc",
        ),
        (lambda path: write(path, {"cpp": (2.0, 3.0, 1.0)}), "are no percentiles"),
        (lambda path: write(path, {"cuda": (2.0, 1.0, 3.0)}), "have no case in common"),
    ],
)
def test_bad_input_gets_one_message_and_code_2(spoil, message, tmp_path, capsys):
    before, after = write(tmp_path / "a.json", GOOD), write(tmp_path / "b.json", GOOD)
    spoil(after)
    assert compare.main([str(before), str(after)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def edit(path: Path, change) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


@pytest.mark.parametrize("start", [["-m", "benchmarks.compare"], ["benchmarks/compare.py"]])
def test_as_a_module_and_as_a_file(start, tmp_path):
    """Neither needs torch: results are compared where they were copied to."""
    before, after = write(tmp_path / "a.json", GOOD), write(tmp_path / "b.json", {"cpp": (3.0, 2.9, 3.1)})
    command = [sys.executable, "-X", "importtime", *start, str(before), str(after)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "0 improved, 1 slower, 0 within noise" in done.stdout
    assert "torch" not in done.stderr
