"""The raw click log: Criteo's day_0.gz, day_1.gz … as text, and from text to rows.

A line is label, 13 integers and 26 hexadecimal hashes, tab-separated; an empty field is a missing value.
"""

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mlperf_fast import _C
from mlperf_fast.data.prefetch import Prefetcher
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.dlrm.data import COLUMN_NAMES, COLUMNS

GZIP = 31  # zlib's code for "gzip header and checksum, window of 32 KiB"
READ_BYTES = 1 << 20
TEXT_BYTES = 4 << 20  # most text that is inflated at once
LONGEST_LINE = 1 << 16  # a true line has about 250 bytes

EXPECTED = {
    2: "the label must be 0 or 1",
    3: "expected a whole number that fits 32 bits, or nothing",
    4: "expected 1 to 8 hexadecimal digits, or nothing",
}


def find_days(folder: Path) -> list[Path]:
    """day_0.gz, day_1.gz … in order; UserError if there are fewer than two or one in the sequence is missing."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder. --raw names the folder of day_0.gz, day_1.gz …")
    found = {int(match[1]) for path in folder.iterdir() if (match := re.fullmatch(r"day_(\d{1,4})\.gz", path.name))}
    days = [folder / f"day_{day}.gz" for day in range(max(found, default=-1) + 1)]
    missing = [path.name for path in days if not path.is_file()]
    if missing:
        raise UserError(f"{folder} goes up to {days[-1].name}, but has no {', '.join(missing[:5])}: get those")
    if len(days) < 2:
        raise UserError(
            f"{folder} holds {len(days)} files day_N.gz, but 2 are the least: the last day becomes the test set. "
            "Expected gzipped text, one file a day, numbered from day_0.gz"
        )
    return days


def estimate_rows(path: Path) -> int:
    """About how many lines a day has, from the density of its first part."""
    with open(path, "rb") as file:
        head = file.read(READ_BYTES)
    inflate = zlib.decompressobj(wbits=GZIP)
    try:
        lines = inflate.decompress(head, TEXT_BYTES).count(b"\n")
    except zlib.error:
        lines = 0  # read_rows will say what is wrong, at its place
    used = len(head) - len(inflate.unconsumed_tail) - len(inflate.unused_data)
    return path.stat().st_size * lines // max(used, 1)


def text_blocks(path: Path) -> Iterator[bytes]:
    """A day's text in blocks of whole lines, a few MB each. UserError for a damaged file or an endless line."""
    rest = b""
    for block in _inflated(path):
        end = block.rfind(b"\n") + 1
        if end:
            yield rest + block[:end]
            rest = block[end:]
        else:
            rest += block
        if len(rest) > LONGEST_LINE:
            raise UserError(f"{path}: a line is longer than {LONGEST_LINE} bytes: this is no click log")
    if rest:
        yield rest + b"\n"


def _inflated(path: Path) -> Iterator[bytes]:
    # A gzip file may be several, one behind the other, with zeros at the end.
    between, data = True, b""
    with open(path, "rb") as file:
        while data or (data := file.read(READ_BYTES)):
            if between:
                data = data.lstrip(b"\0")
                if not data:
                    continue
                inflate = zlib.decompressobj(wbits=GZIP)
            try:
                text = inflate.decompress(data, TEXT_BYTES)
            except zlib.error as error:
                raise UserError(f"{path}: damaged near byte {file.tell():,} ({error}): get the file again") from None
            between = inflate.eof
            data = inflate.unused_data if between else inflate.unconsumed_tail
            yield text
        if not between:
            raise UserError(f"{path}: cut short at byte {file.tell():,} of gzip data: get the file again")


def read_rows(path: Path, chunk: np.ndarray, max_index_range: int) -> Iterator[tuple[int, int]]:
    """Fills `chunk` (int32 [capacity, 40]) with a day's rows again and again; yields (rows, negative integers) of each.

    Hashes are taken modulo `max_index_range` and not yet replaced by indices; missing values and negative integers
    are 0. A thread inflates ahead. UserError names file, line, column and text of the first fault.
    """
    capacity, filled, negatives, line = len(chunk), 0, 0, 0
    with Prefetcher(text_blocks(path), depth=2) as blocks:
        for text in blocks:
            start, address = 0, np.frombuffer(text, np.uint8).ctypes.data
            while start < len(text):
                rows, negative, fault, column, begin, end = _C.criteo_parse(
                    address + start,
                    len(text) - start,
                    max_index_range,
                    chunk.ctypes.data + filled * chunk.strides[0],
                    capacity - filled,
                )
                line += rows
                filled += rows
                negatives += negative
                if fault:
                    raise UserError(_describe(path, line + 1, fault, column, text[start + begin : start + end]))
                start += end
                if filled == capacity:
                    yield filled, negatives
                    filled = negatives = 0
    if line == 0:
        raise UserError(f"{path} is empty: each day must have at least one line. Get the file again")
    if filled:
        yield filled, negatives


def _describe(path: Path, line: int, fault: int, column: int, text: bytes) -> str:
    shown = text[:80].decode("ascii", "backslashreplace") + ("…" if len(text) > 80 else "")
    if fault == 1:
        what = f"{column} fields instead of {COLUMNS}: {shown!r}"
    else:
        what = f"column {column + 1} ({COLUMN_NAMES[column]}): {shown!r}; {EXPECTED[fault]}"
    return f"{path}, line {line}: {what}. Mend the line, or get the file again"
