"""The report's pictures, each of one thing: convergence, one figure of each run, where the time goes, systems compared.

All are small and drawn in the page's own units (1 point is 1 CSS pixel), so that text is as large as the page's. A run
has one colour and one mark in all of them and its number beside it; what left the mean is hollow, what failed a cross.
"""

import math
import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeGuard

from mlperf_fast.submission.logs import Log
from mlperf_fast.submission.rcp import NEVER
from mlperf_fast.submission.report_html import Html
from mlperf_fast.submission.report_svg import (
    BAND,
    GRID,
    INK,
    PAPER,
    PHASES,
    QUIET,
    SERIES,
    TARGET,
    inline,
)  # fmt: skip
from mlperf_fast.submission.tables import figure as decimals
from mlperf_fast.submission.tables import printable
from mlperf_fast.suite import Benchmark

WIDE, NARROW = 480, 312  # CSS pixels
MARKERS = ("o", "s", "^", "D", "v", "P", "<", ">")  # eight, and seven colours: 56 runs before a pair comes again
MOST_RUNS = 120  # drawn; a submission has at most 40
MANY = 12  # runs: from here on drawn finer
MOST_POINTS = 300  # of one curve; more can't be told apart at this size
SMALL = 10.5  # of what stands beside the data
LARGEST = 1e15  # a figure beyond that is no time and no epoch: not drawn


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it is drawn. name: its number in the file's name, or its place. state: what it does to the score."""

    log: Log
    name: str
    colour: str
    marker: str
    state: str  # "counted", "dropped" (left out of the mean, as the rules say) or "failed"


@dataclass(frozen=True, slots=True)
class Band:
    """The reference at a batch size: the least mean that passes, and its own."""

    least: float
    mean: float


def runs(logs: Sequence[Log], counted: Sequence[Log]) -> list[Run]:
    """The runs of a folder in its order. counted: those whose time is in the score."""
    inside = {log.path for log in counted}
    found = []
    for i, log in enumerate(logs):
        state = "counted" if log.path in inside else "dropped" if log.converged else "failed"
        match = re.fullmatch(r"result_0*(\d{1,4})\.txt", os.path.basename(log.path))
        name = match[1] if match else f"({i + 1})"
        found.append(Run(log, name, SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)], state))
    return found


# --- the pictures ---------------------------------------------------------------------------------------------------


def convergence(
    name: str, label: str, all_runs: Sequence[Run], benchmark: Benchmark, metric: str, target: float | None,
    band: Band | None, mean: float | None, *, near: bool,
) -> Html | None:  # fmt: skip
    """Quality over epochs, a line a run; near: only the last stretch, around the target. mean: of these runs' epochs,
    to hold against the band. None if there is nothing to draw, or no target to be near to."""
    curves = [(run, curve) for run in all_runs[:MOST_RUNS] if (curve := _curve(run.log, metric))]
    if not curves or (near and target is None):
        return None
    scale, unit = epoch_unit(benchmark)
    left, right = min(curve[0][0] for _, curve in curves), max(curve[-1][0] for _, curve in curves)
    if near:
        left = max(left, _last_stretch([curve for _, curve in curves], band, 0.1 * (right - left)))
    values = [y for _, curve in curves for x, y in curve if x >= left]
    values += [target] if target is not None else []
    axes, figure = blank_axes(WIDE, 300, bottom=44, left=58, top=24)
    up = benchmark.higher_is_better
    low, high = min(values), max(values)
    if near and target is not None and len(values) > 8:  # what is far from the target is in the other picture
        quartiles = statistics.quantiles(values, n=4)
        low, high = (min(quartiles[0], target), high) if up else (low, max(quartiles[2], target))
    if not near and low > 0 and logarithmic(all_runs, benchmark, metric):
        axes.set_yscale("log")
        axes.set_ylim(low / 1.6, high * 1.2)
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        span = (high - low) or abs(high) * 0.1 or 1.0
        room = (0.06, 0.14) if near else (0.06, 0.06)
        axes.set_ylim(low - room[0 if up else 1] * span, high + room[1 if up else 0] * span)
    many = len(curves) > MANY
    for run, curve in curves:
        # From the evaluation before the edge, so that the line enters the picture.
        points = curve[max(0, sum(x < left for x, _ in curve) - 1) :]
        _line(axes, run, [x / scale for x, _ in points], [y for _, y in points], many)
    width = (right - left) or abs(right) * 0.1 or 1.0
    beyond = max(right, band.mean if band else right)
    axes.set_xlim((left - 0.02 * width) / scale, (beyond + 0.06 * width) / scale)
    if band:
        _reference(axes, band, scale)
    if _drawable(mean) and left <= mean <= beyond:
        foot = axes.get_xaxis_transform()  # x is an epoch, y a part of the axes
        axes.plot([mean / scale], [0], "^", transform=foot, color=INK, markersize=9, clip_on=False, zorder=6)
    if target is not None:
        axes.axhline(target, color=TARGET, linewidth=1.4, zorder=1.5)
        axes.annotate(
            f"target {target:g}", (0, target), xycoords=("axes fraction", "data"), xytext=(4, 4 if up else -4),
            textcoords="offset points", fontsize=SMALL, color=TARGET, weight="bold", va="bottom" if up else "top",
            zorder=6,
        )  # fmt: skip
    if near:
        _number_ends(axes, [(run, curve[-1][0] / scale, curve[-1][1]) for run, curve in curves], up)
    axes.set_xlabel(unit)
    axes.grid(axis="y")
    few_ticks(axes, 7)
    return inline(figure, name, label)


def logarithmic(all_runs: Sequence[Run], benchmark: Benchmark, metric: str) -> bool:
    """Whether a whole curve is drawn so: an error rate that falls over more than a factor of ten."""
    values = [y for run in all_runs[:MOST_RUNS] for _, y in _curve(run.log, metric)]
    return not benchmark.higher_is_better and min(values, default=0) > 0 and max(values) > 10 * min(values)


def _last_stretch(curves: Sequence[Sequence[tuple[float, float]]], band: Band | None, least: float) -> float:
    """Where the pictures near the target begin: three evaluations before the first run ends."""
    steps = [b[0] - a[0] for curve in curves for a, b in pairwise(curve)]
    ends = [curve[-1][0] for curve in curves] + ([band.least] if band else [])
    return min(ends) - max(3 * max(steps, default=0), least)


def dots(
    name: str, label: str, all_runs: Sequence[Run], values: Sequence[float | None], unit: str, mean: float | None,
    mean_text: str,
) -> Html | None:  # fmt: skip
    """One figure of each run, a row a run, with the mean of those that count. None if no run has it."""
    shown = list(zip(all_runs, values, strict=True))[:MOST_RUNS]
    known = [value for _, value in shown if _drawable(value)]
    if not known:
        return None
    row = _row_height(len(shown))
    axes, figure = blank_axes(NARROW, 66 + row * len(shown), bottom=40, left=34, top=24)
    for y, (run, value) in enumerate(shown):
        axes.axhline(y, color=GRID, linewidth=0.8, zorder=0)
        if _drawable(value):
            _mark(axes, run, value, y)
        elif run.state == "failed":
            _note(axes, y, "failed")
    low, high = min(known), max(known)
    if _drawable(mean):
        axes.axvline(mean, color=INK, linewidth=1.2, zorder=1)
        low, high = min(low, mean), max(high, mean)
        # The text stays within the picture wherever the mean is.
        where = (mean - low) / (high - low) if high > low else 0.5
        axes.annotate(
            mean_text, (mean, 1), xycoords=("data", "axes fraction"), xytext=(0, 5), textcoords="offset points",
            ha="left" if where < 0.3 else "right" if where > 0.7 else "center", fontsize=SMALL, weight="bold",
        )  # fmt: skip
    margin = 0.1 * (high - low) or abs(high) * 0.05 or 1.0
    axes.set_xlim(low - margin, high + margin)
    _rows(axes, [run.name for run, _ in shown], row)
    few_ticks(axes, 4 if high < 1e6 else 3)
    axes.set_xlabel(unit)
    return inline(figure, name, label)


PHASE_NAMES = ("initialization, off the clock", "first epoch or block", "training", "evaluation")


def time_unit(all_runs: Sequence[Run]) -> tuple[float, str]:
    """In what the parts of these runs are told: how many of them a minute has, and its name."""
    longest = max((run.log.minutes for run in all_runs if _drawable(run.log.minutes)), default=0.0)
    return (60.0, "seconds") if 0 < longest < 2 else (1.0, "minutes")


def phases(name: str, label: str, all_runs: Sequence[Run]) -> Html | None:
    """Where the time of each run goes: initialization to the left of run_start, at 0, the run to the right."""
    shown = [run.log.phases for run in all_runs[:MOST_RUNS]]
    if not any(_drawable(parts.rest) and _drawable(parts.first) for parts in shown):
        return None
    scale, unit = time_unit(all_runs)
    row = _row_height(len(shown))
    axes, figure = blank_axes(WIDE, 92 + row * len(shown), bottom=40, left=34, top=48)
    low = high = 0.0
    for y, parts in enumerate(shown):
        if not (_drawable(parts.rest) and _drawable(parts.first)):
            _note(axes, y, "no run_start and run_stop")
            continue
        if _drawable(parts.init):
            axes.barh(y, -scale * parts.init, height=0.7, color=PHASES[0], linewidth=0)
            low = min(low, -scale * parts.init)
        at = 0.0
        for minutes, colour in zip((parts.first, parts.rest, parts.evaluation or 0.0), PHASES[1:], strict=True):
            axes.barh(y, scale * minutes, left=at, height=0.7, color=colour, edgecolor=PAPER, linewidth=0.5)
            at += scale * minutes
        high = max(high, at)
    span = (high - low) or 1.0
    axes.set_xlim(low - 0.01 * span, high + 0.02 * span)
    axes.axvline(0, color=INK, linewidth=1.0, zorder=3)
    names = [*PHASE_NAMES[:2], "training and evaluation"]
    _key(axes, PHASE_NAMES if any(parts.evaluation is not None for parts in shown) else names)
    _rows(axes, [run.name for run in all_runs[:MOST_RUNS]], row)
    few_ticks(axes, 9)
    axes.set_xlabel(f"{unit} from run_start")
    return inline(figure, name, label)


def bars(name: str, label: str, rows: Sequence[tuple[str, float | None]], unit: str) -> Html | None:
    """One figure of several systems, bars from zero. rows: (system, value); None is written as such."""
    known = [value for _, value in rows if _drawable(value) and value >= 0]
    if not known:
        return None
    axes, figure = blank_axes(NARROW, 46 + 44 * len(rows), bottom=38, left=8, top=8)
    for y, (system, value) in enumerate(rows):
        drawn = value if _drawable(value) and value >= 0 else None
        if drawn is not None:
            axes.barh(y + 0.22, drawn, height=0.36, color=SERIES[y % len(SERIES)], linewidth=0)
        axes.annotate(
            digits(drawn), (drawn or 0, y + 0.22), xytext=(4, 0), textcoords="offset points", va="center",
            fontsize=SMALL, weight="bold",
        )  # fmt: skip
        axes.annotate(_short(system, 44), (0, y - 0.18), va="center", fontsize=SMALL)
    axes.set_xlim(0, (max(known) or 1.0) * 1.3)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    few_ticks(axes, 4 if max(known) < 1e6 else 3)
    axes.set_xlabel(unit)
    return inline(figure, name, label)


# --- their parts ----------------------------------------------------------------------------------------------------


def epoch_unit(benchmark: Benchmark) -> tuple[float, str]:
    """By what a benchmark's epoch_num is divided, and what it then counts."""
    units = {
        "bert": (1e6, "million samples trained"),
        "dlrm": (1.0, "epoch_num (1 + part of the epoch)"),
        "minigo": (1.0, "iterations"),
    }
    return units.get(benchmark.name, (1.0, "epochs"))


def quality(value: float | dict[str, float | None] | None, metric: str) -> float | None:
    """The value of one metric in an evaluation."""
    return value.get(metric) if isinstance(value, dict) else value


def number(value: float | None) -> str:
    """With four digits, or all before the point."""
    return "none" if value is None else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def digits(value: float | None) -> str:
    """With three decimals, two or none, as large numbers need them less."""
    if value is None or abs(value) < 0.1:
        return number(value)
    return decimals(value, 3 if value < 100 else 2 if value < 1e4 else 0)


def _drawable(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value) and abs(value) < LARGEST


def _curve(log: Log, metric: str) -> list[tuple[float, float]]:
    """(epoch, quality) in order of epochs; of very many, every so many and the last."""
    found = []
    for epoch, value in log.curve:
        one = quality(value, metric)
        if _drawable(epoch) and _drawable(one):
            found.append((float(epoch), float(one)))
    found.sort(key=lambda point: point[0])
    every = math.ceil(len(found) / MOST_POINTS) or 1
    return found[: len(found) - 1 : every] + found[-1:]


def blank_axes(
    width: float, height: float, *, bottom: float, left: float, top: float, right: float = 14
) -> tuple[Any, Any]:
    """Axes with these margins in a figure of this size, in CSS pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    box = (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    return figure.add_axes(box), figure


def _line(axes: Any, run: Run, x: Sequence[float], y: Sequence[float], many: bool) -> None:
    look = {"linewidth": 0.7, "alpha": 0.5} if many else {"linewidth": 1.4}
    axes.plot(x, y, "--" if run.state == "failed" else "-", color=run.colour, zorder=2, **look)
    _mark(axes, run, x[-1], y[-1])


def _mark(axes: Any, run: Run, x: Any, y: Any) -> None:
    if run.state == "failed":
        style = {"marker": "X", "markerfacecolor": run.colour, "markeredgecolor": PAPER, "markeredgewidth": 0.5}
    elif run.state == "dropped":
        style = {"marker": run.marker, "markerfacecolor": PAPER, "markeredgecolor": run.colour, "markeredgewidth": 1.4}
    else:
        style = {"marker": run.marker, "markerfacecolor": run.colour, "markeredgecolor": PAPER, "markeredgewidth": 0.5}
    axes.plot([x], [y], linestyle="none", markersize=7, zorder=4, clip_on=False, **style)


def _reference(axes: Any, band: Band, scale: float) -> None:
    """The reference's least and mean as a band, named above the axes."""
    least, mean = band.least / scale, band.mean / scale
    axes.axvspan(least, mean, color=BAND, linewidth=0, zorder=0)
    for x in (least, mean):
        axes.axvline(x, color=QUIET, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    left, right = axes.get_xlim()
    where = ((least + mean) / 2 - left) / (right - left)
    axes.annotate(
        f"reference: least {number(least)}, mean {number(mean)}", (mean if where > 0.6 else least, 1),
        xycoords=("data", "axes fraction"), xytext=(0, 6), textcoords="offset points", fontsize=SMALL, color=QUIET,
        ha="right" if where > 0.6 else "left" if where < 0.4 else "center",
    )  # fmt: skip


def _number_ends(axes: Any, ends: Sequence[tuple[Run, float, float]], up: bool) -> None:
    """The runs' numbers beyond where they end, up to three rows of them; runs that end at one epoch share a text. Of
    many runs only those that aren't in the mean are named."""
    by_epoch: dict[float, list[tuple[Run, float]]] = {}
    for run, x, y in ends:
        if len(ends) <= MANY or run.state != "counted":
            by_epoch.setdefault(x, []).append((run, y))
    taken: list[tuple[float, float, float]] = []  # left, right and height of each text, in pixels
    for x in sorted(by_epoch):
        names = [run.name for run, _ in by_epoch[x]]
        text = " ".join(names) if len(names) <= 6 else f"{len(names)} runs"
        at, height = axes.transData.transform((x, (max if up else min)(y for _, y in by_epoch[x])))
        half = 3.4 * len(text) + 2
        for row in range(3):
            away = (8 + 12 * row) * (1 if up else -1)
            if not any(at + half > a and at - half < b and abs(height + away - h) < 11 for a, b, h in taken):
                break
        else:
            continue
        taken.append((at - half, at + half, height + away))
        axes.annotate(
            text, (at, height), xycoords="figure pixels", xytext=(0, away), textcoords="offset points", ha="center",
            fontsize=SMALL, va="bottom" if up else "top", color=INK, zorder=5,
        )  # fmt: skip


def _row_height(count: int) -> float:
    return 17 if count <= MANY else 12


def _rows(axes: Any, names: Sequence[str], row: float) -> None:
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), names, fontsize=11 if row > 12 else 9)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.annotate("run", (0, 1), xycoords="axes fraction", xytext=(-30, 5), textcoords="offset points",
                  fontsize=SMALL, color=QUIET)  # fmt: skip


def _note(axes: Any, y: float, text: str) -> None:
    axes.annotate(text, (0, y), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
                  va="center", fontsize=SMALL, color=QUIET, style="italic")  # fmt: skip


def few_ticks(axes: Any, most: int) -> None:
    """At most so many numbers below, at round places."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:,.10g}")


def _key(axes: Any, names: Sequence[str]) -> None:
    """The phases' names above the bars, each beside a square of its colour, in the order of the bars."""
    for i, name in enumerate(names):
        x, y = (0, 1)[i % 2] * 215, (34, 18)[i // 2]
        axes.annotate("■", (0, 1), xycoords="axes fraction", xytext=(x, y - 1), textcoords="offset points",
                      fontsize=13, color=PHASES[i])  # fmt: skip
        axes.annotate(name, (0, 1), xycoords="axes fraction", xytext=(x + 14, y), textcoords="offset points",
                      fontsize=SMALL)  # fmt: skip


def _short(name: str, most: int) -> str:
    name = printable(name)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def reference_band(least: float | None, mean: float | None) -> Band | None:
    """The band, unless the reference has no mean to show."""
    if least is None or mean is None or not (_drawable(least) and _drawable(mean)) or mean >= NEVER / 100:
        return None
    return Band(min(least, mean), mean)
