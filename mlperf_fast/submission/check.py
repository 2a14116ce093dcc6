"""`mlperf-fast check`: is this result log fit for a submission?

One file at a time: the records (records.py), the official compliance check (official.py), and our own sanity rules
below, for what the rules demand and the official check doesn't look at. Checks of many logs together (number of runs,
seeds, reference convergence points, packages) are functions of the same form, from logs to findings.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mlperf_fast.submission.logs import read_log
from mlperf_fast.submission.records import Finding
from mlperf_fast.submission.tables import printable
from mlperf_fast.suite import RULESET


def check_file(path: str | os.PathLike[str]) -> list[Finding]:
    """All findings on one result log, by line. Never raises for what the file is or holds, and never changes it."""
    return list(read_log(path).findings)


def passes(findings: Sequence[Finding]) -> bool:
    """Whether a log with these findings passes: warnings don't count."""
    return all(finding.severity != "error" for finding in findings)


# --- the command ----------------------------------------------------------------------------------------------------


def main(paths: Sequence[str | os.PathLike[str]], as_json: bool = False) -> int:
    """Prints the findings and a verdict for each file. Exit code: 0 all pass, 1 some don't, 2 wrong usage.

    Wrong usage (no path, no such file, a folder) is said on stderr, and nothing is checked then.
    """
    wrong = [f"{printable(path)}: no such file" for path in paths if not os.path.lexists(path)]
    wrong += [
        f"{printable(path)}: a folder; name result logs, such as {printable(os.path.join(path, 'result_0.txt'))}"
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
        log = read_log(path)
        reports.append(
            {
                "file": printable(path),
                "passes": passes(log.findings),
                "benchmark": log.benchmark,
                "division": log.division,
                "findings": [asdict(finding) for finding in log.findings],
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
    what = " ".join(printable(report[part]) for part in ("division", "benchmark") if report[part])
    as_what = f" as {what}" if what else ""
    print(f"{file}: {verdict}{as_what}: {errors} error(s), {len(findings) - errors} warning(s)")
