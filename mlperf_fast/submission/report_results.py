"""What a report shows: every benchmark of every system at some paths, its logs read once, judged by the functions of
`check`, `rcp` and `score`."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlperf_fast.errors import UserError
from mlperf_fast.submission import check as checker
from mlperf_fast.submission import convergence, score
from mlperf_fast.submission.folders import Folder
from mlperf_fast.submission.logs import Log, common_benchmark, read_logs
from mlperf_fast.submission.tables import printable
from mlperf_fast.suite import BENCHMARKS, Benchmark


@dataclass(frozen=True, slots=True)
class Result:
    """One benchmark of one system, judged. system: a name that no other result of this benchmark has. counted: the logs
    whose times are in the score. verdict: of `check`."""

    system: str
    folder: Folder
    logs: tuple[Log, ...]
    counted: tuple[Log, ...]
    benchmark: Benchmark | None
    score: score.Score
    convergence: convergence.Convergence
    verdict: checker.Report

    @property
    def name(self) -> str:
        """Of the benchmark, as logs have it."""
        return self.benchmark.log_name if self.benchmark else "unknown"

    @property
    def title(self) -> str:
        """Model and benchmark."""
        if self.benchmark is None:
            return "Unknown benchmark"
        model = re.split(r" \(|[:,]", self.benchmark.model)[0]
        return f"{model} ({self.name})"

    @property
    def passes(self) -> bool:
        """Whether it could be submitted: checked, held against the reference, and scored."""
        return self.verdict.passes and self.convergence.passes and self.score.valid


@dataclass(frozen=True, slots=True)
class Everything:
    """What a page shows. results: benchmark by benchmark in the suite's order. others: verdicts on packages, folders
    and system descriptions."""

    results: tuple[Result, ...]
    others: tuple[checker.Report, ...]

    @property
    def passes(self) -> bool:
        """Whether all do."""
        return all(one.passes for one in self.results) and all(one.passes for one in self.others)


def gather(
    paths: Sequence[str | os.PathLike[str]],
    custom: str | os.PathLike[str] | None = None,
    *,
    bert_train_samples: bool = False,
) -> Everything:
    """Reads and judges the logs in these folders. custom: convergence points to take instead of the official ones.

    UserError for a path that is no folder, folders without any log, and points that can't be used.
    """
    todo = []
    for path in [os.fspath(path) for path in paths]:
        if os.path.lexists(path) and not os.path.isdir(path):
            raise UserError(f"{printable(path)}: a file; name its folder")
        todo.append(checker.look_at(path))
    # A folder that is named twice, by itself and by its system, is shown once.
    folders = {os.path.realpath(folder.path): folder for one in todo for folder in one.benchmarks}
    logs = {log.path: log for log in read_logs([path for folder in folders.values() for path in folder.logs])}
    if not logs:
        names = ", ".join(printable(path) for path in paths)
        raise UserError(f"{names}: no result_*.txt in this folder, nor where a package has them below it")
    found: list[Result] = []
    others: dict[tuple[str, str], checker.Report] = {}
    for one in todo:
        mine = replace(one, benchmarks=tuple(f for f in one.benchmarks if folders[os.path.realpath(f.path)] is f))
        for report in mine.reports(logs, bert_train_samples):
            if report.kind == "benchmark" and report.logs:
                folder = next(f for f in mine.benchmarks if f.path == report.path)
                found.append(_result(folder, [logs[path] for path in folder.logs], report, custom, bert_train_samples))
            else:
                others[report.path, report.kind] = report
    order = {bench.name: i for i, bench in enumerate(BENCHMARKS.values())}
    named = _with_names(found)
    named.sort(key=lambda one: order.get(one.benchmark.name if one.benchmark else "", len(order)))
    return Everything(tuple(named), tuple(others.values()))


def _result(
    folder: Folder,
    logs: Sequence[Log],
    verdict: checker.Report,
    custom: str | os.PathLike[str] | None,
    bert_train_samples: bool,
) -> Result:
    benchmark = common_benchmark(logs)
    found = convergence.against_reference(folder.path, logs, custom, bert_train_samples=bert_train_samples)
    counted = score.counted(logs, benchmark)
    return Result("", folder, tuple(logs), tuple(counted), benchmark, score.score(folder, logs), found, verdict)


def _with_names(results: Sequence[Result]) -> list[Result]:
    """With the system's name: in a package its own, if need be with the organization's, else the end of the path; the
    whole path where two would have one name."""
    choices = [_names(one.folder) for one in results]
    often = Counter((one.score.benchmark, name) for one, names in zip(results, choices, strict=True) for name in names)
    named = []
    for one, names in zip(results, choices, strict=True):
        alone = [name for name in names if often[one.score.benchmark, name] == 1]
        named.append(replace(one, system=printable(alone[0] if alone else names[-1])))
    return named


def _names(folder: Folder) -> list[str]:
    """Names for a folder's system, the shortest first."""
    parts = os.path.abspath(folder.path).split(os.sep)
    if not folder.in_package:
        return ["/".join(parts[-2:]), folder.path]
    organization = parts[-4]
    return [folder.system, f"{organization}/{folder.system}", folder.path]
