"""Reading a data set back: counts, ranges, label rate and checksums, streaming."""

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mlperf_fast import _C
from mlperf_fast.data.files import replace_file
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.dlrm.data import (
    COLUMN_NAMES,
    COLUMNS,
    COUNTS_FILE,
    INTEGERS,
    META_FILE,
    ROW_BYTES,
    TEST_FILE,
    TRAIN_FILE,
    Meta,
    count_samples,
    read_meta,
)

BLOCK_ROWS = 1 << 16
SAY_EVERY = 10.0  # seconds


@dataclass
class Audit:
    """Facts of some rows, column by column: int64 [40] each."""

    minima: np.ndarray
    maxima: np.ndarray
    sums: np.ndarray


@dataclass
class Report:
    """What a raw file holds."""

    samples: int
    positives: int
    sums: np.ndarray  # int64 [40], of each column
    sha256: str
    problems: list[str]


def verify(folder: str | os.PathLike, progress: Callable[[str], None] = lambda line: None) -> Meta:
    """Reads a data set whole and compares it with what its meta.json says; UserError lists every problem.

    Checked: sizes, labels 0 or 1, integers >= 0, ids inside their tables, both labels in the test set, the number of
    clicks, and the sha256 of each file. Needs memory for one block only.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    problems = []
    if not meta.sha256:
        progress(f"{folder}: no {META_FILE}, so there are no checksums to compare; ids and values are checked")
    elif (folder / COUNTS_FILE).exists():
        if hashlib.sha256((folder / COUNTS_FILE).read_bytes()).hexdigest() != meta.sha256.get(COUNTS_FILE):
            problems.append(f"{COUNTS_FILE}: its checksum isn't the one in {META_FILE}")
    else:
        problems.append(f"{COUNTS_FILE} is missing")
    for name, positives in ((TRAIN_FILE, meta.train_positives), (TEST_FILE, meta.test_positives)):
        report = inspect(folder / name, meta.table_rows, progress)
        problems += report.problems
        if positives is not None and report.positives != positives:
            problems.append(f"{name}: {report.positives:,} clicks instead of {positives:,}")
        if meta.sha256 and report.sha256 != meta.sha256.get(name):
            problems.append(f"{name}: its checksum isn't the one in {META_FILE}")
        progress(f"{name}: {report.samples:,} samples, {report.positives / report.samples:.4%} clicks")
        if name == TEST_FILE and (problem := label_problem(name, report.positives, report.samples)):
            problems.append(problem)
    if problems:
        raise UserError(f"{folder} is no valid data set:\n  " + "\n  ".join(problems) + "\nPrepare it anew")
    return meta


def label_problem(name: str, positives: int | None, samples: int) -> str | None:
    """Why a set is no test set, if it is none."""
    return f"{name}: all labels are the same, so it gives no AUC" if positives in (0, samples) else None


def inspect(path: Path, table_rows: Sequence[int], progress: Callable[[str], None]) -> Report:
    """One pass over a raw file. Of each column the first bad value is reported."""
    samples = count_samples(path)
    low = np.zeros(COLUMNS, dtype=np.int64)
    high = np.array([1, *[2**31 - 1] * INTEGERS, *(rows - 1 for rows in table_rows)], dtype=np.int64)
    digest, sums = hashlib.sha256(), np.zeros(COLUMNS, dtype=np.int64)
    faults: dict[int, str] = {}
    said, row = time.monotonic(), 0
    with open(path, "rb") as file:
        while data := file.read(BLOCK_ROWS * ROW_BYTES):
            digest.update(data)
            rows = np.frombuffer(data, dtype="<i4").reshape(-1, COLUMNS)
            found = audit(rows)
            sums += found.sums
            for column in np.flatnonzero((found.minima < low) | (found.maxima > high)).tolist():
                if column not in faults:
                    values = rows[:, column]
                    bad = int(np.flatnonzero((values < low[column]) | (values > high[column]))[0])
                    faults[column] = (
                        f"{path.name}: row {row + bad}, column {COLUMN_NAMES[column]}: {values[bad]} is outside "
                        f"{low[column]} .. {high[column]}"
                    )
            row += len(rows)
            if time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                progress(f"{path.name}: {row:,} of {samples:,} rows checked")
    problems = [faults[column] for column in sorted(faults)]
    return Report(samples, int(sums[0]), sums, digest.hexdigest(), problems)


def audit(rows: np.ndarray) -> Audit:
    """Smallest and largest value and sum of each column of `rows`, contiguous int32 [n, 40]."""
    found = Audit(
        minima=np.full(COLUMNS, 2**31 - 1, dtype=np.int64),
        maxima=np.full(COLUMNS, -(2**31), dtype=np.int64),
        sums=np.zeros(COLUMNS, dtype=np.int64),
    )
    _C.criteo_audit(
        rows.ctypes.data, len(rows), found.minima.ctypes.data, found.maxima.ctypes.data, found.sums.ctypes.data
    )
    return found


def write_counts(path: Path, counts: Sequence[int]) -> str:
    """day_fea_count.npz, as the reference names and reads it; returns its sha256."""
    buffer = io.BytesIO()
    np.savez(buffer, counts=np.array(counts, dtype=np.int32))
    replace_file(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def write_meta(folder: Path, meta: Meta) -> None:
    replace_file(folder / META_FILE, json.dumps(asdict(meta), indent=1).encode())
