"""The roofline picture: each case of each backend as a point under the measured limits of the machine, as SVG.

x is a case's flops over the bytes that it must move, y the flops a second that were reached, both on log scales. The
slanted lines are the memory's limits, the level ones the arithmetic's: a point's distance below the lines is what is
left. Numbers beside the points lead to the key. Text stays text, and equal rows give equal bytes. Needs matplotlib.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import cos, pi, sin
from pathlib import Path
from typing import Any

from mlperf_fast.ops.backend import BACKENDS

from .ceilings import UNITS
from .measure import Row
from .report import limit_text, percent, rate_text

WIDTH, HEIGHT, KEY = 7.5, 5.6, 5.6  # inches: of the axes' part, at least; of the key beside it
LINE = 10.5  # points: height of a line of the key
MARKERS = {"cpp": "o", "cuda": "s", "triton": "^", "ref": "x"}
PAPER = {"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}  # under a number
LINES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Point:
    """x flops a byte, y GFLOP/s."""

    op: str
    case: str
    backend: str
    x: float
    y: float
    rating: str


def points(rows: Sequence[Row], ceilings: Mapping[str, float]) -> list[Point]:
    """Of every backend that ran a case whose bytes and flops are known, op by op."""
    found = []
    ops = list(dict.fromkeys(row.op for row in rows))
    threads_differ = len({row.threads for row in rows}) > 1
    for row in sorted(rows, key=lambda row: ops.index(row.op)):
        for name in row.results:
            timing = row.timing(name)
            if timing and name in BACKENDS and row.bytes and row.flops:
                gflops, share = row.flops / timing.ms / 1e6, percent(row, name, ceilings)
                rating = rate_text(gflops, "GFLOP/s") + (f", {share:.0f} % of {row.ceiling}" if share else "")
                case = f"{row.shape}, {row.dtype}" + (f", {row.threads_text}" if threads_differ else "")
                found.append(Point(row.op, case, name, row.flops / row.bytes, gflops, rating))
    return found


def write(path: Path, rows: Sequence[Row], header: Mapping[str, str], ceilings: Mapping[str, float]) -> str:
    """Draws the picture; returns the line to print: where it is, or why there is none."""
    found = points(rows, ceilings)
    if not found:
        return f"{path.name} not drawn: no backend's row has both bytes and flops"
    try:
        import matplotlib
    except ImportError:
        return (
            f"{path.name} not drawn, the rest is complete: matplotlib is not installed; "
            "get it with `pip install 'mlperf_fast[report]'`"
        )
    # Fixed salt and no date: the same rows give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "mlperf_fast", "svg.fonttype": "none", "font.size": 8}):
        figure = draw(found, header, ceilings)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
    return f"written: {path}"


def draw(found: Sequence[Point], header: Mapping[str, str], ceilings: Mapping[str, float]) -> Any:
    """The matplotlib figure."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    ops = list(dict.fromkeys(point.op for point in found))
    height = max(HEIGHT, LINE * (len(found) + 1.5 * len(ops)) / 72 + 1.0)
    figure = Figure(figsize=(WIDTH + KEY, height), dpi=72)
    axes = figure.add_axes((0.75 / (WIDTH + KEY), 0.6 / height, (WIDTH - 1.0) / (WIDTH + KEY), 1 - 1.2 / height))
    axes.set(xscale="log", yscale="log", **_limits(found, ceilings))
    axes.set_xlabel("arithmetic intensity: flops a byte that must be moved")
    axes.set_ylabel("GFLOP/s")
    threads = header.get("threads", "?")
    machine = header.get("GPU") or f"{header.get('processor', '')}, {threads} thread{'s' * (threads != '1')}"
    axes.set_title(f"Roofline of {machine}\ntorch {header.get('torch', '?')}, {header.get('date', '')}", fontsize=9)
    axes.grid(which="major", linewidth=0.3, color="0.85")
    _draw_roof(axes, ceilings)
    colours = {op: colormaps["tab10" if len(ops) <= 10 else "tab20"](number % 20) for number, op in enumerate(ops)}
    for number, point in enumerate(found, 1):
        edge = {} if point.backend == "ref" else {"edgecolors": "white", "linewidths": 0.4}
        dot = axes.scatter(
            point.x, point.y, s=26, marker=MARKERS.get(point.backend, "D"), color=colours[point.op], zorder=3, **edge
        )
        dot.set_gid(f"point-{number}")
    _number(axes, found, colours)
    for backend in dict.fromkeys(point.backend for point in found):
        axes.plot([], [], MARKERS.get(backend, "D"), markersize=4, color="0.3", label=backend)
    axes.legend(loc="upper left", fontsize=7, framealpha=0.9)
    _write_key(figure, found, colours, WIDTH / (WIDTH + KEY), 1 - 0.6 / height, LINE / 72 / height)
    return figure


def _limits(found: Sequence[Point], ceilings: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Axes around all points and the ridge, where memory's and arithmetic's limits meet."""
    memory, arithmetic = _split(ceilings)
    xs, ys = [point.x for point in found], [point.y for point in found]
    top = max([*arithmetic.values(), *ys])
    ridge = max(arithmetic.values()) / min(memory.values()) if memory and arithmetic else max(xs)
    return {"xlim": (min(xs) / 2, 3 * max(ridge, *xs)), "ylim": (min(ys) / 2, 3 * top)}


def _split(ceilings: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """The limits in GB/s and those in GFLOP/s."""
    memory = {name: value for name, value in ceilings.items() if UNITS[name] == "GB/s"}
    return memory, {name: value for name, value in ceilings.items() if name not in memory}


def _draw_roof(axes: Any, ceilings: Mapping[str, float]) -> None:
    memory, arithmetic = _split(ceilings)
    left, right = axes.get_xlim()
    top = max(arithmetic.values(), default=axes.get_ylim()[1])
    for (name, value), style in zip(memory.items(), LINES, strict=False):
        end = min(right, top / value)
        label = limit_text(name, ceilings)
        axes.plot([left, end], [left * value, end * value], style, color="0.35", linewidth=1, label=label)
    widest = max(memory.values(), default=top / left)
    for (name, value), style in zip(arithmetic.items(), LINES, strict=False):
        label = limit_text(name, ceilings)
        axes.plot([value / widest, right], [value, value], style, color="tab:red", linewidth=1, label=label)


def _number(axes: Any, found: Sequence[Point], colours: Mapping[str, Any]) -> None:
    """A number beside each point, at the nearest place that is free, with a line to the point if it isn't adjacent."""
    places = [tuple(axes.transData.transform((point.x, point.y))) for point in found]
    taken = [(x, y, 6.0, 6.0) for x, y in places]  # boxes: centre and size, in points
    left, low = axes.transAxes.transform((0, 0))
    right, high = axes.transAxes.transform((1, 1))
    for number, (point, (x, y)) in enumerate(zip(found, places, strict=True), 1):
        size = (4.4 * len(str(number)) + 1, 7.0)
        around = (
            (radius, x + radius * cos(angle * pi / 8), y + radius * sin(angle * pi / 8))
            for radius in range(8, 400, 4)
            for angle in (0, 4, 12, 8, 2, 14, 6, 10, 1, 15, 3, 13, 5, 11, 7, 9)
        )
        free = (
            (radius, at_x, at_y)
            for radius, at_x, at_y in around
            if left + 4 < at_x < right - 4
            and low + 4 < at_y < high - 4
            and not any(_overlap((at_x, at_y, *size), box) for box in taken)
        )
        radius, at_x, at_y = next(free, (8, x + 8, y))  # hundreds of points may leave no place
        taken.append((at_x, at_y, *size))
        axes.annotate(
            str(number), (point.x, point.y), xytext=(at_x - x, at_y - y), textcoords="offset points", ha="center",
            va="center", fontsize=7, color=colours[point.op], zorder=4, bbox=PAPER,
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": colours[point.op]} if radius > 12 else None,
        )  # fmt: skip


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return abs(a[0] - b[0]) < (a[2] + b[2]) / 2 and abs(a[1] - b[1]) < (a[3] + b[3]) / 2


def _write_key(
    figure: Any, found: Sequence[Point], colours: Mapping[str, Any], left: float, top: float, line: float
) -> None:
    """What each number is, op by op; positions in fractions of the figure."""
    at, number = top, 0
    for op, group in groupby(found, key=lambda point: point.op):
        figure.text(left, at, op, fontsize=8, color=colours[op], weight="bold", va="top")
        at -= 1.1 * line
        for point in group:
            number += 1
            label = f"{number:>2}  {point.case} · {point.backend}: {point.rating}"
            figure.text(left, at, label, fontsize=7, va="top").set_gid(f"label-{number}")
            at -= line
        at -= 0.4 * line
