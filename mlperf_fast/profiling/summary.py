"""From a trace to where the time of a step went.

Every moment of the steps watched belongs to exactly one line, so the shares add up to 1; evaluations between them are
left out. On a GPU run the lines follow the device: it computes, exchanges, waits for data, or idles because the host
launches too slowly. On a CPU run they follow the thread that trains. Times in a Chrome trace are microseconds.
"""

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mlperf_fast.profiling.ranges import RANGES

Event = dict[str, Any]
Spans = list[tuple[float, float]]  # (start, end), in order, none overlapping

DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
LINES = ("compute", "optimizer", "communication", "data wait", "idle")
COLLECTIVES = ("nccl", "c10d::", "gloo:", "record_param_comms")


def read(trace: Path, steps: int) -> dict[str, Any]:
    """`summarise` for a file as torch's profiler writes it."""
    with gzip.open(trace, "rt") as file:
        return summarise(json.load(file)["traceEvents"], steps)


def summarise(events: Iterable[Event], steps: int) -> dict[str, Any]:
    """Milliseconds a step by line, with what took longest, from the events of a Chrome trace over so many steps."""
    timed = [event for event in events if event.get("ph") == "X" and event.get("dur", 0) > 0]
    evaluations = spans(event for event in timed if event["name"] == "evaluate" and event["cat"] == "user_annotation")
    timed = [event for event in timed if not any(first <= event["ts"] < last for first, last in evaluations)]
    marks = [event for event in timed if event["cat"] == "user_annotation" and event["name"] in RANGES]
    thread = next(event["tid"] for event in marks if event["name"] == "step")
    host = [event for event in timed if event["cat"] in ("cpu_op", "user_annotation") and event["tid"] == thread]
    device = [event for event in timed if event["cat"] in DEVICE]
    start = min(event["ts"] for event in marks)
    end = max(event["ts"] + event["dur"] for event in (*marks, *device))
    named = {name: spans(event for event in marks if event["name"] == name) for name in RANGES}
    busy = _on_device(device, timed, named, thread) if device else _on_host(host, named)
    busy |= {"data wait": named["data wait"], "idle": [(start, end)]}
    left, lines = without([(start, end)], evaluations), {}
    window = length(left)
    for line in LINES:
        mine, left = overlap(left, busy[line]), without(left, busy[line])
        lines[line] = {"ms_per_step": length(mine) / 1000 / steps, "share": length(mine) / window}
    found: dict[str, Any] = {
        "follows": "device" if device else "host",
        "ms_per_step": window / 1000 / steps,
        "evaluations_ms": length(evaluations) / 1000,
        "lines": lines,
        "top_ops": top(own_times(host), steps, window),
    }
    if device:
        found["top_kernels"] = top(((event["name"], event["dur"]) for event in device), steps, window)
        found["kernels_per_step"] = sum(event["cat"] == "kernel" for event in device) / steps
        found["optimizer_apart"] = not named["graph replay"]  # a graph's kernels are launched all at once
    return found


def _on_host(host: list[Event], named: dict[str, Spans]) -> dict[str, Spans]:
    collectives = spans(event for event in host if event["name"].startswith(COLLECTIVES))
    communication = merge([*collectives, *named["gradient exchange"]])
    compute = merge([span for name in ("forward", "backward", "unscale") for span in named[name]])
    return {
        "compute": without(compute, communication),
        "optimizer": without(named["optimizer"], communication),
        "communication": communication,
    }


def _on_device(device: list[Event], timed: list[Event], named: dict[str, Spans], thread: Any) -> dict[str, Spans]:
    """A kernel is the optimizer's where the call that launched it came from there; an exchange that runs beside
    computation costs no time and counts as computation."""
    launches = {
        event["args"]["correlation"]: event["ts"]
        for event in timed
        if event["cat"] in ("cuda_runtime", "cuda_driver") and event["tid"] == thread
        if "correlation" in event.get("args", {})
    }
    groups: dict[str, list[Event]] = {"compute": [], "optimizer": [], "communication": []}
    for event in device:
        launched = launches.get(event.get("args", {}).get("correlation"))
        if event["name"].startswith(COLLECTIVES):
            groups["communication"].append(event)
        elif launched is not None and any(first <= launched < last for first, last in named["optimizer"]):
            groups["optimizer"].append(event)
        else:
            groups["compute"].append(event)
    return {name: spans(group) for name, group in groups.items()}


def own_times(events: list[Event]) -> Iterator[tuple[str, float]]:
    """(name, time not spent in events inside it) of one thread's nested events."""
    open_events: list[list[Any]] = []  # [end, name, own time], outermost first
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        while open_events and open_events[-1][0] <= event["ts"]:
            _, name, own = open_events.pop()
            yield name, own
        if open_events:
            open_events[-1][2] -= event["dur"]
        open_events.append([event["ts"] + event["dur"], event["name"], event["dur"]])
    for _, name, own in open_events:
        yield name, own


def top(times: Iterable[tuple[str, float]], steps: int, window: float, most: int = 12) -> list[dict[str, Any]]:
    """The names that took longest in all: calls and milliseconds a step, and the share of the window."""
    totals: dict[str, list[float]] = {}
    for name, time in times:
        total = totals.setdefault(name, [0, 0.0])
        total[0] += 1
        total[1] += time
    order = sorted(totals.items(), key=lambda item: -item[1][1])[:most]
    return [
        {"name": name, "calls_per_step": calls / steps, "ms_per_step": time / 1000 / steps, "share": time / window}
        for name, (calls, time) in order
    ]


def spans(events: Iterable[Event]) -> Spans:
    return merge((event["ts"], event["ts"] + event["dur"]) for event in events)


def merge(pieces: Iterable[tuple[float, float]]) -> Spans:
    merged: Spans = []
    for start, end in sorted(pieces):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def overlap(a: Spans, b: Spans) -> Spans:
    """What lies in both."""
    found, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        start, end = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if start < end:
            found.append((start, end))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return found


def without(a: Spans, b: Spans) -> Spans:
    """What lies in `a` and not in `b`."""
    edges = [-float("inf"), *(edge for span in b for edge in span), float("inf")]
    return overlap(a, list(zip(edges[::2], edges[1::2], strict=True)))


def length(pieces: Spans) -> float:
    return sum(end - start for start, end in pieces)


def table(found: dict[str, Any]) -> str:
    """The summary as text."""
    per_second = 1000 / found["ms_per_step"]
    lines = [
        f"{found['workload']} {found['preset']}, steps {found['first']} to {found['last']}, {found['device']}",
        f"step: {found['step_mode']}",
        "",
        f"  {'where the time goes':<32}{'ms/step':>9}{'share':>8}",
    ]
    for line, value in found["lines"].items():
        bar = "█" * round(30 * value["share"])
        lines.append(f"  {line:<32}{value['ms_per_step']:>9.3f}{value['share']:>8.1%}  {bar}".rstrip())
    lines += [f"  {'step':<32}{found['ms_per_step']:>9.3f}{'100.0%':>8}  {per_second:,.1f} steps/s", ""]
    if found["evaluations_ms"]:
        lines += [f"  Evaluations between these steps took another {found['evaluations_ms']:,.0f} ms.", ""]
    if not found.get("optimizer_apart", True):
        lines += ["  The optimizer counts as compute: the step is one graph. --set cuda_graph=off shows it apart.", ""]
    if "kernels_per_step" in found:
        lines += [f"  {found['kernels_per_step']:,.0f} kernels a step", ""]
        lines += _longest("kernels", found["top_kernels"])
    lines += _longest("ops on the host, without what they call", found["top_ops"])
    return "\n".join([*lines, f"  trace: {found['trace']} (open it at https://ui.perfetto.dev)"])


def _longest(what: str, rows: list[dict[str, Any]]) -> list[str]:
    lines = [f"  {what:<52}{'calls':>7}{'ms/step':>9}{'share':>8}"]
    for row in rows:
        name = row["name"] if len(row["name"]) <= 50 else row["name"][:49] + "…"
        lines.append(f"  {name:<52}{row['calls_per_step']:>7.1f}{row['ms_per_step']:>9.3f}{row['share']:>8.1%}")
    return [*lines, ""]
