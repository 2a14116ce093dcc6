"""`mlperf-fast check`: is this result log fit for a submission?

One file at a time: the records (records.py), the official compliance check (official.py), and our own sanity rules
below, for what the rules demand and the official check doesn't look at. Checks of many logs together (number of runs,
seeds, reference convergence points, packages) are functions of the same form, from logs to findings.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from mlperf_fast.submission.official import compliance
from mlperf_fast.submission.records import Finding, Record, is_number, read_records, shown
from mlperf_fast.suite import BENCHMARKS, INIT_LIMIT_MINUTES, RULESET

__all__ = ["Finding", "check_file", "main", "passes"]

_CLOCK = "training_rules.adoc v2.0, run time"


def check_file(path: str | os.PathLike[str]) -> list[Finding]:
    """All findings on one result log, by line. Never raises for what the file is or holds, and never changes it."""
    return _check(path)[1]


def passes(findings: Sequence[Finding]) -> bool:
    """Whether a log with these findings passes: warnings don't count."""
    return all(finding.severity != "error" for finding in findings)


def _check(path: str | os.PathLike[str]) -> tuple[list[Record], list[Finding]]:
    records, findings = read_records(path)
    if records:
        unread = {
            finding.line for finding in findings
        }  # a faulty record has its finding; what follows from it is noise
        own = [finding for rule in _SANITY for finding in rule(records)]
        said = {(finding.rule, finding.line) for finding in own}
        findings += [f for f in own + compliance(records) if f.line is None or f.line not in unread]
        # The official verdict on the length of the initialization doesn't say how long it was; ours does.
        findings = [
            f for f in findings if not (f.rule == "compliance/init_stop" and ("sanity/init-time", f.line) in said)
        ]
    return records, sorted(findings, key=lambda f: (f.line or 0, f.rule, f.message))


# --- sanity rules: records of one log -> findings ------------------------------------------------------------------


def _first(records: Sequence[Record], key: str) -> Record | None:
    return next((record for record in records if record.key == key), None)


def _value(records: Sequence[Record], key: str) -> Any:
    record = _first(records, key)
    return record.value if record else None


def _evaluations_outside_run(records: Sequence[Record]) -> Iterator[Finding]:
    """By place in the file and by time. Minigo may date run_stop back to the checkpoint that reached the target."""
    start, stop = _first(records, "run_start"), _first(records, "run_stop")
    if start is None or stop is None:
        return
    dated_back = _value(records, "submission_benchmark") == BENCHMARKS["minigo"].log_name
    for record in records:
        if record.key != "eval_accuracy":
            continue
        if not start.line <= record.line <= stop.line:
            side = "before run_start" if record.line < start.line else "after run_stop"
        elif record.time_ms < start.time_ms:
            side = "before run_start by its time"
        elif record.time_ms > stop.time_ms and not dated_back:
            side = "after run_stop by its time"
        else:
            continue
        yield Finding("sanity/evaluation-outside-run", record.line, f"eval_accuracy is logged {side}", _CLOCK)


def _evaluation_values(records: Sequence[Record]) -> Iterator[Finding]:
    two = _value(records, "submission_benchmark") == BENCHMARKS["maskrcnn"].log_name
    wanted = 'an object with numbers "BBOX" and "SEGM"' if two else "a number"
    for record in records:
        if record.key != "eval_accuracy":
            continue
        value = record.value
        values = [value.get("BBOX"), value.get("SEGM")] if two and isinstance(value, dict) else [value]
        if (two and not isinstance(value, dict)) or not all(is_number(v) or isinstance(v, float) for v in values):
            message = f"eval_accuracy is {shown(value)}; expected {wanted}"
            yield Finding("sanity/evaluation-value", record.line, message, "mlperf-logging, open_*.yaml")
        elif not all(is_number(v) for v in values):
            message = f"eval_accuracy is {shown(value)}: this run has diverged"
            yield Finding("sanity/evaluation-value", record.line, message, "mlperf-logging, open_*.yaml", "warning")


def _several_seeds(records: Sequence[Record]) -> Iterator[Finding]:
    seeds = [record for record in records if record.key == "seed"]
    if len(seeds) > 1:
        message = f"{len(seeds)} records of seed; expected one for the whole run, which its processes share"
        yield Finding("sanity/seeds", seeds[1].line, message, "mlperf-logging, seed_checker", "warning")


def _closed_demo(records: Sequence[Record]) -> Iterator[Finding]:
    platform, division = _first(records, "submission_platform"), _value(records, "submission_division")
    if platform and division == "closed" and re.search(r"\bdemo\b", str(platform.value), re.IGNORECASE):
        message = f"the platform {shown(platform.value)} says demo, but the division is closed; a demo is always open"
        yield Finding("sanity/closed-demo", platform.line, message, "training_rules.adoc v2.0, closed division")


def _init_time(records: Sequence[Record]) -> Iterator[Finding]:
    stop, division = _first(records, "init_stop"), _value(records, "submission_division")
    starts = [record.time_ms for record in records if record.key == "init_start"]
    if stop is None or not starts or division not in ("closed", "open"):
        return
    minutes, limit = (stop.time_ms - min(starts)) / 60e3, INIT_LIMIT_MINUTES[division]
    if minutes >= limit:
        message = f"initialization took {minutes:.1f} minutes; {division} allows less than {limit}"
        yield Finding("sanity/init-time", stop.line, message, "mlperf-logging, common.yaml; " + _CLOCK)


def _run_time(records: Sequence[Record]) -> Iterator[Finding]:
    start, stop = _first(records, "run_start"), _first(records, "run_stop")
    if stop and start and stop.time_ms < start.time_ms:
        seconds = (start.time_ms - stop.time_ms) / 1e3
        yield Finding("sanity/run-time", stop.line, f"run_stop is {seconds:.3f} s earlier than run_start", _CLOCK)
    if stop and "status" in stop.metadata and stop.metadata["status"] not in ("success", "aborted"):
        message = f"the status of run_stop is {shown(stop.metadata['status'])}; expected success or aborted"
        yield Finding("sanity/status", stop.line, message, _CLOCK)


_SANITY: tuple[Callable[[Sequence[Record]], Iterator[Finding]], ...] = (
    _evaluations_outside_run,
    _evaluation_values,
    _several_seeds,
    _closed_demo,
    _init_time,
    _run_time,
)


# --- the command ----------------------------------------------------------------------------------------------------


def main(paths: Sequence[str | os.PathLike[str]], as_json: bool = False) -> int:
    """Prints the findings and a verdict for each file. Exit code: 0 all pass, 1 some don't, 2 wrong usage.

    Wrong usage (no path, no such file, a folder) is said on stderr, and nothing is checked then.
    """
    wrong = [f"{_printable(path)}: no such file" for path in paths if not os.path.lexists(path)]
    wrong += [
        f"{_printable(path)}: a folder; name result logs, such as {_printable(os.path.join(path, 'result_0.txt'))}"
        for path in paths
        if os.path.isdir(path)
    ]
    if not paths:
        wrong = ["expected one result log or more, such as result_0.txt"]
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        return 2
    reports = []
    for path in paths:
        records, findings = _check(path)
        benchmark, division = _value(records, "submission_benchmark"), _value(records, "submission_division")
        reports.append(
            {
                "file": _printable(path),
                "passes": passes(findings),
                "benchmark": benchmark if isinstance(benchmark, str) else None,
                "division": division if isinstance(division, str) else None,
                "findings": [asdict(finding) for finding in findings],
            }
        )
        if not as_json:
            _print_report(reports[-1])
    if as_json:
        print(json.dumps({"ruleset": RULESET, "files": reports}, indent=2))
    return 0 if all(report["passes"] for report in reports) else 1


def _print_report(report: dict[str, Any]) -> None:
    file, findings = report["file"], report["findings"]
    for finding in findings:
        place = file if finding["line"] is None else f"{file}:{finding['line']}"
        note = "warning: " if finding["severity"] == "warning" else ""
        print(f"{place} {finding['rule']} {note}{finding['message']} [{finding['source']}]")
    errors = sum(finding["severity"] == "error" for finding in findings)
    verdict = f"{'passes' if report['passes'] else 'FAILS'} ruleset {RULESET}"
    what = " ".join(_printable(report[part]) for part in ("division", "benchmark") if report[part])
    as_what = f" as {what}" if what else ""
    print(f"{file}: {verdict}{as_what}: {errors} error(s), {len(findings) - errors} warning(s)")


def _printable(text: str | os.PathLike[str]) -> str:
    """A name for the terminal: control characters and broken encodings are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in os.fspath(text))
