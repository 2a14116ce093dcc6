"""Where the time of a run goes, from the intervals that its log holds; milliseconds since 1970 become minutes.

Logs differ in what they tell: bert's have no interval of an evaluation, dlrm's one epoch. What isn't told is `None`,
never zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mlperf_fast.submission.records import Record, is_number
from mlperf_fast.submission.sanity import number

# What may end the first stretch of training. With the whole run in one epoch it is the first evaluation.
_FIRST = ("epoch_stop", "block_stop", "eval_start", "eval_accuracy")


@dataclass(frozen=True, slots=True)
class Phases:
    """Minutes of each part of a run.

    init: init_start to init_stop, off the clock. first: run_start to the end of the first epoch or block, or to the
    first evaluation if that comes before: what caches and compilation cost shows here. evaluation: all of it, each
    moment counted once, and what lies within `first` left out. rest: the run without these two. data_wait: the share, 0
    to 1, of training that waited for data, as the log itself says.
    """

    init: float | None = None
    first: float | None = None
    evaluation: float | None = None
    rest: float | None = None
    data_wait: float | None = None


NO_PHASES = Phases()  # of a log that tells nothing


def phases(records: Sequence[Record], started: float | None, stopped: float | None) -> Phases:
    """The parts of a run with this run_start and run_stop (milliseconds); only a `None` where a log says nothing."""
    init = _init(records)
    wait = _data_wait(records)
    if started is None or stopped is None or stopped < started:
        return Phases(init=init, data_wait=wait)
    # Minigo may evaluate after run_stop's time: what is off the clock counts for nothing here.
    ends = (r.time_ms for r in records if r.key in _FIRST and is_number(r.time_ms) and r.time_ms > started)
    first_end = min(min(ends, default=stopped), stopped)
    spans = [(max(a, first_end), min(b, stopped)) for a, b in _evaluations(records, stopped)]
    evaluating = _covered(spans) if spans else None
    return Phases(
        init=init,
        first=_minutes(first_end - started),
        evaluation=None if evaluating is None else _minutes(evaluating),
        rest=_minutes(stopped - first_end - (evaluating or 0)),
        data_wait=wait,
    )


def _minutes(milliseconds: float) -> float:
    return milliseconds / 60e3


def _init(records: Sequence[Record]) -> float | None:
    """From the first init_start (each process may log one) to the first init_stop."""
    starts = [r.time_ms for r in records if r.key == "init_start" and is_number(r.time_ms)]
    stop = next((r.time_ms for r in records if r.key == "init_stop" and is_number(r.time_ms)), None)
    return _minutes(stop - min(starts)) if starts and stop is not None and stop >= min(starts) else None


def _evaluations(records: Sequence[Record], stopped: float) -> list[tuple[float, float]]:
    """(begin, end) of each. One whose eval_stop is missing ends with its result, or with the run."""
    spans: list[tuple[float, float]] = []
    begun = result = None
    for record in records:
        if not is_number(record.time_ms):
            continue
        if record.key == "eval_start":
            if begun is not None:
                spans.append((begun, result if result is not None else record.time_ms))
            begun, result = record.time_ms, None
        elif record.key == "eval_accuracy" and begun is not None:
            result = record.time_ms
        elif record.key == "eval_stop" and begun is not None:
            spans.append((begun, record.time_ms))
            begun = result = None
    if begun is not None:
        spans.append((begun, result if result is not None else stopped))
    return spans


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """How much time the spans cover together; overlaps count once."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _data_wait(records: Sequence[Record]) -> float | None:
    """The last share that is logged: it counts from run_start on."""
    for record in reversed(records):
        if record.key == "tracked_stats" and isinstance(record.value, dict):
            share = number(record.value.get("data_wait_share"))
            if share is not None and 0 <= share <= 1:
                return share
    return None
