"""Criteo's click log, from text to the reference's binary format, and the check of such a data set by content.

The reference's preprocessing in two streaming passes, in bounded memory, resumable:

1. Each day is parsed. A dictionary for each categorical column, over all days in order, numbers the hashes (modulo
   max_index_range) in the order of first appearance. Each training row goes to a random one of K bucket files; the
   last day's rows stay in order, and their first half, ceil(n/2) rows, is the test set.
2. Each bucket is read, put in random order and appended to the training file. Random buckets and then random orders
   inside them make a uniformly random order of all rows (Rao and Sandelius).

Unfinished work lies in OUT/unfinished. Its state.json says how much of each file counts; it is replaced whole after
each day and each bucket, so a process that is killed at any moment goes on from there and ends with the same bytes.
"""

import json
import mmap
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlperf_fast import _C
from mlperf_fast.data.files import append, clear_file_errors, cut, locked, replace_file, require_own, sync
from mlperf_fast.data.order import permutation, random_bits
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.dlrm.data import (
    COLUMNS,
    COUNTS_FILE,
    META_FILE,
    ROW_BYTES,
    TABLES,
    TEST_FILE,
    TRAIN_FILE,
    Meta,
    read_meta,
)
from mlperf_fast.workloads.dlrm.raw import estimate_rows, find_days, read_rows
from mlperf_fast.workloads.dlrm.verify import (
    audit,
    inspect,
    label_problem,
    verify,
    write_counts,
    write_meta,
)

WORK = "unfinished"
# What an interrupted prepare may leave in the output folder; .new files are written before they replace others.
OURS = {TRAIN_FILE, TEST_FILE, COUNTS_FILE, f"{COUNTS_FILE}.new", META_FILE, f"{META_FILE}.new", WORK}
SAY_EVERY = 10.0  # seconds
# Rows whose new dictionary entries are collected at once.
INDEX_BLOCK = 16384
# Which random stream is drawn for what.
TO_BUCKETS, IN_BUCKET, TO_PARTS = 1, 2, 3

Say = Callable[[str], None]


@dataclass
class State:
    """What is done, as state.json holds it. Whatever files hold beyond these counts is dropped on resuming."""

    settings: dict[str, Any]
    buckets: int
    days: list[int] = field(default_factory=list)  # rows of the days that were converted
    counts: list[int] = field(default_factory=lambda: [0] * TABLES)  # distinct values of each column
    bucket_rows: list[int] = field(default_factory=list)
    sums: list[int] = field(default_factory=lambda: [0] * COLUMNS)  # of each column over the training rows
    negatives: int = 0  # integers below 0 in the text, which became 0
    merged: int = 0  # buckets that are in the training file

    def save(self, work: Path) -> None:
        replace_file(work / "state.json", json.dumps(asdict(self)).encode())


def prepare(
    raw_folder: str | os.PathLike,
    out_folder: str | os.PathLike,
    *,
    max_index_range: int = 40_000_000,
    seed: int = 0,
    memory_mb: int = 1024,
    source: str | None = None,
    progress: Say = lambda line: None,
) -> Meta:
    """Converts day_0.gz … day_N.gz in `raw_folder` to a verified data set in `out_folder`.

    Any number of days from 2 up; the last one gives the test set. `memory_mb` bounds the rows in memory. The
    dictionaries come on top: 4 bytes for each of max_index_range values in each column at most (4.2 GB at the
    benchmark's 40 million), touched page by page as values appear. The disk must hold every row once (160 bytes) and
    one bucket twice. Run again after an interruption, it goes on after the last finished day or bucket. UserError for
    faults of the text (file, line, column, text), of the folders, and for a full disk.
    """
    raw, out = Path(raw_folder).resolve(), Path(out_folder).resolve()
    if not (1 <= max_index_range < 2**31 and memory_mb >= 1 and seed >= 0):
        raise UserError("max_index_range must lie in 1 .. 2^31-1, memory_mb must be 1 or more, the seed 0 or more")
    days = find_days(raw)
    settings = {"max_index_range": max_index_range, "seed": seed, "raw": {d.name: d.stat().st_size for d in days}}
    if out == raw:
        raise UserError(f"{out}: --raw and --out name the same folder; choose another --out")
    require_own(out, OURS, {WORK, META_FILE})
    if (out / META_FILE).exists():
        return finished_before(out, settings, progress)
    work = out / WORK
    with clear_file_errors(out), locked(work):
        state = load_state(work, settings) or new_state(days, out, settings, memory_mb)
        state.save(work)
        convert_days(days, work, state, memory_mb, progress)
        merge_buckets(work, state, memory_mb, progress)
        meta = publish(out, state, source or f"{len(days)} days of Criteo text", progress)
        shutil.rmtree(work)
    if problem := label_problem(TEST_FILE, meta.test_positives, meta.test_samples):
        raise UserError(f"{out}: {problem}")
    return meta


def finished_before(out: Path, settings: dict[str, Any], progress: Say) -> Meta:
    """The data set that is there already, verified, if it was made from the same raw data."""
    meta = read_meta(out)
    if {key: meta.settings.get(key) for key in settings} != settings:
        raise UserError(f"{out} holds another data set ({meta.source}); choose another --out, or remove that folder")
    progress(f"{out} was prepared before from the same files")
    shutil.rmtree(out / WORK, ignore_errors=True)
    return verify(out, progress)


def load_state(work: Path, settings: dict[str, Any]) -> State | None:
    path = work / "state.json"
    if not path.exists():
        return None
    try:
        state = State(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): remove {work} and prepare anew") from None
    if state.settings != settings:
        changed = [key for key in settings if settings[key] != state.settings.get(key)]
        raise UserError(
            f"{work} holds unfinished work with other {', '.join(changed)}. Finish that with the same raw files and "
            f"settings, or remove {work} and prepare anew"
        )
    return state


def new_state(days: list[Path], out: Path, settings: dict[str, Any], memory_mb: int) -> State:
    rows = [estimate_rows(day) for day in days]
    # A tenth more for what the estimate misses and for the dictionaries.
    needed, free = int(sum(rows) * ROW_BYTES * 1.1), shutil.disk_usage(out).free
    if free < needed:
        raise UserError(
            f"{out}: about {needed / 1e9:.1f} GB are needed for some {sum(rows):,} rows, but the disk has "
            f"{free / 1e9:.1f} GB free. Choose a larger disk"
        )
    # Buckets a quarter smaller than what fits, so that none has to be split where the estimate is fair.
    buckets = 1 + int(sum(rows[:-1]) / (0.75 * rows_in(memory_mb)))
    return State(settings=settings, buckets=buckets, bucket_rows=[0] * buckets)


def rows_in(memory_mb: int) -> int:
    """Rows in a buffer, of which there is a second, permuted one: a quarter of the memory each, and room to spare."""
    return (memory_mb << 20) // 4 // ROW_BYTES


# Pass 1 ---------------------------------------------------------------------------------------------------------------


def convert_days(days: list[Path], work: Path, state: State, memory_mb: int, progress: Say) -> None:
    if len(state.days) == len(days):
        return
    for bucket, rows in enumerate(state.bucket_rows):
        cut(bucket_file(work, bucket), rows * ROW_BYTES)
    chunk = np.empty((rows_in(memory_mb), COLUMNS), dtype="<i4")
    dictionary = Dictionary(work, state)
    for day in range(len(state.days), len(days)):
        convert_day(days[day], day, day == len(days) - 1, chunk, dictionary, work, state, progress)


def convert_day(
    path: Path,
    day: int,
    is_test: bool,
    chunk: np.ndarray,
    dictionary: "Dictionary",
    work: Path,
    state: State,
    progress: Say,
) -> None:
    """Parses one day, spreads it over the buckets (or makes the test file of it), and commits."""
    bits = random_bits(state.settings["seed"], TO_BUCKETS, day)
    cut(work / TEST_FILE, 0)
    begun = said = time.monotonic()
    total, sums = 0, np.array(state.sums, dtype=np.int64)
    for n, negatives in read_rows(path, chunk, state.settings["max_index_range"]):
        rows = chunk[:n]
        dictionary.index(rows)
        if is_test:
            append(work / TEST_FILE, rows)
        else:
            sums += audit(rows).sums
            spread = scatter(rows, bits, [bucket_file(work, bucket) for bucket in range(state.buckets)])
            state.bucket_rows = [old + new for old, new in zip(state.bucket_rows, spread, strict=True)]
        state.negatives += negatives
        total += n
        if time.monotonic() - said > SAY_EVERY:
            said = time.monotonic()
            progress(f"{path.name}: {total:,} rows")
    if is_test:  # the first half in time; the other half belongs to no set
        cut(work / TEST_FILE, (total + 1) // 2 * ROW_BYTES)
    for name in [TEST_FILE] if is_test else [bucket_file(work, b).name for b in range(state.buckets)]:
        sync(work / name)
    state.days.append(total)
    state.counts = dictionary.commit()
    state.sums = sums.tolist()
    state.save(work)
    seconds = time.monotonic() - begun
    progress(f"{path.name}: {total:,} rows in {seconds:.1f} s, {total / seconds:,.0f} rows/s")


class Dictionary:
    """Hash -> index for each column. The values, in order, are also kept in files, from which a resumed run reads
    them back."""

    def __init__(self, work: Path, state: State):
        size = state.settings["max_index_range"]
        # Anonymous memory is zero and takes room only where it was written. Huge pages would undo that.
        self.maps = [mmap.mmap(-1, 4 * size) for _ in range(TABLES)]
        for each in self.maps:
            if hasattr(mmap, "MADV_NOHUGEPAGE"):
                each.madvise(mmap.MADV_NOHUGEPAGE)
        slots = [np.frombuffer(each, dtype=np.int32) for each in self.maps]
        self.addresses = np.array([slot.ctypes.data for slot in slots], dtype=np.int64)
        self.counts = np.array(state.counts, dtype=np.int64)
        self.fresh = np.empty((TABLES, INDEX_BLOCK), dtype=np.int32)
        self.paths = [work / f"dictionary_{table}.bin" for table in range(TABLES)]
        self.unwritten = [bytearray() for _ in range(TABLES)]
        for path, slot, count in zip(self.paths, slots, state.counts, strict=True):
            cut(path, 4 * count)
            if count:
                slot[np.fromfile(path, dtype="<i4")] = np.arange(1, count + 1, dtype=np.int32)

    def index(self, rows: np.ndarray) -> None:
        """Replaces the categories of `rows` (int32 [n, 40]) by their indices, in place."""
        for start in range(0, len(rows), INDEX_BLOCK):
            block = rows[start : start + INDEX_BLOCK]
            before = self.counts.copy()
            _C.criteo_index(
                block.ctypes.data,
                len(block),
                self.addresses.ctypes.data,
                self.counts.ctypes.data,
                self.fresh.ctypes.data,
            )
            flat = self.fresh.reshape(-1)
            for table in np.flatnonzero(self.counts > before).tolist():
                first = table * len(block)
                self.unwritten[table] += flat[first : first + self.counts[table] - before[table]].tobytes()
                if len(self.unwritten[table]) > 1 << 20:
                    self.write(table)

    def write(self, table: int) -> None:
        append(self.paths[table], np.frombuffer(self.unwritten[table], dtype=np.uint8))
        self.unwritten[table] = bytearray()

    def commit(self) -> list[int]:
        """Brings the files up to date and to the disk; returns the distinct values of each column."""
        for table, path in enumerate(self.paths):
            self.write(table)
            sync(path)
        return self.counts.tolist()


# Pass 2 ---------------------------------------------------------------------------------------------------------------


def merge_buckets(work: Path, state: State, memory_mb: int, progress: Say) -> None:
    """Appends the buckets, each in random order, to the training file."""
    for stale in work.glob("part_*.bin"):
        stale.unlink()
    for bucket in range(state.merged):  # killed between commit and removal
        bucket_file(work, bucket).unlink(missing_ok=True)
    if state.merged == state.buckets:
        return
    cut(work / TRAIN_FILE, sum(state.bucket_rows[: state.merged]) * ROW_BYTES)
    said = time.monotonic()
    for bucket in range(state.merged, state.buckets):
        path = bucket_file(work, bucket)
        if state.bucket_rows[bucket] > 1.5 * rows_in(memory_mb):
            append_in_parts(path, bucket, work, state, memory_mb)
        else:
            append_shuffled(path, (bucket,), work, state)
        sync(work / TRAIN_FILE)
        state.merged = bucket + 1
        state.save(work)
        path.unlink(missing_ok=True)
        if time.monotonic() - said > SAY_EVERY or state.merged == state.buckets:
            said = time.monotonic()
            progress(f"shuffled: {state.merged} of {state.buckets} parts")


def append_shuffled(path: Path, key: tuple[int, ...], work: Path, state: State) -> None:
    if path.exists():
        rows = np.fromfile(path, dtype="<i4").reshape(-1, COLUMNS)
        append(work / TRAIN_FILE, rows[permutation(len(rows), state.settings["seed"], IN_BUCKET, *key)])


def append_in_parts(path: Path, bucket: int, work: Path, state: State, memory_mb: int) -> None:
    """The same for a bucket that is too large for the memory: it is spread over smaller ones first."""
    count = 1 + int(state.bucket_rows[bucket] / (0.75 * rows_in(memory_mb)))
    parts = [work / f"part_{part}.bin" for part in range(count)]
    bits = random_bits(state.settings["seed"], TO_PARTS, bucket)
    with open(path, "rb") as file:
        while data := file.read(rows_in(memory_mb) * ROW_BYTES):
            scatter(np.frombuffer(data, dtype="<i4").reshape(-1, COLUMNS), bits, parts)
    for number, part in enumerate(parts):
        append_shuffled(part, (bucket, number), work, state)
        part.unlink(missing_ok=True)


def publish(out: Path, state: State, source: str, progress: Say) -> Meta:
    """Moves the files to their places, reads them back, and writes meta.json last: it makes the data set valid."""
    for name in (TRAIN_FILE, TEST_FILE):
        if (out / WORK / name).exists():
            os.replace(out / WORK / name, out / name)
    counts_sha256 = write_counts(out / COUNTS_FILE, state.counts)
    train, test = (inspect(out / name, state.counts, progress) for name in (TRAIN_FILE, TEST_FILE))
    problems = train.problems + test.problems
    expected = {TRAIN_FILE: sum(state.days[:-1]), TEST_FILE: (state.days[-1] + 1) // 2}
    for name, report in ((TRAIN_FILE, train), (TEST_FILE, test)):
        if report.samples != expected[name]:
            problems.append(f"{name}: {report.samples:,} rows instead of {expected[name]:,}")
    if train.sums.tolist() != state.sums:
        problems.append(f"{TRAIN_FILE}: its column sums aren't those of the rows that were parsed")
    if problems:
        raise UserError(f"{out}: the files read back differ from what was written (a failing disk?): {problems}")
    meta = Meta(
        table_rows=tuple(state.counts),
        train_samples=train.samples,
        test_samples=test.samples,
        source=source,
        train_positives=train.positives,
        test_positives=test.positives,
        sha256={TRAIN_FILE: train.sha256, TEST_FILE: test.sha256, COUNTS_FILE: counts_sha256},
        settings={**state.settings, "days": state.days, "negative_integers": state.negatives},
    )
    write_meta(out, meta)
    return meta


# Files ----------------------------------------------------------------------------------------------------------------


def bucket_file(work: Path, bucket: int) -> Path:
    return work / f"bucket_{bucket}.bin"


def scatter(rows: np.ndarray, bits: np.random.BitGenerator, paths: list[Path]) -> list[int]:
    """Appends each row to a random one of `paths`; returns how many rows each got."""
    # The high half of a random 64-bit number, scaled to 0 .. len(paths)-1.
    targets = (bits.random_raw(len(rows)) >> np.uint64(32)) * np.uint64(len(paths)) >> np.uint64(32)
    # numpy sorts 16-bit numbers by radix, an order faster.
    targets = targets.astype(np.uint16 if len(paths) < 2**16 else np.uint32)
    ordered = rows[np.argsort(targets, kind="stable")]
    counts = np.bincount(targets, minlength=len(paths)).tolist()
    start = 0
    for path, count in zip(paths, counts, strict=True):
        if count:
            append(path, ordered[start : start + count])
        start += count
    return counts
