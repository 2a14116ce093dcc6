"""`check` and `score` of a large folder of result logs, against the official tools, one after the other.

    python -m benchmarks.submission

The logs are those of a package (default: the real ones in ../shared), repeated to so many, each with other output
between its records as in real logs, up to so many bytes: the round's two largest submitters had 640 logs of 205 MB.

ours      `mlperf-fast check` and `mlperf-fast score`, as a user calls them
official  mlperf_logging's package_checker and result_summarizer, a process for each package and tool; with the run
          count of dlrm put in, for lack of which they end in a traceback
All read the files warm. The official tools write scaling.json into the copies, so ours go first. CPU seconds are of all
processes, and steadier than wall time on a busy machine.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mlperf_fast.errors import UserError

from . import machine, options

SAMPLES = options.FOLDER.parent / "../shared/data/submission_logs"
DLRM = "from mlperf_logging.rcp_checker import rcp_checker; rcp_checker.submission_runs['training']['dlrm'] = 5;"
OFFICIAL = {
    "package_checker": DLRM + "from mlperf_logging.package_checker.package_checker import main; main()",
    "result_summarizer": DLRM + "from mlperf_logging.result_summarizer.result_summarizer import main; main()",
}


@dataclass(frozen=True)
class Cost:
    """Of one command or several in a row. mebibytes: of the largest process."""

    wall: float
    cpu: float
    mebibytes: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.wall + other.wall, self.cpu + other.cpu, max(self.mebibytes, other.mebibytes))


def packages(samples: Path, where: Path, logs: int, megabytes: float) -> list[Path]:
    """Writes packages that repeat the samples, until there are so many logs; returns their folders."""
    folders = sorted(path for path in samples.glob("results/*/*") if path.is_dir())
    if not folders:
        raise UserError(f"{samples}: no results/SYSTEM/BENCHMARK in it; name a package with --samples")
    made, roots = 0, []
    size = sum(path.stat().st_size for folder in folders for path in folder.glob("result_*.txt"))
    count = sum(len(list(folder.glob("result_*.txt"))) for folder in folders)
    filler = max(0, round(megabytes * 1e6 / logs - size / count))
    while made < logs:
        root = where / f"package{len(roots)}"
        roots.append(root)
        for folder in folders:
            files = sorted(folder.glob("result_*.txt"))
            if made + len(files) > logs:
                continue
            target = root / folder.relative_to(samples)
            target.mkdir(parents=True)
            for path in files:
                (target / path.name).write_bytes(between(path.read_bytes(), filler))
            made += len(files)
        if not (root / "results").is_dir():
            break  # what is missing is less than any benchmark's runs
        shutil.copytree(samples / "systems", root / "systems")
    return [root for root in roots if (root / "results").is_dir()]


def between(log: bytes, filler: int) -> bytes:
    """The log with so many bytes of other output, spread between its lines."""
    lines = log.splitlines(keepends=True)
    each = max(1, round(filler / max(1, len(lines))))
    text = (b"iteration   1000 loss 0.6931 lr 1.0e-02 images/s 27189.3 data 0.00412 | " * 20)[
        : max(0, each - 1)
    ] + b"\n"
    return b"".join(line + text for line in lines) if filler else log


# Starts a command, prints its cost. Its own process, since the memory of the one that starts it would be counted too.
LAUNCH = """
import json, os, subprocess, sys, time
begin = time.perf_counter()
with open("said.txt", "wb") as said:
    child = subprocess.Popen(sys.argv[1:], stdout=said, stderr=said)
    _, status, used = os.wait4(child.pid, 0)
cost = [time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]
print(json.dumps([os.waitstatus_to_exitcode(status), *cost]))
"""


def run(command: Sequence[str], where: Path, fine: Sequence[int]) -> Cost:
    """Runs one command to its end; its own processes count with it. RuntimeError for another exit code than `fine`."""
    launch = [sys.executable, "-c", LAUNCH, *command]
    answer = subprocess.run(launch, cwd=where, capture_output=True, text=True, check=True)
    code, *cost = json.loads(answer.stdout)
    if code not in fine:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(where / 'said.txt').read_text(errors='replace')[-2000:]}")
    return Cost(*cost)


def ours(roots: Sequence[Path], where: Path) -> Iterator[tuple[str, Cost]]:
    for name in ("check", "score"):
        yield name, run([sys.executable, "-m", "mlperf_fast", name, *map(str, roots)], where, (0, 1))


def official(roots: Sequence[Path], where: Path) -> Iterator[tuple[str, Cost]]:
    for name, code in OFFICIAL.items():
        total = Cost(0, 0, 0)
        for root in roots:
            extra = ["--csv", str(where / "scores.csv")] if name == "result_summarizer" else []
            total += run([sys.executable, "-c", code, str(root), "training", "2.0.0", *extra], where, (0,))
        yield name, total


def main() -> int:
    """Measures, prints, writes submission.json; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=Path, default=SAMPLES, help="package whose logs are repeated")
    parser.add_argument("--logs", type=options.positive, default=640, help="how many logs; default: 640")
    parser.add_argument("--megabytes", type=options.positive, default=200, help="of all logs; default: 200")
    parser.add_argument("--out", type=Path, help="folder for submission.json; default: results/MACHINE")
    chosen = parser.parse_args()
    cpu = torch.device("cpu")
    header, before = machine.header(cpu), machine.usage()
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(scratch)
        roots = packages(chosen.samples, where, chosen.logs, chosen.megabytes)
        files = [path for root in roots for path in root.glob("results/*/*/result_*.txt")]
        size = sum(path.stat().st_size for path in files)
        costs = {"ours": dict(ours(roots, where)), "official": dict(official(roots, where))}
    header["others during the run"] = machine.others(before)
    sums = {side: sum(parts.values(), Cost(0, 0, 0)) for side, parts in costs.items()}
    print(f"{len(files)} logs, {size / 1e6:.0f} MB, {len(os.sched_getaffinity(0))} cores; {header['processor']}")
    print(f"taken by others: {header['others during the run']}\n")
    print(f"{'':<28}{'wall s':>9}{'CPU s':>9}{'MiB':>7}")
    for side, parts in costs.items():
        for name, cost in {**parts, "both": sums[side]}.items():
            print(f"{side:<9} {name:<18}{cost.wall:>9.1f}{cost.cpu:>9.1f}{cost.mebibytes:>7.0f}")
    shares = {what: getattr(sums["ours"], what) / getattr(sums["official"], what) for what in ("wall", "cpu")}
    print(f"\nours takes {shares['wall']:.3f} of the official wall time, {shares['cpu']:.3f} of the CPU time")
    folder = chosen.out or options.FOLDER / "results" / machine.name(cpu)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "header": header,
        "logs": len(files),
        "bytes": size,
        "costs": {side: {name: asdict(cost) for name, cost in parts.items()} for side, parts in costs.items()},
        "ours_to_official": shares,
    }
    (folder / "submission.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {folder / 'submission.json'}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"submission: {error}", file=sys.stderr)
        sys.exit(2)
