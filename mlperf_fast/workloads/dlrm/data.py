"""Click logs on disk and on their way to a step: the reference's raw binary format.

A data set is a folder that facebookresearch/dlrm reads as well:

    terabyte_processed_train.bin, terabyte_processed_test.bin
                         rows of 40 little-endian int32 (160 bytes): label, 13 integers >= 0, 26 table-local ids
    day_fea_count.npz    `counts`: rows of each of the 26 tables
    meta.json            ours: the same counts, sample counts, origin and checksums

Training rows were shuffled once by `prepare`; a run shuffles whole batches, as the reference does.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mlperf_fast import _C
from mlperf_fast.data.order import batch_count, batch_order
from mlperf_fast.data.prefetch import Prefetcher
from mlperf_fast.errors import UserError

TRAIN_FILE = "terabyte_processed_train.bin"
TEST_FILE = "terabyte_processed_test.bin"
COUNTS_FILE = "day_fea_count.npz"
META_FILE = "meta.json"

INTEGERS = 13
TABLES = 26
COLUMNS = 1 + INTEGERS + TABLES
ROW_BYTES = 4 * COLUMNS
COLUMN_NAMES = ("label", *(f"int_{i}" for i in range(INTEGERS)), *(f"cat_{t}" for t in range(TABLES)))

HOW_TO_MAKE = (
    "Make one with `mlperf-fast prepare dlrm --preset demo --out DIR`, or from Criteo's day_0.gz, day_1.gz … with "
    "`mlperf-fast prepare dlrm --raw RAW --out DIR`"
)
# The kernel is asked to read this many batches before the one that is decoded.
READ_AHEAD = 4


@dataclass(frozen=True, slots=True)
class Meta:
    """What a data set holds, known without opening its data."""

    table_rows: tuple[int, ...]  # ids of table t lie in [0, table_rows[t])
    train_samples: int
    test_samples: int
    source: str = "unknown: there is no meta.json"
    train_positives: int | None = None
    test_positives: int | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)  # file name -> checksum; empty without meta.json
    settings: Mapping[str, Any] = field(default_factory=dict)  # what made it: seed, max_index_range …


class Batch(NamedTuple):
    """One rank's part of a global batch of B samples: b = B / world of its samples, all ids of its T tables."""

    dense: torch.Tensor  # f32 [b, 13], log(x + 1)
    ids: torch.Tensor  # int32 [B, T]
    labels: torch.Tensor  # f32 [b], 0 or 1
    weight: torch.Tensor  # f32 [b]: 1; in a short last batch 0 for padding and B/valid otherwise, so that
    # mean(weight * loss) over all ranks is the mean over the valid samples


def read_meta(folder: str | os.PathLike) -> Meta:
    """The data set's sizes, from meta.json, or from day_fea_count.npz where the reference's tools made the folder.

    Looks at the sizes of the .bin files but doesn't open them: no data is touched before the clock starts.
    UserError where something is missing or doesn't fit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such data set folder. {HOW_TO_MAKE}")
    train_samples, test_samples = (count_samples(folder / name) for name in (TRAIN_FILE, TEST_FILE))
    if not (folder / META_FILE).exists():
        return Meta(_table_rows(folder / COUNTS_FILE, _read_counts(folder / COUNTS_FILE)), train_samples, test_samples)
    meta = _read_meta_file(folder / META_FILE)
    for name, found, expected in (
        (TRAIN_FILE, train_samples, meta.train_samples),
        (TEST_FILE, test_samples, meta.test_samples),
    ):
        if found != expected:
            raise UserError(
                f"{folder / name} holds {found:,} samples, but {META_FILE} says {expected:,}: the file was cut or "
                f"replaced. {HOW_TO_MAKE}"
            )
    return meta


def count_samples(path: Path) -> int:
    """Samples in a raw file, by its size alone; UserError if it is missing, empty or no whole number of rows."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}. {HOW_TO_MAKE}") from None
    if size == 0 or size % ROW_BYTES:
        what = "is empty" if size == 0 else f"has {size:,} bytes, {size % ROW_BYTES} over a whole number of rows"
        raise UserError(f"{path} {what}: expected rows of {ROW_BYTES} bytes. {HOW_TO_MAKE}")
    return size // ROW_BYTES


def _read_counts(path: Path) -> Sequence[int]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [int(count) for count in arrays["counts"]]
    except FileNotFoundError:
        raise UserError(f"{path.parent} holds neither {META_FILE} nor {path.name}. {HOW_TO_MAKE}") from None
    except Exception as error:  # a damaged zip raises many kinds
        raise UserError(f"{path}: no readable array `counts` ({error}). {HOW_TO_MAKE}") from None


def _table_rows(path: Path, counts: Sequence[Any]) -> tuple[int, ...]:
    if len(counts) != TABLES or not all(type(count) is int and 0 < count < 2**31 for count in counts):
        raise UserError(f"{path}: expected the rows of {TABLES} tables, each 1 or more; found {counts}")
    return tuple(counts)


def _read_meta_file(path: Path) -> Meta:
    try:
        values = json.loads(path.read_text())
        meta = Meta(**{**values, "table_rows": _table_rows(path, values["table_rows"])})
        whole = [meta.train_samples, meta.test_samples]
        if not all(type(count) is int for count in whole) or not isinstance(meta.sha256, dict):
            raise TypeError("sample counts must be whole numbers, sha256 an object")
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not a {META_FILE} of this program ({error}). {HOW_TO_MAKE}") from None
    return meta


def train_batches(
    folder: str | os.PathLike,
    meta: Meta,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    epochs: int = 1,
    rank: int = 0,
    world: int = 1,
    tables: Iterable[int] = range(TABLES),
    device: torch.device | str = "cpu",
) -> Prefetcher[Batch]:
    """The training batches of a run: fixed groups of `batch_size` neighbouring rows, in an order drawn from `seed`.

    The order is the same on every rank, and another one in each epoch; `start_step` skips what an interrupted run
    has trained. The last, short group is padded to `batch_size` (see Batch.weight). Use it in a `with` block.
    """
    reader = _Reader(Path(folder) / TRAIN_FILE, meta.train_samples, meta, batch_size, rank, world, tables, device)
    steps = batch_count(meta.train_samples, batch_size)
    first_epoch, skip = divmod(start_step, steps)
    orders = (batch_order(meta.train_samples, batch_size, seed, epoch) for epoch in range(first_epoch, epochs))
    groups = (int(group) for order in orders for group in order)
    for _ in range(skip):
        next(groups, None)
    left = max(0, epochs * steps - start_step)
    return Prefetcher((batch for batch, _ in reader.batches(groups)), length=left, device=device)


def test_batches(
    folder: str | os.PathLike,
    meta: Meta,
    *,
    batch_size: int,
    rank: int,
    world: int,
    tables: Iterable[int],
    device: torch.device | str,
) -> Prefetcher[tuple[Batch, int]]:
    """(batch, valid) over the test set in file order. This rank's first `valid` rows are test samples, the rest
    padding: over all batches and ranks each test sample comes exactly once."""
    reader = _Reader(Path(folder) / TEST_FILE, meta.test_samples, meta, batch_size, rank, world, tables, device)
    groups = range(batch_count(meta.test_samples, batch_size))
    return Prefetcher(reader.batches(groups), length=len(groups), device=device)


class _Reader:
    """Decodes groups of rows of one memory-mapped file into one rank's batches."""

    def __init__(
        self,
        path: Path,
        samples: int,
        meta: Meta,
        batch_size: int,
        rank: int,
        world: int,
        tables: Iterable[int],
        device: torch.device | str,
    ):
        if batch_size < 1 or batch_size % world:
            raise UserError(f"batch size {batch_size} must be a positive multiple of the {world} processes")
        self.tables = np.array(list(tables), dtype=np.int32)
        if any(not 0 <= table < TABLES for table in self.tables.tolist()):
            raise UserError(f"tables must be numbers from 0 to {TABLES - 1}, not {self.tables.tolist()}")
        if count_samples(path) != samples:
            raise UserError(f"{path} changed since its sizes were read: it no longer holds {samples:,} samples")
        self.path, self.samples = path, samples
        self.table_rows = np.array(meta.table_rows, dtype=np.int32)
        self.batch_size, self.local = batch_size, batch_size // world
        self.first = rank * self.local
        self.pin = torch.device(device).type == "cuda"

    def batches(self, groups: Iterable[int]) -> Iterator[tuple[Batch, int]]:
        """Decoded batches with the number of this rank's valid rows."""
        rows = np.memmap(self.path, dtype="<i4", mode="r", shape=(self.samples, COLUMNS))
        with open(self.path, "rb") as file:
            for group in self._asked_for_ahead(groups, file.fileno()):
                yield self._decode(rows, group)

    def _asked_for_ahead(self, groups: Iterable[int], fd: int) -> Iterator[int]:
        """The groups, each after the kernel was asked to read the next few: their order is random to its eyes."""
        waiting: list[int] = []
        group_bytes = self.batch_size * ROW_BYTES
        for group in groups:
            if hasattr(os, "posix_fadvise"):  # not on macOS
                os.posix_fadvise(fd, group * group_bytes, group_bytes, os.POSIX_FADV_WILLNEED)
            waiting.append(group)
            if len(waiting) > READ_AHEAD:
                yield waiting.pop(0)
        yield from waiting

    def _decode(self, rows: np.ndarray, group: int) -> tuple[Batch, int]:
        start = group * self.batch_size
        here = min(self.batch_size, self.samples - start)
        dense = torch.empty(self.local, INTEGERS, pin_memory=self.pin)
        ids = torch.empty(self.batch_size, len(self.tables), dtype=torch.int32, pin_memory=self.pin)
        labels = torch.empty(self.local, pin_memory=self.pin)
        weight = torch.full((self.local,), self.batch_size / here, pin_memory=self.pin)
        row, column, value = _C.criteo_decode(
            rows.ctypes.data + start * ROW_BYTES,
            here,
            self.batch_size,
            self.first,
            self.first + self.local,
            self.table_rows.ctypes.data,
            self.tables.ctypes.data,
            len(self.tables),
            dense.data_ptr(),
            labels.data_ptr(),
            ids.data_ptr(),
        )
        if row >= 0:
            raise UserError(describe_fault(self.path, start + row, column, value, self.table_rows))
        valid = min(max(here - self.first, 0), self.local)
        weight[valid:] = 0
        return Batch(dense, ids, labels, weight), valid


def describe_fault(path: Path, row: int, column: int, value: int, table_rows: Sequence[int] | np.ndarray) -> str:
    """The message for one bad number in a raw file; rows count from 0."""
    if column == 0:
        expected = "the label must be 0 or 1"
    elif column <= INTEGERS:
        expected = "integers must be 0 or more"
    else:
        table = column - 1 - INTEGERS
        expected = f"table {table} has ids 0 to {table_rows[table] - 1}"
    return (
        f"{path}: row {row}, column {COLUMN_NAMES[column]}: {value}, but {expected}. Check the whole data set with "
        f"`mlperf-fast prepare dlrm --verify --out {path.parent}`, or make it anew"
    )
