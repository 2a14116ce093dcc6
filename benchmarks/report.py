"""Rows as tables for the terminal, as JSON and as CSV."""

import csv
import io
import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from .ceilings import UNITS
from .measure import ABSENT, FAILED, Row, Timing

FORMAT = 1  # of the JSON; compare.py reads it
CSV_COLUMNS = (
    "op", "shape", "dtype", "threads", "bytes", "flops", "competitor", "wall_ms", "wall_ms_p20", "wall_ms_p80",
    "cpu_ms", "cpu_ms_p20", "cpu_ms_p80", "samples", "calls", "rate", "unit", "percent_of_limit", "limit", "ratio",
    "cpu_ratio", "note",
)  # fmt: skip
LEGEND = (
    "ms: median wall time of a call, and its 20th-80th percentile; CPU ms: of all threads; ×: how many times\n"
    "as long as the first line's, which a call runs by itself"
)


@dataclass(frozen=True)
class Table:
    """For the terminal: `marked` is the line of the backend that a call runs by itself."""

    title: str
    columns: tuple[str, ...]
    lines: list[tuple[str, ...]]
    marked: int | None = None


def tables(rows: Sequence[Row], ceilings: Mapping[str, float]) -> Iterator[Table]:
    """One for each case with its competitors as lines; rows that have but one result share one."""
    for (op, is_alone), group in groupby(rows, key=lambda row: (row.op, len(row.results) == 1)):
        if is_alone:
            lines = [(row.shape, *_times(row.timing(row.ours))) for row in group]
            yield Table(op, ("", "ms", "20th-80th", "CPU ms"), lines)
        else:
            yield from (_case(row, ceilings) for row in group)


def _case(row: Row, ceilings: Mapping[str, float]) -> Table:
    title = f"{row.op}: {row.shape}, {row.dtype}, {row.threads_text}"
    columns: tuple[str, ...] = ("", "ms", "20th-80th", "CPU ms", "×")
    is_rated = row.ceiling in ceilings
    if is_rated:
        title += f"; limit: {limit_text(row.ceiling, ceilings)}"
        columns = (*columns, "rate", "% of limit")
    ran = sorted((name for name in row.results if row.timing(name)), key=lambda name: name != row.ours)
    lines = []
    for name in ran:
        ratio, rate, share = row.ratio(name), row.rate(name), percent(row, name, ceilings)
        line = (name, *_times(row.timing(name)), f"{ratio:.2f}" if ratio else "-")
        if is_rated:
            line += (rate_text(rate, UNITS[row.ceiling]) if rate else "-", f"{share:.0f} %" if share else "-")
        lines.append(line)
    return Table(title, columns, lines, 0 if ran and ran[0] == row.ours else None)


def _times(found: Timing | None) -> tuple[str, str, str]:
    """Wall, its percentiles, CPU."""
    if found is None:
        return "-", "-", "-"
    digits = 4 if found.ms < 0.1 else 3 if found.ms < 10 else 1
    low, high = found.wall[1:]
    return f"{found.ms:.{digits}f}", f"{low:.{digits}f}-{high:.{digits}f}", f"{found.cpu[0]:.{digits}f}"


def rate_text(value: float, unit: str) -> str:
    if unit == "GFLOP/s" and value >= 1000:
        value, unit = value / 1000, "TFLOP/s"
    shown = f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"
    return f"{shown} {unit}"


def limit_text(name: str, ceilings: Mapping[str, float]) -> str:
    return f"{name} {rate_text(ceilings[name], UNITS[name])}"


def header_text(header: Mapping[str, str], ceilings: Mapping[str, float]) -> str:
    facts = textwrap.wrap(" | ".join(f"{item}: {value}" for item, value in header.items()), width=118)
    return "\n".join([*facts, "limits, measured: " + ", ".join(limit_text(name, ceilings) for name in ceilings)])


def show(rows: Sequence[Row], ceilings: Mapping[str, float]) -> None:
    """Prints the tables: by rich where it is installed, else aligned with blanks."""
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable
    except ImportError:
        print(text(rows, ceilings))
        return
    # Into a file or a pipe nothing is folded.
    console = Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False)
    for one in tables(rows, ceilings):
        console.print(f"\n{one.title}", style="bold")
        shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(one.columns):
            shown.add_column(column, justify="right" if number else "left", no_wrap=True)
        for number, line in enumerate(one.lines):
            shown.add_row(*line, style="bold" if number == one.marked else None)
        console.print(shown)


def text(rows: Sequence[Row], ceilings: Mapping[str, float]) -> str:
    lines = []
    for one in tables(rows, ceilings):
        lines += ["", one.title, *aligned([one.columns, *one.lines])]
    return "\n".join(lines)


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """First column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()  # type: ignore[arg-type]
        for line in table
    ]


def reasons(rows: Iterable[Row]) -> list[str]:
    """Which competitors' versions were measured, and why others weren't and how to get them: each once."""
    facts = {f"{name}: {fact}" for row in rows for name, fact in row.facts.items()}
    absent = {f"{name}: {found}" for row in rows for name, found in row.results.items() if isinstance(found, str)}
    return [*sorted(facts), *sorted(absent)]


def notes(rows: Sequence[Row], libraries: Mapping[str, str]) -> list[str]:
    """What ends the terminal's report: the legend, the reasons, and the libraries that no row asked for."""
    asked = {name for row in rows for name in row.results}
    others = [f"{name}: {found.replace('absent: ', ABSENT)}" for name, found in libraries.items() if name not in asked]
    return ["", LEGEND, *reasons(rows), *others]


def failures(rows: Iterable[Row]) -> list[str]:
    """Which backends and competitors raised an error."""
    return [
        f"{row.op} {row.shape} {row.dtype}, {name}: {found}"
        for row in rows
        for name, found in row.results.items()
        if isinstance(found, str) and found.startswith(FAILED)
    ]


def percent(row: Row, name: str, ceilings: Mapping[str, float]) -> float | None:
    rate = row.rate(name)
    return 100 * rate / ceilings[row.ceiling] if rate and row.ceiling in ceilings else None


def as_json(rows: Sequence[Row], machine: str, header: Mapping[str, str], ceilings: Mapping[str, float]) -> dict:
    """Everything, with rates, ratios and percentages beside the timings that they come from."""
    return {
        "format": FORMAT,
        "machine": machine,
        "header": dict(header),
        "ceilings": {name: {"value": value, "unit": UNITS[name]} for name, value in ceilings.items()},
        "rows": [_row_as_json(row, ceilings) for row in rows],
    }


def _row_as_json(row: Row, ceilings: Mapping[str, float]) -> dict[str, Any]:
    ran = [name for name in row.results if row.timing(name)]
    return asdict(row) | {
        "ratios": {name: row.ratio(name) for name in ran if name != row.ours},
        "cpu_ratios": {name: row.cpu_ratio(name) for name in ran if name != row.ours},
        "rates": {name: row.rate(name) for name in ran},
        "percent_of_limit": {name: percent(row, name, ceilings) for name in ran},
    }


def as_csv(rows: Iterable[Row], ceilings: Mapping[str, float]) -> str:
    """One line a competitor and row, with the columns of CSV_COLUMNS."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        for name, found in row.results.items():
            line = {key: getattr(row, key) for key in CSV_COLUMNS[:6]} | {"competitor": name}
            if isinstance(found, Timing):
                line |= dict(zip(("wall_ms", "wall_ms_p20", "wall_ms_p80"), found.wall, strict=True))
                line |= dict(zip(("cpu_ms", "cpu_ms_p20", "cpu_ms_p80"), found.cpu, strict=True))
                line |= {"samples": found.samples, "calls": found.calls, "limit": row.ceiling}
                line |= {"ratio": row.ratio(name), "cpu_ratio": row.cpu_ratio(name)}
                line |= {"rate": row.rate(name), "unit": UNITS.get(row.ceiling, "")}
                line |= {"percent_of_limit": percent(row, name, ceilings)}
            else:
                line["note"] = found
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in line.items()})
    return out.getvalue()


def write(
    folder: Path, stem: str, rows: Sequence[Row], machine: str, header: Mapping[str, str], ceilings: Mapping[str, float]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found = as_json(rows, machine, header, ceilings)
    (folder / f"{stem}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / f"{stem}.csv").write_text(as_csv(rows, ceilings), encoding="utf-8")
