"""One result log, read once: the facts that later steps need, and everything that is wrong with it.

`read_log` does one file, `read_logs` many, in processes over the cores. A `Log` is small whatever the file's size, so
that a package of hundreds of logs fits into memory.
"""

import math
import multiprocessing
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any

from mlperf_fast.submission.game import Game, final_game
from mlperf_fast.submission.official import compliance
from mlperf_fast.submission.phases import NO_PHASES, Phases, phases
from mlperf_fast.submission.records import MAX_FAULTS, Finding, Record, is_number, read_records, shown
from mlperf_fast.submission.sanity import number, sanity, text
from mlperf_fast.suite import BENCHMARKS, CLOSED_KEYS, Benchmark

FEW = 16  # logs; so many are read in this process, since starting others takes longer


@dataclass(frozen=True, slots=True)
class Seed:
    """A seed and where it was logged; None for a value that is no whole number, or a place that is missing."""

    file: str | None
    line: str | None
    value: int | None

    def __str__(self) -> str:
        return f"seed {self.value} at {self.file}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What one log says. `None` where it says nothing usable, which then has its finding.

    complies: the official compliance check's verdict. benchmark: as the log calls it (`ssd`, not retinanet).
    outcome: the status of run_stop. started, stopped: run_start and run_stop, milliseconds since 1970, the pair that
    the official summarizer takes. converged_at: `epoch_num` of the last evaluation before run_stop, rounded to three
    digits as the official convergence check does. curve: (epoch_num, eval_accuracy) of each evaluation. target: what a
    log of ours says it trained for. phases: where the time went. game: one that Minigo played at its end. settings:
    hyperparameter -> its value as text.
    """

    path: str
    findings: tuple[Finding, ...]
    complies: bool = False
    benchmark: str | None = None
    division: str | None = None
    org: str | None = None
    platform: str | None = None
    status: str | None = None
    outcome: str | None = None
    started: float | None = None
    stopped: float | None = None
    batch: float | None = None
    train_samples: float | None = None
    converged_at: float | None = None
    curve: tuple[tuple[float | None, float | dict[str, float | None] | None], ...] = ()
    target: float | None = None
    phases: Phases = NO_PHASES
    game: Game | None = None
    seeds: tuple[Seed, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def minutes(self) -> float | None:
        """Time to train."""
        # Divided as the official summarizer does, so that the last digit is the same.
        return None if self.started is None or self.stopped is None else (self.stopped - self.started) / 60 / 1000

    @property
    def converged(self) -> bool:
        """Whether the run counts with its time: it complies (in closed, that is to reach the target) and says so."""
        return self.complies and self.outcome == "success" and self.minutes is not None


def read_log(path: str | os.PathLike[str]) -> Log:
    """Reads and checks one log. Never raises for what the file is or holds, and never changes it."""
    path = os.fspath(path)
    try:
        return _read_log(path)
    except (Exception, RecursionError, MemoryError) as error:
        message = f"this check itself failed with {type(error).__name__}: {shown(str(error))}; please report it"
        return Log(path=path, findings=(Finding("log/unjudged", None, message, "mlperf_fast", file=path),))


def common_benchmark(logs: Sequence[Log]) -> Benchmark | None:
    """The benchmark that most of the logs name; None if that is none of v2.0."""
    names = statistics.multimode(log.benchmark for log in logs if log.benchmark)
    return next((b for b in BENCHMARKS.values() if b.log_name in names[:1]), None)


def read_logs(paths: Sequence[str], processes: int | None = None) -> list[Log]:
    """`read_log` of each, in that order. processes: as many as there are cores, unless there are few logs."""
    if processes is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        processes = min(cores, math.ceil(len(paths) / FEW))
    if processes <= 1:
        return [read_log(path) for path in paths]
    # Forked children needn't import anything. They start before this process has threads of its own.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        try:
            return list(pool.map(read_log, paths, chunksize=4))
        except BrokenProcessPool:  # killed from outside, for its memory most often: go on with one file at a time
            return [read_log(path) for path in paths]


def _read_log(path: str) -> Log:
    records, findings = read_records(path)
    official = compliance(records) if records else []
    complies = bool(records) and not any(f.severity == "error" for f in [*findings, *official])
    if records:
        # A faulty record has its finding; what follows from it is noise.
        unread = {finding.line for finding in findings}
        own = sanity(records)
        findings += [f for f in own + official if f.line is None or f.line not in unread]
        # The official verdict on the length of the initialization doesn't say how long it was; ours does.
        said = {finding.line for finding in own if finding.rule == "sanity/init-time"}
        findings = [f for f in findings if not (f.rule == "compliance/init_stop" and f.line in said)]
    ordered = sorted(findings, key=lambda f: (f.line or 0, f.rule, f.message))
    if len(ordered) > MAX_FAULTS:
        more = f"{len(ordered) - MAX_FAULTS:,} more findings: mend what stands here first"
        ordered = [*ordered[:MAX_FAULTS], Finding("log/many", None, more, "mlperf_fast")]
    started, stopped = _clock(records)
    outcome, converged_at = _convergence(records)
    return Log(
        path=path,
        findings=tuple(replace(finding, file=path) for finding in ordered),
        complies=complies,
        benchmark=text(records, "submission_benchmark"),
        division=text(records, "submission_division"),
        org=text(records, "submission_org"),
        platform=text(records, "submission_platform"),
        status=text(records, "submission_status"),
        outcome=outcome,
        started=started,
        stopped=stopped,
        batch=_last_number(records, "global_batch_size"),
        train_samples=_last_number(records, "train_samples"),
        converged_at=converged_at,
        curve=tuple(
            (number(r.metadata.get("epoch_num")), _quality(r.value)) for r in records if r.key == "eval_accuracy"
        ),
        target=_last_number(records, "target"),
        phases=phases(records, started, stopped),
        game=final_game(records),
        seeds=tuple(_seed(record) for record in records if record.key == "seed"),
        settings=_settings(records),
    )


def _last_number(records: Sequence[Record], key: str) -> float | None:
    values = [number(record.value) for record in records if record.key == key]
    return values[-1] if values else None


def _seed(record: Record) -> Seed:
    """The value as the official checker's int() takes it."""
    file, line = record.metadata.get("file"), record.metadata.get("lineno")
    try:
        value = int(record.value)
    except (TypeError, ValueError, OverflowError):
        value = None
    return Seed(None if file is None else shown(file, 500), None if line is None else shown(line, 500), value)


def _quality(value: Any) -> float | dict[str, float | None] | None:
    if isinstance(value, dict):
        return {metric: number(value.get(metric)) for metric in BENCHMARKS["maskrcnn"].target}
    return number(value)


def _clock(records: Sequence[Record]) -> tuple[float | None, float | None]:
    """The last run_start before the first run_stop, and that."""
    started = stopped = None
    for record in records:
        if record.key == "run_start":
            started = record.time_ms
        elif record.key == "run_stop":
            stopped = record.time_ms
        if started is not None and stopped is not None:
            break
    return started if is_number(started) else None, stopped if is_number(stopped) else None


def _convergence(records: Sequence[Record]) -> tuple[str | None, float | None]:
    """The status of the last run_stop, and epoch_num of the last evaluation before it."""
    epoch = outcome = converged_at = None
    for record in records:
        if record.key == "eval_accuracy":
            epoch = number(record.metadata.get("epoch_num"))
        elif record.key == "run_stop":
            outcome = record.metadata.get("status")
            converged_at = None if epoch is None else round(epoch, 3)
    return outcome if isinstance(outcome, str) else None, converged_at


def _settings(records: Sequence[Record]) -> tuple[tuple[str, str], ...]:
    log_name = text(records, "submission_benchmark")
    benchmark = next((b for b in BENCHMARKS.values() if b.log_name == log_name), None)
    if benchmark is None:
        return ()
    keys = {*CLOSED_KEYS, *(key for keys in benchmark.closed_keys.values() for key in keys)} - {"seed"}
    # The games of Minigo are counted anew in each generation: they aren't a setting.
    keys.discard("actual_selfplay_games_per_generation")
    return tuple(sorted({record.key: shown(record.value) for record in records if record.key in keys}.items()))
