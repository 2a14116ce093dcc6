"""One call for a GPU: builds, tests, checks and measures all that needs one, and stops within its budget.

    make gpu                                             in a checkout
    python -m benchmarks.gpu --out DIR --budget 540      the same, with a folder and seconds of its own

Needs CUDA with nvcc, Python 3.10 or later with torch, triton, pybind11, setuptools, pytest and hypothesis; no network,
and of our other dependencies none. Everything happens in build/gpu and DIR. The stages run in order of importance, each
in processes of its own; what fails, is missing or takes too long is reported, and the next stage goes on:

    build       _C and _cuda, for this card
    tests       everything marked gpu, and the kernels' own tests on the card
    steps       a training step of each workload: eager, mixed precision, captured as a CUDA graph
    bench       the microbenchmarks against the competitors that are installed
    memcheck    compute-sanitizer over the CUDA kernels' tests, then its racecheck and synccheck

DIR gets gpu.json, gpu.md (both whole at any moment) and gpu.log. Without a GPU the stages that need one are skipped
with the reason, and the rest is a rehearsal. Exit code: 0 when all that ran is fine, 1 otherwise, 2 for bad options.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from .stages import SHOWN, Done, Report, Stage, from_call, read_junit

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "build" / "gpu"
ON_THE_CARD = "gpu or cuda or triton"  # pytest -k: names and marks
NEED_NO_GPU = ("benchmarks", "emulate", "kernels", "packaging", "submission")
SANITIZED = (
    "cuda and matches_reference"  # the tests that reach every kernel: compute-sanitizer slows them 10 to 50 times
)
NO_GPU = "skipped: no CUDA device"
ASK_TORCH = """
import json, platform, torch
found = {"card": None, "torch": torch.__version__, "CUDA": torch.version.cuda, "python": platform.python_version()}
if torch.cuda.is_available():
    card = torch.cuda.get_device_properties(0)
    found |= {"card": card.name, "architecture": f"sm_{card.major}{card.minor}"}
    found |= {"memory": f"{card.total_memory >> 20} MiB", "multiprocessors": str(card.multi_processor_count)}
print(json.dumps(found))
"""
LEAST = 10  # seconds: with less left, a stage isn't begun


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, help="folder of the results; default: benchmarks/results/CARD")
    options.add_argument("--budget", type=seconds, default=540.0, help="seconds for everything; default: 540")
    chosen = options.parse_args()
    if not (ROOT / "pyproject.toml").is_file():
        options.error("this runs in a checkout only: the tests and the build are not installed with the package")
    card, facts = machine()
    report = Report(chosen.out or ROOT / "benchmarks" / "results" / folder_name(card), facts, chosen.budget)
    python = build(report)
    if python:
        run_stage(report, "tests", tests, python, card)
        run_stage(report, "steps", steps, python, card)
        run_stage(report, "bench", bench, python, card)
        for tool in ("memcheck", "racecheck", "synccheck"):
            run_stage(report, tool, sanitize, python, card)
    print(f"written: {report.folder / 'gpu.md'}, gpu.json and gpu.log")
    return 0 if all(stage.is_fine for stage in report.stages) else 1


def machine() -> tuple[str | None, dict[str, str]]:
    """The card's name (None: there is none) and what the report says of the machine. torch is asked in a process."""
    found: dict[str, str] = json.loads(output([sys.executable, "-c", ASK_TORCH]).splitlines()[-1])
    card = found.pop("card")
    triton = output([sys.executable, "-c", "import triton; print(triton.__version__)"])
    driver = output(["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"])
    nvcc = output(["nvcc", "--version"]) or output(["/usr/local/cuda/bin/nvcc", "--version"])
    facts = {"card": card or "none", **{name: value for name, value in found.items() if value}}
    facts |= {"triton": triton or "absent", "driver, clock, power": driver or "no nvidia-smi"}
    return card, facts | {"nvcc": nvcc.splitlines()[-1] if nvcc else "absent"}


def output(command: list[str]) -> str:
    """What a command prints; empty where it fails, hangs or isn't there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def build(report: Report) -> Path | None:
    """Builds in a virtual environment of its own that sees this interpreter's packages; returns its python, or None.

    --no-index and --no-build-isolation: with what is installed, without a network.
    """
    python = PLACE / "venv" / "bin" / "python"
    # An interpreter that is in a virtual environment itself would not be seen through --system-site-packages.
    link = (
        "import site, sys, sysconfig, pathlib;"
        "pathlib.Path(sysconfig.get_path('purelib'), 'outer.pth').write_text('\\n'.join(sys.argv[1:]))"
    )
    seen = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    install = [
        "-m",
        "pip",
        "install",
        "--no-index",
        "--no-build-isolation",
        "--no-deps",
        "--verbose",
        "--editable",
        ROOT,
    ]
    done = Done(0, 0.0, "")
    for command in (
        [sys.executable, "-m", "venv", "--without-pip", PLACE / "venv"],
        [python, "-c", link, *seen],
        [python, *install],
    ):
        step = report.call(command, 300)
        done = Done(step.code, done.seconds + step.seconds, step.output)
        if step.code != 0:
            break
    built = [line.strip() for line in done.output.splitlines() if "mlperf_fast: _" in line]
    stage = report.add(from_call("build", done, built=built))
    stage.notes = [f"- {line}" for line in built]
    return python if done.code == 0 else None


def run_stage(
    report: Report, name: str, stage: Callable[[Report, str, Path, str | None], Stage], python: Path, card: str | None
) -> None:
    """Adds the stage's line, whatever happens in it: the stages behind it are worth having."""
    if report.left < LEAST:
        report.add(Stage(name, f"not run: the budget of {report.budget:.0f} s is used up"))
        return
    try:
        report.add(stage(report, name, python, card))
    except (OSError, ValueError, KeyError, ElementTree.ParseError) as error:
        report.add(Stage(name, f"failed: {type(error).__name__}: {error}"))


def tests(report: Report, name: str, python: Path, card: str | None) -> Stage:
    """The tests that a GPU adds; without one they skip, which the rehearsal shows."""
    elsewhere = [f"--ignore=tests/{folder}" for folder in NEED_NO_GPU]
    return pytest_stage(report, name, [python], ["tests", *elsewhere, "-k", ON_THE_CARD], most=0.4 * report.budget)


def pytest_stage(report: Report, name: str, runner: list, arguments: list[str], most: float) -> Stage:
    file = report.folder / f"{name}.xml"
    file.unlink(missing_ok=True)
    command = [*runner, "-m", "pytest", "-q", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
    done = report.call([*command, f"--junit-xml={file}", *arguments], most)
    stage = from_call(name, done)
    if file.exists():
        counts, failures, skipped = read_junit(file)
        file.unlink()
        stage.facts = {**counts, "failures": failures, "reasons for skipping": skipped}
        stage.notes = [f"- {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"]
        stage.notes += [f"- failed: {line}" for line in failures[:SHOWN]]
        stage.notes += [f"- skipped: {line}" for line in skipped[:SHOWN]]
        if done.code is not None and counts["failed"] == 0:
            # pytest also fails where a test file needs a package that isn't there; those are named as skipped.
            stage.verdict = "ok" if done.code in (0, 1, 2) and counts["passed"] + counts["skipped"] else stage.verdict
    return stage


def steps(report: Report, name: str, python: Path, card: str | None) -> Stage:
    if card is None:
        return Stage(name, NO_GPU)
    modules = ("workload_steps", "steps")
    commands = [[python, "-m", f"benchmarks.{module}", "--device", "cuda", "--seconds", "2"] for module in modules]
    return figures_stage(report, name, *commands)


def bench(report: Report, name: str, python: Path, card: str | None) -> Stage:
    if card is None:
        return Stage(name, NO_GPU)
    return figures_stage(report, name, [python, "-m", "mlperf_fast", "bench", "--device", "cuda", "--seconds", "1"])


def figures_stage(report: Report, name: str, *commands: list) -> Stage:
    """Benchmarks; their JSON becomes the stage's facts and their tables the stage's notes."""
    place = PLACE / name
    shutil.rmtree(place, ignore_errors=True)
    done = Done(0, 0.0, "")
    for command in commands:
        one = report.call([*command, "--out", place], most=0.5 * report.left)
        done = Done(one.code if done.code == 0 else done.code, done.seconds + one.seconds, done.output + one.output)
    found = {path.stem: json.loads(path.read_text()) for path in sorted(place.rglob("*.json"))}
    stage = from_call(name, done, **found)
    for rows in found.values():
        stage.notes += table(rows["rows"])
    if done.code == 0 and not found:
        stage.verdict = "failed: it wrote no figures"
    return stage


def table(rows: list[dict]) -> list[str]:
    """Markdown: one line a row and competitor."""
    lines = ["| op | shape | dtype | competitor | ms | × ours |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        for competitor, found in row["results"].items():
            if isinstance(found, str):
                continue
            ratio = row["ratios"].get(competitor)
            cells = (row["op"], row["shape"], row["dtype"], competitor, f"{found['wall'][0]:.4g}")
            lines.append(f"| {' | '.join(cells)} | {f'{ratio:.2f}' if ratio else ''} |")
    return [*lines, ""]


def sanitize(report: Report, tool: str, python: Path, card: str | None) -> Stage:
    """NVIDIA's compute-sanitizer over the CUDA kernels' own tests. Its exit code 86 stands for findings."""
    if card is None:
        return Stage(tool, NO_GPU)
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if sanitizer is None:
        return Stage(
            tool, "skipped: no compute-sanitizer on PATH or in /usr/local/cuda/bin; it comes with CUDA's toolkit"
        )
    runner = [sanitizer, f"--tool={tool}", "--error-exitcode=86", "--print-limit=20", python]
    stage = pytest_stage(report, tool, runner, ["tests/ops", "-k", SANITIZED], most=0.6 * report.left)
    log = report.log.read_text(errors="replace")
    summaries = re.findall(r"========= (?:ERROR|RACECHECK) SUMMARY: (.*)", log[log.rfind("\n$ ") :])
    stage.facts["summary"] = summaries[-1] if summaries else "none"
    stage.notes.insert(0, f"- {stage.facts['summary']}")
    return stage


def folder_name(card: str | None) -> str:
    return re.sub(r"[^a-z0-9]+", "-", (card or "no-gpu").lower()).strip("-")


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"expected seconds, 1 or more, found {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
