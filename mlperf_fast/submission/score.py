"""`mlperf-fast score`: what a benchmark's runs are worth, by the rules of v2.0.

The score is the mean time to train in minutes, after the fastest and the slowest runs have left it (one each, unet3d
four); a run that failed counts as the slowest. A time says nothing of why: it is the samples that the run needed
(epochs, which chance and hyperparameters decide) over the samples per second (which the system decides), so both are
shown apart. Times come from the clock in the log: evaluations are within.
"""

import csv
import io
import json
import math
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlperf_fast.errors import UserError
from mlperf_fast.submission import description, folders
from mlperf_fast.submission.logs import Log, common_benchmark, read_logs
from mlperf_fast.submission.records import shown
from mlperf_fast.submission.sanity import BERT_FEWEST_SAMPLES
from mlperf_fast.submission.tables import figure, printable, table
from mlperf_fast.suite import BENCHMARKS, RULESET, Benchmark


@dataclass(frozen=True, slots=True)
class Score:
    """One benchmark of one system. Times in minutes; None where there is none.

    minutes: the score; None if more runs failed than the rules allow, or too few are left. valid: whether it could be
    submitted, being from as many runs as are demanded. spread: the standard deviation of the times that converged, as a
    part of their mean. epochs: the olympic mean that the convergence check takes (samples for bert, 1 + the fraction of
    an epoch for dlrm). samples_per_second: mean of the runs in the score. accelerators: of the whole system, as its
    description says. notes: what a reader must know of the score.
    """

    folder: str
    system: str
    benchmark: str | None
    division: str | None
    runs: int
    runs_demanded: int | None
    failed: int
    minutes: float | None
    valid: bool
    fastest: float | None
    slowest: float | None
    spread: float | None
    epochs: float | None
    samples_per_second: float | None
    accelerators: int | None
    samples_per_second_per_accelerator: float | None
    scaling_factor: float | None
    notes: tuple[str, ...]


def olympic_minutes(times: Sequence[float], failed: int, dropped: int) -> float | None:
    """The mean of the times without the `dropped` fastest and slowest, or None where there is no score.

    times: of the runs that converged. failed: how many didn't; they are slower than any, and are dropped first.
    """
    counted = sorted(times)[dropped : len(times) - (dropped - failed)]
    # Summed as the official summarizer does, so that the last digit is the same.
    return sum(counted) * 1.0 / len(counted) if counted and failed <= dropped else None


def epochs_to_converge(logs: Sequence[Log], dropped: int) -> float | None:
    """The mean over the runs without `dropped` at each end; a run that failed took for ever."""
    epochs = sorted(log.converged_at if log.converged and log.converged_at else math.inf for log in logs)
    counted = epochs[dropped : len(epochs) - dropped]
    return statistics.fmean(counted) if counted and math.isfinite(counted[-1]) else None


def median_window(logs: Sequence[Log], runs: int, dropped: int) -> Sequence[Log]:
    """Which `runs` of more logs count: of all windows over them, in order of start, the one with the median score.

    A log that doesn't say when it started stands behind the one before it. A window without a score is slower than
    any; of an even number of windows the slower one in the middle counts. The rules forbid to choose the best.
    """
    starts, latest = [], -math.inf
    for log in logs:
        latest = latest if log.started is None else log.started
        starts.append(latest)
    ordered = [log for _, log in sorted(zip(starts, logs, strict=True), key=lambda pair: pair[0])]
    windows = [ordered[first : first + runs] for first in range(len(ordered) - runs + 1)]

    def minutes(window: Sequence[Log]) -> float:
        times = [log.minutes for log in window if log.converged and log.minutes is not None]
        found = olympic_minutes(times, runs - len(times), dropped)
        return math.inf if found is None else found

    return sorted(windows, key=minutes)[len(windows) // 2]


def samples(log: Log, benchmark: Benchmark) -> float | None:
    """Samples that a run trained on until it converged; None where the log doesn't tell."""
    epochs = log.converged_at
    if epochs is None or benchmark.name == "minigo":  # its samples are games that it makes itself
        return None
    if benchmark.name == "bert":
        # Counted in samples; a log that counts epochs has the samples elsewhere, as the official tools allow.
        return epochs if epochs >= BERT_FEWEST_SAMPLES else log.train_samples
    if benchmark.name == "dlrm":
        epochs -= 1
    # Real closed logs hold other counts under train_samples (batches, samples trained): the benchmark's own is right.
    items = benchmark.train_samples if log.division == "closed" else log.train_samples
    items = items or log.train_samples
    return epochs * items if items else None


def counted(logs: Sequence[Log], benchmark: Benchmark | None) -> list[Log]:
    """The runs whose times make the score, fastest first: of the window that counts, without those at both ends."""
    dropped = benchmark.dropped if benchmark else 1
    if benchmark and len(logs) > benchmark.runs:
        logs = median_window(logs, benchmark.runs, dropped)
    good = sorted((log for log in logs if log.converged), key=lambda log: log.minutes or 0)
    return good[dropped : max(0, len(good) - max(0, dropped - (len(logs) - len(good))))]


def score(folder: folders.Folder, logs: Sequence[Log]) -> Score:
    """The score of one benchmark's logs."""
    benchmark = common_benchmark(logs)
    dropped = benchmark.dropped if benchmark else 1
    launched, runs = logs, benchmark.runs if benchmark else len(logs)
    if len(launched) > runs:
        logs = median_window(launched, runs, dropped)
    good = sorted((log for log in logs if log.converged), key=lambda log: log.minutes or 0)
    times = [log.minutes for log in good if log.minutes is not None]
    failed = len(logs) - len(good)
    same = len({(log.benchmark, log.division) for log in launched if log.benchmark}) <= 1
    minutes = olympic_minutes(times, failed, dropped) if benchmark and same else None
    speed = None
    if benchmark and minutes is not None:
        inside = counted(logs, benchmark)
        seconds = [(log.minutes or 0) * 60 for log in inside]
        trained = [samples(log, benchmark) for log in inside]
        if None not in trained and min(seconds) > 0:
            speed = statistics.fmean(n / s for n, s in zip(trained, seconds, strict=True))  # type: ignore[operator]
    accelerators = description.accelerators(folder.description) if folder.description else None
    factor = folders.scaling_factor(folder.path)
    return Score(
        folder=folder.path,
        system=folder.system,
        benchmark=benchmark.log_name if benchmark else None,
        division=next((log.division for log in logs if log.division), None),
        runs=len(launched),
        runs_demanded=benchmark.runs if benchmark else None,
        failed=failed,
        minutes=minutes,
        valid=minutes is not None and len(logs) == runs,
        fastest=times[0] if times else None,
        slowest=times[-1] if times else None,
        spread=statistics.stdev(times) / statistics.fmean(times) if len(times) > 1 and sum(times) > 0 else None,
        epochs=epochs_to_converge(logs, dropped) if minutes is not None else None,
        samples_per_second=speed,
        accelerators=accelerators,
        samples_per_second_per_accelerator=speed / accelerators if speed and accelerators else None,
        scaling_factor=factor,
        notes=tuple(_notes(launched, logs, benchmark, same, failed, minutes, factor)),
    )


def _notes(
    launched: Sequence[Log],
    logs: Sequence[Log],
    benchmark: Benchmark | None,
    same: bool,
    failed: int,
    minutes: float | None,
    factor: float | None,
) -> Iterator[str]:
    if benchmark is None:
        yield f"no score: the logs name no benchmark of v2.0; the first says {shown(logs[0].benchmark)}"
        return
    if not same:
        yield "no score: the logs are of different benchmarks or divisions"
    if len(logs) < benchmark.runs:
        yield f"{len(logs)} runs where exactly {benchmark.runs} are demanded: no score to submit"
    elif len(launched) > len(logs):
        names = " ".join(printable(os.path.basename(log.path)) for log in logs)
        yield f"{len(launched)} runs: of all {len(logs)} in a row, by start, the median score counts: that of {names}"
    if failed > benchmark.dropped:
        yield f"no score: {failed} runs failed, where {benchmark.dropped} may"
    elif failed:
        yield f"{failed} of {len(logs)} runs failed, where {benchmark.dropped} may; a failed run counts as the slowest"
    if minutes is not None and factor is not None:
        yield (
            f"scaling.json ({factor:g}) isn't applied: in v2.0 only the review committee may order it; "
            f"the score would be {minutes * factor:.3f}"
        )


# --- the command ----------------------------------------------------------------------------------------------------


def scores(paths: Sequence[str]) -> list[list[Score]]:
    """The scores of each path's benchmarks. UserError for a path without logs, or one that can't be read."""
    found = [folders.find_all(path) for path in paths]
    logs = read_logs([log for part in found for folder in part for log in folder.logs])
    by_path = {log.path: log for log in logs}
    return [[score(folder, [by_path[log] for log in folder.logs]) for folder in part] for part in found]


def main(paths: Sequence[str], form: str = "table", compare: bool = False) -> int:
    """Prints the scores as "table", "csv" or "json". Exit code: 0 if every benchmark has a valid one, else 1.

    compare: two paths side by side instead. UserError for paths that hold no logs.
    """
    if compare and len(paths) != 2:
        raise UserError(f"--compare takes two folders, found {len(paths)}")
    parts = scores(paths)
    rows = [asdict(one) for part in parts for one in part]
    if compare:
        pairs = _pairs(*parts)
        print(_comparison(paths, pairs) if form == "table" else _machine([_ratios(*pair) for pair in pairs], form))
    else:
        print(text([one for part in parts for one in part]) if form == "table" else _machine(rows, form))
    return 0 if all(one.valid for part in parts for one in part) else 1


def _machine(rows: list[dict[str, Any]], form: str) -> str:
    if form == "json":
        return json.dumps({"ruleset": RULESET, "unit": "minutes", "scores": rows}, indent=1)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["benchmark"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "; ".join(v) if isinstance(v, tuple) else v for name, v in row.items()} for row in rows)
    return text.getvalue().rstrip("\n")


RATIOS = {
    "minutes": "minutes",
    "epochs": "epochs",
    "samples_per_second": "samples/s",
    "samples_per_second_per_accelerator": "samples/s per accelerator",
}
COLUMNS = ("system", "benchmark", "division", "runs", "failed", "minutes", "fastest", "slowest", "spread", "epochs")


def text(all_scores: Sequence[Score]) -> str:
    """The scores as a table for a person, with their notes."""
    rows = [
        (
            printable(one.system),
            one.benchmark or "-",
            printable(one.division or "-"),
            f"{one.runs}/{one.runs_demanded}" if one.runs_demanded else str(one.runs),
            str(one.failed),
            *(figure(minutes, 3) for minutes in (one.minutes, one.fastest, one.slowest)),
            "-" if one.spread is None else f"{one.spread:.1%}",
            _epochs(one),
            figure(one.samples_per_second, 1),
            figure(one.samples_per_second_per_accelerator, 1),
        )
        for one in all_scores
    ]
    lines = [table((*COLUMNS, "samples/s", "per accelerator"), rows, left=3)]
    notes = [(one, note) for one in all_scores for note in one.notes]
    lines += ["", *(f"{printable(one.folder)}: {note}" for one, note in notes)] if notes else []
    return "\n".join(lines)


def _epochs(one: Score) -> str:
    return figure(one.epochs, 0 if one.benchmark == "bert" else 3 if one.benchmark == "dlrm" else 2)


def _pairs(left: Sequence[Score], right: Sequence[Score]) -> list[tuple[Score, Score]]:
    """The benchmarks that both sides have, one score each."""
    pairs = []
    for benchmark in (b.log_name for b in BENCHMARKS.values()):
        ours, theirs = ([one for one in side if one.benchmark == benchmark] for side in (left, right))
        if len(ours) > 1 or len(theirs) > 1:
            several = ", ".join(printable(one.folder) for one in (ours if len(ours) > 1 else theirs))
            raise UserError(f"--compare needs one {benchmark} on each side; name one folder of {several}")
        if ours and theirs:
            pairs.append((ours[0], theirs[0]))
    if not pairs:
        raise UserError("--compare: the two folders have no benchmark in common")
    return pairs


def _ratios(left: Score, right: Score) -> dict[str, Any]:
    """Both sides' figures; each ratio is the second over the first, and time is epochs over samples per second."""
    row: dict[str, Any] = {"benchmark": left.benchmark, "folders": (left.folder, right.folder)}
    for name in RATIOS:
        first, second = getattr(left, name), getattr(right, name)
        row |= {f"{name}_1": first, f"{name}_2": second, f"{name}_ratio": second / first if first and second else None}
    return row


def _comparison(paths: Sequence[str], pairs: Sequence[tuple[Score, Score]]) -> str:
    lines = [f"1: {printable(paths[0])}", f"2: {printable(paths[1])}", ""]
    rows = []
    for pair in pairs:
        row = _ratios(*pair)
        digits = {"minutes": 3, "epochs": 0 if pair[0].benchmark == "bert" else 2}
        for name, label in RATIOS.items():
            cells = [figure(row[f"{name}_{side}"], digits.get(name, 1)) for side in (1, 2)]
            rows.append([str(row["benchmark"]), label, *cells, figure(row[f"{name}_ratio"], 3)])
    lines.append(table(("benchmark", "figure", "1", "2", "2/1"), rows, left=2))
    notes = [f"{printable(one.folder)}: {note}" for pair in pairs for one in pair for note in one.notes]
    return "\n".join([*lines, *([""] if notes else []), *notes])
