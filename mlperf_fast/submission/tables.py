"""Plain text for a terminal, a pipe or a file alike: tables as wide as they are, and names made safe to print."""

import os
from collections.abc import Sequence


def printable(text: str | os.PathLike[str]) -> str:
    """A text from outside, on one line: control characters and broken encodings are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in os.fspath(text))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, *, text_last: bool = False) -> str:
    """Aligned columns: the first `left`, and the last if it is text, to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = []
    for row in [columns, ["-" * width for width in widths], *rows]:
        cells = [
            f"{cell:<{width}}" if i < left or (text_last and i == len(widths) - 1) else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def figure(value: float | None, digits: int) -> str:
    """A number with so many decimals, or a dash where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"
