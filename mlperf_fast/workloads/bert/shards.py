"""Shards on disk: NVIDIA's HDF5 layouts and the reference's TFRecords, to and from flat arrays, byte for byte.

varlength   HDF5: input_ids, segment_ids, masked_lm_positions, masked_lm_ids each a ragged dataset of n rows,
            next_sentence_labels int8 [n]. What `prepare` writes.
packed      HDF5: the same with up to three sequences in a row, and packed_input_len, packed_masked_lm_len
padded      HDF5, older: input_ids, input_mask, segment_ids [n, 512], masked_lm_positions, masked_lm_ids [n, 76]
tfrecord    the reference's, padded like that
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlperf_fast.data import tfrecord
from mlperf_fast.data.files import replaced
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.bert.sequences import LONGEST, MOST_MASKED, Sequences, joined, starts_of

# Rows that are read at once: h5py holds Python's lock meanwhile, about 5 ms.
READ_ROWS = 1024
RAGGED = {"input_ids": "i2", "segment_ids": "i1", "masked_lm_positions": "i2", "masked_lm_ids": "i2"}
NAMES = re.compile(r"part[-_](\d{5})[-_]of[-_](\d{5})(\.hdf5|\.tfrecord)?")
# Evaluation sets of one file, as NVIDIA and the reference name them.
SINGLE = ("part_eval_10k.hdf5", "eval_10k", "eval_10k.tfrecord")


def import_h5py():
    try:
        import h5py
    except ImportError:
        raise UserError("HDF5 files need the package h5py: install it with `pip install 'mlperf_fast[bert]'`") from None
    return h5py


# Finding --------------------------------------------------------------------------------------------------------------


def find_shards(folder: Path) -> list[Path]:
    """part_00000_of_04320.hdf5 …, or the reference's part-00000-of-00500 …, in order; or an evaluation set's one file.

    UserError if there are none, if one of the announced number is missing, or if there are several kinds of files.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder of shards")
    if single := [folder / name for name in SINGLE if (folder / name).is_file()]:
        return single[:1]
    found: dict[tuple[str, str], dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := NAMES.fullmatch(path.name):
            found.setdefault((match[2], match[3] or ""), {})[int(match[1])] = path
    if not found:
        raise UserError(f"{folder} holds no shards: expected part_00000_of_00001.hdf5 … or part-00000-of-00500 …")
    if len(found) > 1:
        kinds = "; ".join(f"{len(paths)} like {next(iter(paths.values())).name}" for paths in found.values())
        raise UserError(f"{folder} holds shards of different sets ({kinds}): keep one set in a folder")
    ((total, _), paths) = next(iter(found.items()))
    missing = [number for number in range(int(total)) if number not in paths]
    if missing or len(paths) > int(total):
        raise UserError(
            f"{folder} holds {len(paths)} of {int(total)} shards"
            + (f", number {missing[0]} is missing" if missing else "")
            + ": get the whole set"
        )
    return [paths[number] for number in range(int(total))]


def layout(path: Path) -> str:
    """varlength, packed, padded or tfrecord. UserError for a file that is none of these, or a damaged one."""
    if not is_hdf5(path):
        return "tfrecord"
    with opened(path) as file:
        return hdf5_layout(path, file)


def is_hdf5(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(8) == b"\x89HDF\r\n\x1a\n" or path.suffix == ".hdf5"
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def opened(path: Path) -> Any:
    try:
        return import_h5py().File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: not a whole HDF5 file ({error}): get the file again, or prepare anew") from None


def hdf5_layout(path: Path, file: Any) -> str:
    missing = [name for name in (*RAGGED, "next_sentence_labels") if name not in file]
    if missing:
        raise UserError(f"{path}: no dataset {missing[0]!r}, but {sorted(file)}: not a shard of BERT")
    if file["input_ids"].ndim == 2:
        return "padded"
    return "packed" if "packed_input_len" in file else "varlength"


# Reading --------------------------------------------------------------------------------------------------------------


def read_shard(path: Path) -> Sequences:
    """All sequences of a shard in the file's order, whatever its layout; UserError names file and row of a fault."""
    return joined(read_blocks(path))


def read_blocks(path: Path) -> Iterator[Sequences]:
    """A shard's sequences, about a thousand at a time."""
    if not is_hdf5(path):
        yield from read_tfrecord(path)
        return
    with opened(path) as file:
        kind = hdf5_layout(path, file)
        rows = {len(file[name]) for name in (*RAGGED, "next_sentence_labels")}
        if len(rows) > 1:
            raise UserError(f"{path}: datasets of {sorted(rows)} rows: they must have the same number")
        read = {"varlength": ragged_rows, "packed": packed_rows, "padded": padded_rows}[kind]
        for start in range(0, max(rows.pop(), 1), READ_ROWS):
            try:
                block = read(file, slice(start, start + READ_ROWS))
            except (OSError, RuntimeError) as error:  # h5py's for what lies behind the end of the file
                raise UserError(f"{path}: cut short or damaged near row {start} ({error}): get it again") from None
            except ValueError as error:
                raise UserError(f"{path}: rows {start} and up: {error}") from None
            yield block


def ragged(values: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """(all values, starts [n+1]) of an object array of n arrays."""
    lengths = [len(row) for row in values]
    flat = np.concatenate(values) if len(values) else np.zeros(0, dtype)
    return flat.astype(dtype, copy=False), starts_of(np.array(lengths, dtype=np.int64))


def ragged_rows(file: Any, rows: slice) -> Sequences:
    tokens, starts = ragged(file["input_ids"][rows], "i2")
    segments, segment_starts = ragged(file["segment_ids"][rows], "i1")
    positions, mask_starts = ragged(file["masked_lm_positions"][rows], "i2")
    labels, label_starts = ragged(file["masked_lm_ids"][rows], "i2")
    if not np.array_equal(starts, segment_starts) or not np.array_equal(mask_starts, label_starts):
        raise ValueError("a row has other numbers of ids and segment ids, or of masked positions and labels")
    first = count_first(segments, starts)
    return Sequences(tokens, starts, first, positions, labels, mask_starts, file["next_sentence_labels"][rows])


def packed_rows(file: Any, rows: slice) -> Sequences:
    whole, row_starts = ragged(file["input_ids"][rows], "i2")
    lengths, length_starts = ragged(file["packed_input_len"][rows], "i8")
    masked, _ = ragged(file["packed_masked_lm_len"][rows], "i8")
    segments, _ = ragged(file["segment_ids"][rows], "i1")
    positions, _ = ragged(file["masked_lm_positions"][rows], "i2")
    labels, _ = ragged(file["masked_lm_ids"][rows], "i2")
    next_labels, _ = ragged(file["next_sentence_labels"][rows], "i1")
    starts, mask_starts = starts_of(lengths), starts_of(masked)
    if not np.array_equal(starts[length_starts], row_starts) or mask_starts[-1] != len(positions):
        raise ValueError("the lengths of the packed sequences don't add up to their row's")
    # Positions are places in the row; here they are places in the sequence.
    row_of = np.repeat(np.arange(len(row_starts) - 1), np.diff(length_starts))
    offset = starts[:-1] - row_starts[row_of]
    positions = (positions - np.repeat(offset, masked)).astype(np.int16)
    return Sequences(whole, starts, count_first(segments, starts), positions, labels, mask_starts, next_labels)


def padded_rows(file: Any, rows: slice) -> Sequences:
    columns = {name: file[name][rows] for name in (*RAGGED, "input_mask", "next_sentence_labels")}
    return without_padding(columns, columns["masked_lm_positions"] != 0)  # position 0 is [CLS]: never masked


def without_padding(columns: dict[str, np.ndarray], predicted: np.ndarray) -> Sequences:
    """Sequences of padded columns [n, 512] and [n, 76]; `predicted` [n, 76] says which slots are used."""
    real = columns["input_mask"] != 0
    lengths, masked = real.sum(axis=1), predicted.sum(axis=1)
    for used, number, what in ((real, lengths, "input_mask"), (predicted, masked, "masked positions")):
        if (used != (np.arange(used.shape[1]) < number[:, None])).any():
            raise ValueError(f"{what}: what is used must come first, the padding behind it")
    for name, used in (("input_ids", real), ("segment_ids", real), ("masked_lm_ids", predicted)):
        if columns[name][~used].any():
            raise ValueError(f"{name}: something other than 0 in the padding")
    for name in ("input_ids", "masked_lm_ids", "masked_lm_positions"):
        if columns[name].size and not (columns[name].min() >= -(2**15) and columns[name].max() < 2**15):
            raise ValueError(f"{name}: a number that no 16 bits hold")
    starts = starts_of(lengths)
    return Sequences(
        columns["input_ids"][real].astype(np.int16),
        starts,
        count_first(columns["segment_ids"][real], starts),
        columns["masked_lm_positions"][predicted].astype(np.int16),
        columns["masked_lm_ids"][predicted].astype(np.int16),
        starts_of(masked),
        columns["next_sentence_labels"].reshape(-1).astype(np.int8),
    )


def count_first(segments: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """int16 [n], tokens of segment 0; ValueError unless each sequence's segment ids are 0 … 0 1 … 1."""
    wrong = (segments != 0) & (segments != 1)
    step = np.diff(segments.astype(np.int8), prepend=np.int8(0))
    inside = np.ones(len(segments), dtype=bool)
    inside[starts[:-1][starts[:-1] < len(segments)]] = False  # from one sequence to the next it may fall
    if wrong.any() or (step[inside] < 0).any():
        bad = int(np.argmax(wrong | (inside & (step < 0))))
        raise ValueError(f"sequence {int(np.searchsorted(starts, bad, 'right')) - 1}: segment ids must be 0 … 0 1 … 1")
    ones = np.concatenate([[0], np.cumsum(segments, dtype=np.int64)])[starts]
    return (np.diff(starts) - np.diff(ones)).astype(np.int16)


def read_tfrecord(path: Path) -> Iterator[Sequences]:
    waiting: list[dict[str, np.ndarray]] = []
    first = 0
    for payload in tfrecord.records(path):
        try:
            waiting.append(tfrecord.example(payload))
        except (ValueError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: record {first + len(waiting)}: not a tf.train.Example: {error}") from None
        if len(waiting) == READ_ROWS:
            yield stacked(path, first, waiting)
            first += len(waiting)
            waiting = []
    if waiting or not first:
        yield stacked(path, first, waiting)


def stacked(path: Path, first: int, examples: list[dict[str, np.ndarray]]) -> Sequences:
    names = (*RAGGED, "input_mask", "masked_lm_weights", "next_sentence_labels")
    for number, example in enumerate(examples, first):
        for name in names:
            if name not in example or len(example[name]) != len(examples[0].get(name, ())):
                sizes = {key: len(value) for key, value in example.items()}
                raise UserError(f"{path}: record {number}: {name} is missing or of another length than before: {sizes}")
    if not examples:
        raise UserError(f"{path} is empty: expected records. Get the file again")
    columns = {name: np.stack([example[name] for example in examples]) for name in names}
    try:
        return without_padding(columns, columns["masked_lm_weights"] == 1)
    except ValueError as error:
        raise UserError(f"{path}: records {first} and up: {error}") from None


# Writing --------------------------------------------------------------------------------------------------------------


def write_hdf5(path: Path, s: Sequences) -> None:
    """Writes NVIDIA's variable-length layout, whole or not at all."""
    h5py = import_h5py()
    columns = {
        "input_ids": (s.tokens, s.starts),
        "segment_ids": (s.segments(), s.starts),
        "masked_lm_positions": (s.positions, s.mask_starts),
        "masked_lm_ids": (s.labels, s.mask_starts),
    }
    # Without times in it, the same sequences give the same bytes.
    with replaced(path) as raw, h5py.File(raw, "w", track_order=False) as file:
        for name, (values, starts) in columns.items():
            rows = np.empty(len(s), dtype=object)
            rows[:] = np.split(values, starts[1:-1]) if len(s) > 1 else [values]
            dtype = h5py.vlen_dtype(np.dtype(RAGGED[name]))
            file.create_dataset(name, data=rows, dtype=dtype, track_times=False)
        file.create_dataset("next_sentence_labels", data=s.random_next, dtype="i1", track_times=False)


def write_tfrecord(path: Path, s: Sequences, longest: int = LONGEST, most_masked: int = MOST_MASKED) -> None:
    """Writes the reference's padded examples."""
    segments = s.segments()

    def padded(values: np.ndarray, size: int) -> np.ndarray:
        return np.pad(values, (0, size - len(values)))

    def examples() -> Iterator[dict[str, np.ndarray]]:
        for i in range(len(s)):
            a, b, c, d = *s.starts[i : i + 2], *s.mask_starts[i : i + 2]
            yield {
                "input_ids": padded(s.tokens[a:b], longest),
                "input_mask": padded(np.ones(b - a, np.int8), longest),
                "segment_ids": padded(segments[a:b], longest),
                "masked_lm_positions": padded(s.positions[c:d], most_masked),
                "masked_lm_ids": padded(s.labels[c:d], most_masked),
                "masked_lm_weights": padded(np.ones(d - c, np.float32), most_masked),
                "next_sentence_labels": s.random_next[i : i + 1],
            }

    tfrecord.write(path, examples())
