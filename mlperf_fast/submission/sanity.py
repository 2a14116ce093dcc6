"""Our own rules on one log: what MLPerf's rules demand, and the official compliance check doesn't look at.

Each rule is a function from the records of a log to findings; `sanity` applies them all.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlperf_fast import suite
from mlperf_fast.submission.records import Finding, Record, is_number, shown
from mlperf_fast.suite import BENCHMARKS, INIT_LIMIT_MINUTES

_CLOCK = "training_rules.adoc v2.0, run time"
_CLOSED = "training_rules.adoc v2.0, closed division"
_EVALUATION = "training_rules.adoc v2.0, evaluation frequency"
_NAMES = "submission_rules.adoc v2.0, result log"
_SCORES = "mlperf-logging, open_*.yaml"

CLOCK_TOLERANCE_MS = 1000  # processes of one run may disagree by so much; real logs do by 23 ms
BERT_FEWEST_SAMPLES = 25_000  # no evaluation is due earlier: a smaller epoch_num counts something else
LONGEST_PAUSE_MINUTES = 5  # between init_stop and run_start; real logs have up to 73 seconds

# Whole values that name nobody, and parts that give a template or an unexpanded variable away.
PLACEHOLDER = re.compile(
    r"\W*|(my|your)?[\W_]*(org|organi[sz]ation|company|submitter|vendor|platform|system|machine|name|value)"
    r"|none|null|nil|unknown|undefined|n/?a|x{2,}|test|foo|bar|example|reference_implementation"
    r"|.*(placeholder|\btbd\b|\btodo\b|\bfixme\b|change[_-]?me|\$\{|\$[A-Z]|\{\{|<[a-z _-]+>|lorem ipsum).*",
    re.IGNORECASE | re.DOTALL,
)
_NOT_REAL = re.compile(r"(?<![a-z])(demo|synthetic|generated|dummy|fake|mock|toy)(?![a-z])", re.IGNORECASE)


def sanity(records: Sequence[Record]) -> list[Finding]:
    """The findings of all rules on the records of one log."""
    return [finding for rule in _RULES for finding in rule(records)]


def first(records: Sequence[Record], key: str) -> Record | None:
    """The first record of a key."""
    return next((record for record in records if record.key == key), None)


def text(records: Sequence[Record], key: str) -> str | None:
    """The value of the first record of a key if it is a string."""
    record = first(records, key)
    return record.value if record and isinstance(record.value, str) else None


def number(value: Any) -> float | None:
    """The value if it is a finite number of a size that arithmetic can take."""
    return value if is_number(value) and abs(value) < 1e18 else None


def _is(records: Sequence[Record], name: str) -> bool:
    return text(records, "submission_benchmark") == BENCHMARKS[name].log_name


# --- the clock ------------------------------------------------------------------------------------------------------


def _evaluations_outside_run(records: Sequence[Record]) -> Iterator[Finding]:
    """By place in the file and by time. Minigo may date run_stop back to the checkpoint that reached the target."""
    start, stop = first(records, "run_start"), first(records, "run_stop")
    if start is None or stop is None:
        return
    dated_back = _is(records, "minigo")
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


def _one_clock(records: Sequence[Record]) -> Iterator[Finding]:
    """The official check lets repeated records pass if their values agree, and these have none to disagree."""
    for key in ("run_start", "run_stop"):
        found = [record for record in records if record.key == key]
        if len(found) > 1:
            message = f"{len(found)} records of {key}: which one counts isn't defined"
            yield Finding("sanity/clock", found[1].line, message, _CLOCK)


def _monotonic_clock(records: Sequence[Record]) -> Iterator[Finding]:
    """In the run, records of one key may not go back in time. Records of several keys do in logs that are put together
    after the run, or evaluated after it: a warning. Minigo's run_stop may be dated back."""
    dated_back = _is(records, "minigo")
    start, stop = first(records, "run_start"), first(records, "run_stop")
    latest: Record | None = None
    last: dict[str, Record] = {}
    worst, where = 0.0, records[0]
    for record in records:
        if math.isnan(record.time_ms) or (dated_back and record.key == "run_stop"):
            continue
        if start and stop and start.line <= record.line <= stop.line:
            before = last.get(record.key, record)
            last[record.key] = record
            if (back := before.time_ms - record.time_ms) > CLOCK_TOLERANCE_MS:
                message = f"{shown(record.key)} is {back / 1e3:,.3f} s earlier than that in line {before.line}"
                yield Finding("sanity/clock", record.line, f"the clock goes back: {message}", _CLOCK)
        if latest is None or record.time_ms > latest.time_ms:
            latest = record
        elif latest.time_ms - record.time_ms > worst:
            worst, where = latest.time_ms - record.time_ms, record
    if worst > CLOCK_TOLERANCE_MS:
        message = f"{shown(where.key)} is {worst / 1e3:,.3f} s earlier than a record before it, the most in this log"
        yield Finding("sanity/clock-order", where.line, message, _CLOCK, "warning")


def _init_time(records: Sequence[Record]) -> Iterator[Finding]:
    stop, division = first(records, "init_stop"), text(records, "submission_division")
    starts = [record.time_ms for record in records if record.key == "init_start"]
    if stop is None or not starts or division not in INIT_LIMIT_MINUTES:
        return
    minutes, limit = (stop.time_ms - min(starts)) / 60e3, INIT_LIMIT_MINUTES[division]
    if minutes >= limit:
        message = f"initialization took {minutes:.1f} minutes; {division} allows less than {limit}"
        yield Finding("sanity/init-time", stop.line, message, "mlperf-logging, common.yaml; " + _CLOCK)
    start = first(records, "run_start")
    pause = (start.time_ms - stop.time_ms) / 60e3 if start else 0
    if start and pause > LONGEST_PAUSE_MINUTES:
        message = f"run_start is {pause:.1f} minutes after init_stop: say what was done in between, off the clock"
        yield Finding("sanity/pause", start.line, message, _CLOCK, "warning")


def _run_time(records: Sequence[Record]) -> Iterator[Finding]:
    start, stop = first(records, "run_start"), first(records, "run_stop")
    if stop and start and stop.time_ms < start.time_ms:
        seconds = (start.time_ms - stop.time_ms) / 1e3
        yield Finding("sanity/run-time", stop.line, f"run_stop is {seconds:.3f} s earlier than run_start", _CLOCK)
    if stop and "status" in stop.metadata and stop.metadata["status"] not in ("success", "aborted"):
        message = f"the status of run_stop is {shown(stop.metadata['status'])}; expected success or aborted"
        yield Finding("sanity/status", stop.line, message, _CLOCK)


# --- evaluations ----------------------------------------------------------------------------------------------------


def _evaluation_values(records: Sequence[Record]) -> Iterator[Finding]:
    two = _is(records, "maskrcnn")
    wanted = 'an object with numbers "BBOX" and "SEGM"' if two else "a number"
    for record in records:
        if record.key != "eval_accuracy":
            continue
        value = record.value
        values = [value.get("BBOX"), value.get("SEGM")] if two and isinstance(value, dict) else [value]
        if (two and not isinstance(value, dict)) or not all(is_number(v) or isinstance(v, float) for v in values):
            message = f"eval_accuracy is {shown(value)}; expected {wanted}"
            yield Finding("sanity/evaluation-value", record.line, message, _SCORES)
        elif not all(is_number(v) for v in values):
            message = f"eval_accuracy is {shown(value)}: this run has diverged"
            yield Finding("sanity/evaluation-value", record.line, message, _SCORES, "warning")
        if "epoch_num" in record.metadata and number(record.metadata["epoch_num"]) is None:
            message = f"epoch_num is {shown(record.metadata['epoch_num'])}; expected a number"
            yield Finding("sanity/epoch-num", record.line, message, "mlperf-logging, rcp_checker")


def _evaluation_interval(records: Sequence[Record]) -> Iterator[Finding]:
    """Closed: the longest stretch without an evaluation, in the unit of epoch_num. Real logs are up to 9 % late."""
    if text(records, "submission_division") != "closed":
        return
    benchmark = text(records, "submission_benchmark")
    batch = number(getattr(first(records, "global_batch_size"), "value", None))
    due: float
    interval: float
    if benchmark == "unet3d" and batch and 1 <= batch < 1e6:
        due, interval = _unet3d_interval(int(batch))
    elif benchmark == "bert" and batch and 1 <= batch < 1e9:
        due = interval = suite.bert_evaluation_samples(int(batch))
    elif benchmark == "dlrm":
        due, interval = 1.05, 0.05
    elif benchmark in ("resnet", "ssd", "maskrcnn", "rnnt", "minigo"):
        due = interval = 4 if benchmark == "resnet" else 1
    else:
        return
    evaluated = [
        (epoch, record.line)
        for record in records
        if record.key == "eval_accuracy" and (epoch := number(record.metadata.get("epoch_num"))) is not None
    ]
    if benchmark == "bert" and evaluated and evaluated[-1][0] < BERT_FEWEST_SAMPLES:
        message = f"epoch_num ends at {evaluated[-1][0]:g}; bert's must count samples, else use --bert-train-samples"
        yield Finding("sanity/epoch-num", evaluated[-1][1], message, "mlperf-logging, rcp_checker", "warning")
        return
    last = due - interval
    for epoch, line in evaluated:
        if epoch - last > 1.1 * interval:
            message = f"no evaluation between {last:g} and {epoch:g}; the reference evaluates every {interval:g}"
            yield Finding("sanity/evaluation-interval", line, message, _EVALUATION, "warning")
            return
        last = max(last, epoch)


def _unet3d_interval(batch: int) -> tuple[float, float]:
    """Rules and reference differ: an epoch has its last batch padded or dropped. The longer interval may be meant."""
    due, interval, _ = suite.unet3d_evaluation_epochs(batch)
    dropped = 168 // batch * batch
    return (due, interval) if dropped == 0 else (math.ceil(1000 * 168 / dropped), math.ceil(20 * 168 / dropped))


def _evaluation_items(records: Sequence[Record]) -> Iterator[Finding]:
    record = first(records, "eval_samples")
    benchmark = next((b for b in BENCHMARKS.values() if b.log_name == text(records, "submission_benchmark")), None)
    if record is None or benchmark is None or text(records, "submission_division") != "closed":
        return
    if benchmark.eval_samples is not None and record.value != benchmark.eval_samples:
        message = (
            f"eval_samples is {shown(record.value)}; the benchmark's evaluation set has {benchmark.eval_samples:,}"
        )
        yield Finding("sanity/evaluation-items", record.line, message, _CLOSED, "warning")


# --- who, and on what -----------------------------------------------------------------------------------------------


def _several_seeds(records: Sequence[Record]) -> Iterator[Finding]:
    seeds = [record for record in records if record.key == "seed"]
    if len(seeds) > 1:
        message = f"{len(seeds)} records of seed; expected one for the whole run, which its processes share"
        yield Finding("sanity/seeds", seeds[1].line, message, "mlperf-logging, seed_checker", "warning")


def _placeholders(records: Sequence[Record]) -> Iterator[Finding]:
    severity = "error" if text(records, "submission_division") == "closed" else "warning"
    for key in ("submission_org", "submission_platform"):
        record = first(records, key)
        # An empty string is the official check's to say.
        if record and record.value != "" and (value := text(records, key)) is None:
            message = f"{key} is {shown(record.value)}; expected a name"
            yield Finding("sanity/placeholder", record.line, message, _NAMES)
        elif record and record.value and PLACEHOLDER.fullmatch(value[:1000]):  # type: ignore[index]
            message = f"{key} is {shown(value)}, which names nobody"
            yield Finding("sanity/placeholder", record.line, message, _NAMES, severity)


def _closed_demo(records: Sequence[Record]) -> Iterator[Finding]:
    if text(records, "submission_division") != "closed":
        return
    for record in records:
        if record.key in ("submission_org", "submission_platform", "preset") or record.key.startswith(
            ("data", "dataset")
        ):
            match = _NOT_REAL.search(record.value[:1000]) if isinstance(record.value, str) else None
        else:
            match = _NOT_REAL.search(record.key[:1000]) if record.value else None
        if match:
            message = f"{shown(record.key)} is {shown(record.value)}, which says {match[0]}; that is open, never closed"
            yield Finding("sanity/closed-demo", record.line, message, _CLOSED)


def _cache_clear(records: Sequence[Record]) -> Iterator[Finding]:
    # Some log no value at all: the record says that it was done.
    wrong = next((r for r in records if r.key == "cache_clear" and r.value is not True and r.value is not None), None)
    if wrong and text(records, "submission_division") == "closed":
        message = f"cache_clear is {shown(wrong.value)}: caches weren't dropped before this run"
        yield Finding("sanity/cache-clear", wrong.line, message, _CLOSED)


_RULES: tuple[Callable[[Sequence[Record]], Iterator[Finding]], ...] = (
    _evaluations_outside_run,
    _one_clock,
    _monotonic_clock,
    _init_time,
    _run_time,
    _evaluation_values,
    _evaluation_interval,
    _evaluation_items,
    _several_seeds,
    _placeholders,
    _closed_demo,
    _cache_clear,
)
