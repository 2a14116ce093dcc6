"""What changed between two measurements on one machine: improved, slower, or within noise.

    python -m benchmarks.compare before.json after.json
    python -m benchmarks.compare before/ after/            files of the same name belong together

A and B are the JSON that a benchmark wrote, or folders of them. The change is that of the median wall time. Its noise
band goes from the shortest that B and the longest that A usually took to the reverse (20th and 80th percentile); a
change is real only where the whole band lies on one side of zero. Runs on different machines aren't compared.

Exit codes: 0 nothing slower, 1 something slower beyond noise, 2 bad input.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = 1  # of the JSON, as report.py writes it
IMPROVED, SLOWER, NOISE = "improved", "slower", "within noise"
# Items of the header that explain a change, where they differ.
SETTINGS = (
    "processor", "torch", "python", "mlperf_fast", "triton", "CUDA", "threads", "allocator", "waiting threads",
    "huge pages",
)  # fmt: skip


class BadInput(Exception):
    """What is wrong with which file, for the user."""


class OtherJSON(BadInput):
    """Whole, but no benchmark's: left out where it was not named itself."""


@dataclass(frozen=True)
class Change:
    """Of one competitor in one case: median, 20th and 80th percentile of both, in ms."""

    case: str
    competitor: str
    a: tuple[float, float, float]
    b: tuple[float, float, float]

    @property
    def change(self) -> float:
        """Relative: 0.1 is 10 % longer."""
        return self.b[0] / self.a[0] - 1

    @property
    def band(self) -> tuple[float, float]:
        return self.b[1] / self.a[2] - 1, self.b[2] / self.a[1] - 1

    @property
    def verdict(self) -> str:
        low, high = self.band
        return SLOWER if low > 0 else IMPROVED if high < 0 else NOISE


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", type=Path, metavar="A", help="the earlier: a JSON file or a folder of them")
    parser.add_argument("b", type=Path, metavar="B", help="the later")
    chosen = parser.parse_args(arguments)
    try:
        verdicts = [verdict for a, b in pairs(chosen.a, chosen.b) for verdict in show(a, b)]
        if not verdicts:
            raise BadInput(f"{chosen.a} and {chosen.b} have no case in common")
    except BadInput as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    print(f"\n{', '.join(f'{verdicts.count(verdict)} {verdict}' for verdict in (IMPROVED, SLOWER, NOISE))}")
    return 1 if SLOWER in verdicts else 0


def pairs(a: Path, b: Path) -> Iterator[tuple[Path, Path]]:
    """The files to compare: the two given, or those of the same name. BadInput where there are none."""
    for path in (a, b):
        if not path.exists():
            raise BadInput(f"{path}: there is no such file or folder")
    if a.is_file() and b.is_file():
        yield a, b
        return
    names_a, names_b = ({path.name: path for path in found} for found in (_files(a), _files(b)))
    both = sorted(names_a.keys() & names_b.keys())
    if not both:
        raise BadInput(f"{a} and {b} have no benchmark's JSON of the same name")
    for side, only in (("A", names_a.keys() - names_b.keys()), ("B", names_b.keys() - names_a.keys())):
        for name in sorted(only) if a.is_dir() and b.is_dir() else ():
            print(f"{name}: only in {side}")
    yield from ((names_a[name], names_b[name]) for name in both)


def _files(path: Path) -> list[Path]:
    """The file, or the folder's that benchmarks wrote."""
    if path.is_file():
        return [path]
    found = []
    for file in sorted(path.glob("*.json")):
        try:
            read(file)
        except OtherJSON as error:
            print(f"left out: {error}")
        else:
            found.append(file)
    return found


def show(a: Path, b: Path) -> list[str]:
    """Prints the changes from file a to file b; returns the verdicts."""
    old, new = read(a), read(b)
    if old["machine"] != new["machine"]:
        raise BadInput(
            f"{a} was measured on {old['machine']} and {b} on {new['machine']}: times of two machines don't compare"
        )
    print(f"\n{a} -> {b}, {old['machine']}")
    for item in SETTINGS:
        before, after = (one["header"].get(item, "unknown") for one in (old, new))
        if before != after:
            print(f"note: {item} differs: {before} -> {after}")
    for path, one in ((a, old), (b, new)):
        if "busy" in one["header"].get("others during the run", ""):
            print(f"note: {path}: others used the machine: {one['header']['others during the run']}")
    olds, news = timings(a, old), timings(b, new)
    changes = [Change(*key, olds[key], news[key]) for key in olds if key in news]
    lines = [("", "A ms", "B ms", "change", "noise band", "verdict"), *map(_line, changes)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    case = None
    for change, line in zip([None, *changes], lines, strict=True):
        if change and change.case != case:
            case = change.case
            print(case)
        cells = [line[0].ljust(widths[0]), *map(str.rjust, line[1:-1], widths[1:-1]), line[-1]]
        print("  " + "  ".join(cells).rstrip())
    for side, only in (("A", olds.keys() - news.keys()), ("B", news.keys() - olds.keys())):
        for case, competitor in sorted(only):
            print(f"only in {side}: {case}: {competitor}")
    return [change.verdict for change in changes]


def _line(change: Change) -> tuple[str, ...]:
    low, high = (f"{100 * edge:+.1f}" for edge in change.band)
    times = (f"{change.a[0]:.4g}", f"{change.b[0]:.4g}")
    return (change.competitor, *times, f"{100 * change.change:+.1f} %", f"{low} to {high} %", change.verdict)


def timings(path: Path, found: dict[str, Any]) -> dict[tuple[str, str], tuple[float, float, float]]:
    """(case, competitor) -> median, 20th and 80th percentile of what ran."""
    times = {}
    try:
        for row in found["rows"]:
            case = f"{row['op']}: {row['shape']}, {row['dtype']}, {row['threads']} thread{'s' * (row['threads'] != 1)}"
            for competitor, result in row["results"].items():
                if isinstance(result, str):
                    continue
                middle, low, high = map(float, result["wall"])
                if not 0 < low <= middle <= high < math.inf:
                    raise ValueError(f"{case}: {competitor}: wall times {result['wall']} are no percentiles")
                times[case, competitor] = middle, low, high
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadInput(f"{path}: not what a benchmark writes: {type(error).__name__}: {error}") from None
    return times


def read(path: Path) -> dict[str, Any]:
    """The JSON of one file. BadInput for one that is cut off, or isn't a benchmark's."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise BadInput(f"{path}: can't be read as JSON, it may have been cut off: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("rows"), list):
        raise OtherJSON(f"{path}: not what a benchmark writes: expected an object with `rows`")
    if found.get("format") != FORMAT or not isinstance(found.get("header"), dict) or "machine" not in found:
        raise BadInput(f"{path}: expected format {FORMAT}, found {found.get('format')!r}: measure it anew")
    return found


if __name__ == "__main__":
    sys.exit(main())
