"""`mlperf-fast check`: is this fit for a submission? For a log, a benchmark's or system's folder, or a whole package.

What is applied, each in its own file: the records (records.py), the official compliance check (official.py), our own
rules on one log (sanity.py), the rules on a benchmark's runs with seeds and convergence (runs.py, rcp.py), system
descriptions (description.py), the package's tree (layout.py). Every log is read once. Nothing is ever written: the
official tools leave a scaling.json in the folders that they check.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlperf_fast.errors import UserError
from mlperf_fast.submission import description, folders, layout, runs
from mlperf_fast.submission.advice import advice
from mlperf_fast.submission.folders import Folder
from mlperf_fast.submission.logs import Log, common_benchmark, read_log, read_logs
from mlperf_fast.submission.records import Finding
from mlperf_fast.submission.tables import printable
from mlperf_fast.suite import RULESET

MOST_SHOWN = 10  # findings of one rule on one thing, for a person; --json has all
_ORDER = {"error": 0, "dropped": 1, "warning": 2}


@dataclass(frozen=True, slots=True)
class Report:
    """The verdict on one thing. kind: log, benchmark, system description, package, or folder (without any log)."""

    path: str
    kind: str
    findings: tuple[Finding, ...]
    benchmark: str | None = None
    division: str | None = None
    logs: int = 0

    @property
    def passes(self) -> bool:
        """Whether there is no error; warnings, and what a failed run that may fail left behind, don't count."""
        return all(finding.severity != "error" for finding in self.findings)


def check_file(path: str | os.PathLike[str]) -> list[Finding]:
    """All findings on one result log, by line. Never raises for what the file is or holds, and never changes it."""
    return list(read_log(path).findings)


def passes(findings: Sequence[Finding]) -> bool:
    """Whether a log with these findings passes."""
    return Report("", "log", tuple(findings)).passes


def check(paths: Sequence[str | os.PathLike[str]], *, bert_train_samples: bool = False) -> list[Report]:
    """A report on each thing at the paths: the tree, system descriptions, benchmarks, single logs.

    bert_train_samples: as the convergence test has it. UserError for a path that doesn't exist; whatever a file or
    folder holds is a finding.
    """
    todo = [look_at(os.fspath(path)) for path in paths]
    logs = {log.path: log for log in read_logs([log for one in todo for log in one.all_logs()])}
    return [report for one in todo for report in one.reports(logs, bert_train_samples)]


@dataclass(frozen=True, slots=True)
class Todo:
    """What a path leads to: verdicts that need no log, and what else is to be judged."""

    done: tuple[Report, ...] = ()
    descriptions: tuple[str, ...] = ()
    benchmarks: tuple[Folder, ...] = ()
    single: tuple[str, ...] = ()

    def all_logs(self) -> list[str]:
        """The paths of all logs that `reports` needs."""
        return [*self.single, *(log for folder in self.benchmarks for log in folder.logs)]

    def reports(self, logs: dict[str, Log], bert_train_samples: bool) -> Iterator[Report]:
        """The verdicts, `logs` being what was read, by path."""
        yield from self.done
        for path in self.descriptions:
            yield Report(path, "system description", tuple(description.check(path)))
        for folder in self.benchmarks:
            yield _benchmark(folder, [logs[path] for path in folder.logs], bert_train_samples)
        for path in self.single:
            log = logs[path]
            yield Report(path, "log", log.findings, log.benchmark, log.division, 1)


def look_at(path: str) -> Todo:
    """What is to be judged at a path. UserError if it doesn't exist."""
    if not os.path.lexists(path):
        raise UserError(f"{printable(path)}: no such file")
    if not os.path.isdir(path):
        return Todo(descriptions=(path,)) if path.endswith(".json") else Todo(single=(path,))
    if folders.is_package(path):
        benchmarks, descriptions, findings = layout.check(path)
        return Todo((Report(path, "package", tuple(findings)),), tuple(descriptions), tuple(benchmarks))
    found = list(folders.find(path))
    benchmarks = [one for one in found if isinstance(one, Folder)]
    unread = [one for one in found if not isinstance(one, Folder)]
    findings = [
        Finding("package/unreadable", None, f"can't be read: {why}", layout.TREE, file=folder) for folder, why in unread
    ]
    if not found:
        message = "no result_*.txt in this folder, nor where a package has them below it"
        findings = [Finding("package/no-logs", None, message, layout.TREE, file=path)]
    done = (Report(path, "folder", tuple(findings)),) if findings else ()
    return Todo(done, tuple(sorted({b.description for b in benchmarks if b.description})), tuple(benchmarks))


def _benchmark(folder: Folder, logs: Sequence[Log], bert_train_samples: bool) -> Report:
    benchmark = common_benchmark(logs)
    division = next((log.division for log in logs if log.division), None)
    name = benchmark.log_name if benchmark else None
    findings = runs.check(folder, logs, bert_train_samples=bert_train_samples)
    return Report(folder.path, "benchmark", tuple(findings), name, division, len(logs))


# --- the command ----------------------------------------------------------------------------------------------------


def main(paths: Sequence[str | os.PathLike[str]], as_json: bool = False, bert_train_samples: bool = False) -> int:
    """Prints findings and verdicts. Exit code: 0 all pass, 1 some don't. UserError (2) for a path that isn't there."""
    reports = check(paths, bert_train_samples=bert_train_samples)
    good = sum(report.passes for report in reports)
    if as_json:
        everything = {"ruleset": RULESET, "passes": good == len(reports), "reports": [_plain(one) for one in reports]}
        print(json.dumps(everything, indent=1))
    else:
        for report in reports:
            print(text(report))
        if len(reports) > 1:
            print(f"\n{len(reports)} checked: {good} pass, {len(reports) - good} fail")
    return 0 if good == len(reports) else 1


def _plain(report: Report) -> dict[str, Any]:
    findings = [
        {**asdict(finding), "file": printable(finding.file), "advice": advice(finding.rule)}
        for finding in report.findings
    ]
    return {**asdict(report), "path": printable(report.path), "passes": report.passes, "findings": findings}


def text(report: Report) -> str:
    """The findings by rule, errors first, with where the rule is written and what to do; last, the verdict."""
    groups: dict[tuple[int, str], list[Finding]] = defaultdict(list)
    for finding in report.findings:
        groups[_ORDER[finding.severity], finding.rule].append(finding)
    lines = []
    for (_, rule), found in sorted(groups.items()):
        lines += [_line(finding) for finding in found[:MOST_SHOWN]]
        if len(found) > MOST_SHOWN:
            lines.append(f"    and {len(found) - MOST_SHOWN:,} more of {rule} (--json has all)")
        sources = sorted({finding.source for finding in found})
        lines += [f"    rule: {'; '.join(sources)}", f"    do: {advice(rule)}"]
    counts = [sum(finding.severity == severity for finding in report.findings) for severity in _ORDER]
    what = " ".join(printable(part) for part in (report.division, report.benchmark) if part)
    said = [
        f"{'passes' if report.passes else 'FAILS'} ruleset {RULESET} as {what or report.kind}",
        f"{report.logs} logs" if report.kind == "benchmark" else "",
        f"{counts[0]} error(s)",
        f"{counts[1]} in runs that may fail" if counts[1] else "",
        f"{counts[2]} warning(s)",
    ]
    lines.append(f"{printable(report.path)}: {', '.join(part for part in said if part)}")
    return "\n".join(lines)


def _line(finding: Finding) -> str:
    place = printable(finding.file) if finding.line is None else f"{printable(finding.file)}:{finding.line}"
    note = {"error": "", "dropped": "run that may fail: ", "warning": "warning: "}[finding.severity]
    return f"{place} {finding.rule} {note}{printable(finding.message)}"
