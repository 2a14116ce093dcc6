"""Where the logs of a submission lie: results/<system>/<benchmark>/result_<i>.txt beside systems/<system>.json.

A path may name any level of that tree, or a folder outside of one that holds result logs. Links are followed to where
they lead, and no folder is visited twice, so that a loop of links ends.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mlperf_fast.errors import UserError
from mlperf_fast.submission.records import is_number
from mlperf_fast.submission.tables import printable

# What the official package checker takes for a log (glob: result_*.txt).
LOG_NAME = re.compile(r"result_.*\.txt", re.DOTALL)
_DEPTH = 3  # of a benchmark's folder below a package's


@dataclass(frozen=True, slots=True)
class Folder:
    """One benchmark of one system, what a score belongs to. description: of the system, if it lies where it should.
    in_package: whether it lies in results/<system>/."""

    path: str
    logs: tuple[str, ...]
    system: str
    description: str | None = None
    in_package: bool = False


def entries(path: str) -> list[os.DirEntry[str]]:
    """What a folder holds, by name, numbers by their value. OSError if it can't be read."""
    with os.scandir(path) as found:
        return sorted(found, key=lambda entry: _by_number(entry.name))


def benchmark_folder(path: str) -> Folder:
    """The folder with its logs. OSError if it can't be read."""
    logs = tuple(entry.path for entry in entries(path) if LOG_NAME.fullmatch(entry.name))
    above = os.path.dirname(os.path.abspath(path))
    system = os.path.basename(above)
    description = os.path.join(os.path.dirname(os.path.dirname(above)), "systems", f"{system}.json")
    in_package = os.path.basename(os.path.dirname(above)) == "results"
    return Folder(path, logs, system, description if in_package and os.path.lexists(description) else None, in_package)


def find(path: str) -> Iterator[Folder | tuple[str, str]]:
    """Every folder with logs at `path` or below, and (folder, why) for one that can't be read."""
    yield from _find(path, _DEPTH, set())


def find_all(path: str) -> list[Folder]:
    """Every folder with logs at `path` or below. UserError if there is none, or one can't be read."""
    if not os.path.isdir(path):
        what = "a file; name its folder" if os.path.exists(path) else "no such folder"
        raise UserError(f"{printable(path)}: {what}")
    found = list(find(path))
    for item in found:
        if not isinstance(item, Folder):
            raise UserError(f"{printable(item[0])} can't be read: {item[1]}")
    if not found:
        raise UserError(f"{printable(path)}: no result_*.txt in this folder, nor where a package has them below it")
    return [item for item in found if isinstance(item, Folder)]


def scaling_factor(path: str) -> float | None:
    """What scaling.json in a benchmark's folder holds, None without one or if it isn't a positive number."""
    name = os.path.join(path, "scaling.json")
    if not os.path.isfile(name):
        return None
    try:
        with open(name, "rb") as file:
            factor = json.loads(file.read(4096).decode())["scaling_factor"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return float(factor) if is_number(factor) and 0 < factor < 1e9 else None


def is_package(path: str) -> bool:
    """Whether this is an organization's folder, the top of a submission package."""
    return os.path.isdir(os.path.join(path, "results")) or os.path.isdir(os.path.join(path, "systems"))


def _find(path: str, depth: int, seen: set[tuple[int, int]]) -> Iterator[Folder | tuple[str, str]]:
    try:
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        folder = benchmark_folder(path)
        below = [e.path for e in entries(path) if not LOG_NAME.fullmatch(e.name) and os.path.isdir(e.path)]
    except OSError as error:
        yield path, error.strerror or str(error)
        return
    if folder.logs:
        yield folder
    elif depth:
        if is_package(path):
            below = [os.path.join(path, "results")] if os.path.isdir(os.path.join(path, "results")) else []
        for sub in below:
            yield from _find(sub, depth - 1, seen)


def _by_number(name: str) -> list[tuple[int, str]]:
    """A sort key by which result_2.txt comes before result_10.txt."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part[:100]), "") if part[:1].isdecimal() and part.isascii() else (-1, part) for part in parts]
