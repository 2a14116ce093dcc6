"""Rows as a table for the terminal or a Markdown file, as JSON and as CSV."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from .ceilings import UNITS
from .measure import Row, Timing

CSV_COLUMNS = (
    "op", "shape", "dtype", "threads", "bytes", "flops", "competitor", "wall_ms", "wall_ms_p20", "wall_ms_p80",
    "cpu_ms", "cpu_ms_p20", "cpu_ms_p80", "samples", "calls", "rate", "unit", "percent_of_limit", "limit", "ratio",
    "cpu_ratio", "note",
)  # fmt: skip


def text(rows: Sequence[Row], header: Mapping[str, str], ceilings: Mapping[str, float]) -> str:
    """The terminal's form: header, one table for each set of competitors, what didn't run and why."""
    lines = [" | ".join(f"{item} {value}" for item, value in header.items())]
    if ceilings:
        lines.append("limits, measured: " + ", ".join(limit_text(name, ceilings) for name in ceilings))
    for _, group in groupby(rows, key=lambda row: (row.op, tuple(row.results))):
        lines += ["", *_aligned(_cells(list(group), ceilings))]
    lines += ["", "ms: median wall (20th-80th percentile); ×: how many times as long as ours it takes, by wall medians"]
    lines += notes(rows)
    return "\n".join(lines)


def notes(rows: Iterable[Row]) -> list[str]:
    """Why competitors didn't run, and which versions of others did, each once."""
    absent = {f"{name}: {found}" for row in rows for name, found in row.results.items() if isinstance(found, str)}
    facts = {f"{name}: {fact}" for row in rows for name, fact in row.facts.items()}
    return [*sorted(facts), *sorted(absent)]


def limit_text(name: str, ceilings: Mapping[str, float]) -> str:
    return f"{name} {ceilings[name]:.1f} {UNITS[name]}"


def peers(row: Row) -> list[str]:
    """The competitors that ran."""
    return [name for name in row.results if name != row.ours and row.timing(name)]


def percent(row: Row, name: str, ceilings: Mapping[str, float]) -> float | None:
    rate = row.rate(name)
    return 100 * rate / ceilings[row.ceiling] if rate and row.ceiling in ceilings else None


def as_json(rows: Sequence[Row], header: Mapping[str, str], ceilings: Mapping[str, float]) -> dict[str, Any]:
    """Everything, with ratios and percentages beside the timings that they come from."""
    return {
        "header": dict(header),
        "ceilings": {name: {"value": value, "unit": UNITS[name]} for name, value in ceilings.items()},
        "rows": [
            asdict(row)
            | {"ratios": {name: row.ratio(name) for name in peers(row)}}
            | {"cpu_ratios": {name: row.cpu_ratio(name) for name in peers(row)}}
            | {"percent_of_limit": percent(row, row.ours, ceilings)}
            for row in rows
        ],
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


def write(folder: Path, stem: str, rows: Sequence[Row], header: Mapping[str, str], ceilings: Mapping[str, float]):
    folder.mkdir(parents=True, exist_ok=True)
    found = as_json(rows, header, ceilings)
    (folder / f"{stem}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    (folder / f"{stem}.csv").write_text(as_csv(rows, ceilings))


def _cells(group: list[Row], ceilings: Mapping[str, float]) -> list[list[str]]:
    """The table's cells, first line the titles. A ratio stands in the column behind its competitor's time."""
    first = group[0]
    titles = [first.op, "dtype"]
    for name in first.results:
        titles += [f"{name} ms"] if name == first.ours else [f"{name} ms", "×"]
    rated = first.ceiling in ceilings
    titles += [f"ours {UNITS[first.ceiling]}", f"% {first.ceiling}"] if rated else []
    table = [titles]
    for row in group:
        line = [row.shape, row.dtype]
        for name in row.results:
            line.append(_time_text(row.results[name]))
            if name != row.ours:
                ratio = row.ratio(name)
                line.append(f"{ratio:.2f}" if ratio else "-")
        if rated:
            rate, share = row.rate(row.ours), percent(row, row.ours, ceilings)
            line += [f"{rate:.1f}" if rate else "-", f"{share:.0f} %" if share else "-"]
        table.append(line)
    return table


def _time_text(found: Timing | str) -> str:
    if isinstance(found, str):
        return "not run"
    low, high = found.wall[1:]
    digits = 4 if found.ms < 0.1 else 3 if found.ms < 10 else 1
    return f"{found.ms:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _aligned(table: list[list[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]
