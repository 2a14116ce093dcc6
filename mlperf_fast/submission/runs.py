"""The rules on one benchmark's runs together: how many, how many failed, seeds, what must be alike, convergence.

The official package checker tests count, failures, seeds and convergence; it ends in a traceback for dlrm, for mixed
batch sizes and for files it can't read, and passes over what is only suspicious.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlperf_fast.submission import convergence, description, rcp
from mlperf_fast.submission.folders import LOG_NAME, Folder, entries
from mlperf_fast.submission.logs import Log, Seed, common_benchmark
from mlperf_fast.submission.records import Finding, shown
from mlperf_fast.suite import BENCHMARKS, STATUSES, Benchmark

_PACKAGE = "mlperf-logging, package_checker"
_SEEDS = "mlperf-logging, seed_checker; training_rules.adoc v2.0, randomness"
_RESULTS = "training_rules.adoc v2.0, results"
_RCP = "training_rules.adoc v2.0, RCP; mlperf-logging, rcp_checker"
# What a failed run may leave behind; anything else in a log is no mere failure, and isn't excused.
_FAILURE = re.compile(
    r"compliance/.*|record/.*|log/empty"
    r"|sanity/(init-time|run-time|status|clock|epoch-num|evaluation-value|evaluation-outside-run)"
)


@dataclass(frozen=True, slots=True)
class Runs:
    """What the rules look at: a folder, its logs, the benchmark that most of them name, the system's description."""

    folder: Folder
    logs: Sequence[Log]
    benchmark: Benchmark | None
    described: dict[str, Any]
    bert_train_samples: bool = False

    @property
    def dropped(self) -> int:
        """How many runs leave the score at each end, and so may fail."""
        return self.benchmark.dropped if self.benchmark else 1

    @property
    def closed(self) -> bool:
        """Whether seeds and convergence are tested: if the description says closed (as officially), or any log."""
        return "closed" in {self.described.get("division"), *(log.division for log in self.logs)}

    @property
    def failed(self) -> list[Log]:
        """Without a valid result; in closed that includes a target that wasn't reached."""
        return [log for log in self.logs if not log.converged]

    def fault(self, rule: str, message: str, source: str, severity: str = "error", file: str = "") -> Finding:
        """A finding on the folder as a whole, or on another file."""
        return Finding(rule, None, message, source, severity, file or self.folder.path)


def check(folder: Folder, logs: Sequence[Log], *, bert_train_samples: bool = False) -> list[Finding]:
    """All findings on one benchmark's runs: the rules below, then each log's own. Logs in the order of the folder's.
    bert_train_samples: as for the convergence test.

    Errors of logs become `dropped` when so few runs failed that they leave the score anyway.
    """
    described = description.read(folder.description) if folder.description else {}
    known = described if isinstance(described, dict) else {}
    runs = Runs(folder, logs, common_benchmark(logs), known, bert_train_samples)
    found = [finding for rule in _RULES_OF_RUNS for finding in rule(runs)]
    excused = {log.path for log in runs.failed} if len(runs.failed) <= runs.dropped else set()
    for log in logs:
        for finding in log.findings:
            drop = finding.severity == "error" and log.path in excused and _FAILURE.fullmatch(finding.rule)
            found.append(replace(finding, severity="dropped") if drop else finding)
    return found


def _names(logs: Sequence[Log], most: int = 5) -> str:
    names = [os.path.basename(log.path) for log in logs]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# --- how many, and how many failed ----------------------------------------------------------------------------------


def _count(runs: Runs) -> Iterator[Finding]:
    if runs.benchmark is None:
        yield runs.fault("runs/benchmark", "no log names a benchmark of v2.0", _PACKAGE)
    elif len(runs.logs) != runs.benchmark.runs:
        message = f"{len(runs.logs)} logs; {runs.benchmark.log_name} demands exactly {runs.benchmark.runs}"
        yield runs.fault("runs/count", message, _PACKAGE)
    names = [re.fullmatch(r"result_0*(\d{1,9})\.txt", os.path.basename(log.path)) for log in runs.logs]
    numbers = sorted(int(match[1]) for match in names if match)
    if numbers not in (list(range(len(runs.logs))), list(range(1, len(runs.logs) + 1))):
        message = f"expected the logs to be result_0.txt to result_{len(runs.logs) - 1}.txt, found {_names(runs.logs)}"
        yield runs.fault("runs/names", message, "submission_rules.adoc v2.0, package", "warning")


def _failures(runs: Runs) -> Iterator[Finding]:
    failed, all_runs = runs.failed, len(runs.logs)
    if len(failed) > runs.dropped:
        message = f"{len(failed)} of {all_runs} runs failed, where {runs.dropped} may: {_names(failed)}"
        yield runs.fault("runs/failed", message, _RESULTS)
    elif failed:
        message = (
            f"{len(failed)} of {all_runs} runs failed, as {runs.dropped} may, counting as the slowest: {_names(failed)}"
        )
        yield runs.fault("runs/failed", message, _RESULTS, "warning")


def _copies(runs: Runs) -> Iterator[Finding]:
    """Two runs can't have begun and ended in the same milliseconds."""
    seen: dict[tuple[float, float], Log] = {}
    for log in runs.logs:
        if log.started is None or log.stopped is None:
            continue
        other = seen.setdefault((log.started, log.stopped), log)
        if other is not log:
            message = f"run_start and run_stop are those of {os.path.basename(other.path)}: one run, filed twice"
            yield runs.fault("runs/copied", message, _RESULTS, file=log.path)


# --- what must be alike ---------------------------------------------------------------------------------------------


def _alike(runs: Runs) -> Iterator[Finding]:
    """A failed log may lack what the others say; it may not say otherwise."""
    logs, batch = runs.logs, "error" if runs.closed else "warning"
    yield from _differing(runs, "runs/mixed", "submission_benchmark", [log.benchmark for log in logs], "error")
    yield from _differing(runs, "runs/mixed", "submission_division", [log.division for log in logs], "error")
    yield from _differing(runs, "runs/mixed-batch", "global_batch_size", [log.batch for log in logs], batch)
    for name in ("org", "platform", "status"):
        values = [getattr(log, name) for log in logs]
        yield from _differing(runs, "runs/mixed", f"submission_{name}", values, "warning")
    settings = [dict(log.settings) for log in logs]
    for key in sorted({key for one in settings for key in one} - {"global_batch_size"}):
        yield from _differing(runs, "runs/mixed-settings", key, [one.get(key) for one in settings], "warning")


def _differing(runs: Runs, rule: str, key: str, values: Sequence[Any], severity: str) -> Iterator[Finding]:
    by_value: dict[Any, list[Log]] = defaultdict(list)
    for log, value in zip(runs.logs, values, strict=True):
        if value is not None:
            by_value[value].append(log)
    if len(by_value) > 1:
        common, *others = sorted(by_value, key=lambda value: -len(by_value[value]))
        said = "; ".join(f"{shown(value)} in {_names(by_value[value])}" for value in others[:4])
        message = f"{key} is {shown(common)} in {len(by_value[common])} logs, but {said}"
        yield runs.fault(rule, message, _RESULTS, severity)


def _as_described(runs: Runs) -> Iterator[Finding]:
    """The folder, the system's description and the logs must tell the same story: each is read by another checker."""
    if not runs.folder.in_package:
        return
    name = os.path.basename(os.path.abspath(runs.folder.path))
    if name not in {bench.log_name for bench in BENCHMARKS.values()}:
        hint = "; RetinaNet's is called ssd" if name == "retinanet" else ""
        yield runs.fault("package/benchmark", f"v2.0 has no benchmark of this name{hint}; it is passed over", _PACKAGE)
    elif runs.benchmark and runs.benchmark.log_name != name:
        yield runs.fault("package/benchmark", f"the logs in it are of {runs.benchmark.log_name}", _PACKAGE)
    if runs.folder.description is None:
        message = f"its system has no description: systems/{runs.folder.system}.json"
        yield runs.fault("package/no-description", message, _PACKAGE)
        return
    for key, pairs in (
        ("division", {(log.division, runs.described.get("division")) for log in runs.logs}),
        ("status", {(log.status, runs.described.get("status")) for log in runs.logs}),
        ("submitter", {(log.org, runs.described.get("submitter")) for log in runs.logs}),
    ):
        for logged, described in sorted((a, b) for a, b in pairs if isinstance(a, str) and isinstance(b, str)):
            # Only a status that is one of the log's words can be compared: the field is free in v2.0.
            apart = logged.casefold() != described.casefold() and (key != "status" or described in STATUSES)
            if logged != described if key == "division" else apart:
                message = f"{key} is {shown(logged)} in the logs, {shown(described)} in {runs.folder.system}.json"
                yield runs.fault(f"package/{key}", message, _PACKAGE, "error" if key == "division" else "warning")


def _other_files(runs: Runs) -> Iterator[Finding]:
    try:
        names = [entry.name for entry in entries(runs.folder.path)]
    except OSError:
        return  # the folder's other findings say so
    if "scaling.json" in names:
        message = "scaling.json multiplies the score; today's checkers write it, in v2.0 only the review committee may"
        yield runs.fault("runs/scaling", message, _RESULTS, "warning")
    if "package_checker_params" in names:
        message = "package_checker_params can switch tests of the official checker off; here all are done"
        yield runs.fault("runs/bypass", message, _PACKAGE, "warning")
    others = [n for n in names if not LOG_NAME.fullmatch(n) and n not in ("scaling.json", "package_checker_params")]
    if others and runs.folder.in_package:
        some = ", ".join(shown(name) for name in others[:5])
        yield runs.fault("runs/other-files", f"{len(others)} files that are no logs: {some}", _PACKAGE, "warning")


# --- seeds and convergence ------------------------------------------------------------------------------------------


def _seeds(runs: Runs) -> Iterator[Finding]:
    """As the official seed checker of today decides; that of v2.0's deadline let pass what logs no seed at all."""
    if not runs.closed:
        return
    without = []
    seen: dict[Seed, Log] = {}
    for log in runs.logs:
        if any(finding.rule == "file" for finding in log.findings):
            continue  # that is an error already
        if any(finding.rule.startswith("record/") for finding in log.findings):
            yield runs.fault("seeds/unread", "a faulty record hides what seeds it has", _SEEDS, file=log.path)
            continue
        if not log.seeds:
            without.append(log)
        for seed in log.seeds:
            if seed.value is None or seed.file is None or seed.line is None:
                message = f"{seed}; expected a whole number, and file and lineno of where it was logged"
                yield runs.fault("seeds/value", message, _SEEDS, file=log.path)
            elif seed in seen:
                message = f"{seed}, as in {os.path.basename(seen[seed].path)}: every run needs its own"
                yield runs.fault("seeds/repeated", message, _SEEDS, file=log.path)
            else:
                seen[seed] = log
    if without:
        legal = "; legal at v2.0's deadline, refused by today's checker" if len(without) == len(runs.logs) else ""
        message = f"{len(without)} of {len(runs.logs)} logs have no seed{legal}: {_names(without)}"
        yield runs.fault("seeds/missing", message, _SEEDS)


def _convergence(runs: Runs) -> Iterator[Finding]:
    if not runs.closed or runs.benchmark is None or runs.benchmark.name == "minigo":
        return
    logs = [replace(log, division="closed") for log in runs.logs]
    if len({log.batch for log in logs if log.batch is not None}) > 1:
        return  # runs/mixed-batch says so
    found = convergence.against_reference(runs.folder.path, logs, bert_train_samples=runs.bert_train_samples)
    if found.untested:
        yield runs.fault("rcp/untested", found.untested, _RCP)
        return
    verdicts = [found.verdicts[method] for method in rcp.METHODS]
    failed = [verdict for verdict in verdicts if not verdict.passes]
    if not failed:
        return
    if failed[0].mean is None:
        yield runs.fault("rcp/untested", f"not tested: {failed[0].said.lower()}", _RCP)
        return
    said = "; ".join(f"{convergence.SAID[v.method]}: {convergence.sentence(v, runs.benchmark)}" for v in verdicts)
    mean = convergence.amount(failed[0].mean, runs.benchmark)
    missing = next((verdict.missing for verdict in failed if verdict.missing is not None), None)
    rule = "rcp/missing" if missing is not None else "rcp/too-fast"
    yield runs.fault(rule, f"mean {mean} {convergence.unit(runs.benchmark)} at batch {found.batch:g}; {said}", _RCP)


_RULES_OF_RUNS: tuple[Callable[[Runs], Iterator[Finding]], ...] = (
    _count,
    _failures,
    _copies,
    _alike,
    _as_described,
    _other_files,
    _seeds,
    _convergence,
)
