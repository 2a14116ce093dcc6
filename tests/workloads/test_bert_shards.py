"""Shards: NVIDIA's HDF5 layouts and the reference's TFRecords, byte for byte, and what is said of damaged ones."""

import struct
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("h5py", reason="needs h5py: pip install 'mlperf_fast[bert]'")

import h5py

from mlperf_fast import _C
from mlperf_fast.data import tfrecord
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.bert import shards
from mlperf_fast.workloads.bert.sequences import Sequences, find_fault, joined, starts_of

WORDS = 30_522


def random_sequences(n, seed=0, longest=512, most_masked=76):
    """Sequences as the benchmark's: any length up to the longest, a share of them full, ids up to the last one."""
    rng = np.random.default_rng(seed)
    lengths = np.where(rng.random(n) < 0.3, longest, rng.integers(5, longest + 1, n))
    masked = np.clip(np.round(0.15 * lengths), 1, most_masked).astype(int)
    positions = [np.sort(rng.choice(np.arange(1, size - 1), k, replace=False)) for size, k in zip(lengths, masked)]  # noqa: B905
    tokens = rng.integers(0, WORDS, lengths.sum())
    tokens[:2] = 0, WORDS - 1
    return Sequences(
        tokens.astype(np.int16), starts_of(lengths), rng.integers(2, lengths - 1).astype(np.int16),
        np.concatenate(positions).astype(np.int16), rng.integers(0, WORDS, masked.sum()).astype(np.int16),
        starts_of(masked), rng.integers(0, 2, n).astype(np.int8),
    )  # fmt: skip


def rows(s):
    """Lists of (ids, segment ids, positions, labels, next-sentence label), row by row."""
    for i in range(len(s)):
        a, b, c, d = *s.starts[i : i + 2].tolist(), *s.mask_starts[i : i + 2].tolist()
        first = int(s.first[i])
        yield (s.tokens[a:b], np.array([0] * first + [1] * (b - a - first)), s.positions[c:d], s.labels[c:d],
               s.random_next[i])  # fmt: skip


def nvidia_varlength(path, s):
    """As NVIDIA's scripts write it, row by row."""
    types = {"input_ids": "int16", "segment_ids": "int8", "masked_lm_positions": "int16", "masked_lm_ids": "int16"}
    with h5py.File(path, "w") as file:
        sets = [file.create_dataset(n, (len(s),), dtype=h5py.vlen_dtype(np.dtype(t))) for n, t in types.items()]
        labels = file.create_dataset("next_sentence_labels", (len(s),), dtype="i1")
        for i, (*values, label) in enumerate(rows(s)):
            for dataset, value in zip(sets, values, strict=True):
                dataset[i] = value
            labels[i] = label


def nvidia_padded(path, s):
    columns = {"input_ids": ("i2", 512), "input_mask": ("i1", 512), "segment_ids": ("i1", 512),
               "masked_lm_positions": ("i2", 76), "masked_lm_ids": ("i2", 76)}  # fmt: skip
    with h5py.File(path, "w") as file:
        sets = {name: np.zeros((len(s), width), dtype) for name, (dtype, width) in columns.items()}
        for i, (ids, segments, positions, labels, _) in enumerate(rows(s)):
            sets["input_ids"][i, : len(ids)], sets["input_mask"][i, : len(ids)] = ids, 1
            sets["segment_ids"][i, : len(ids)] = segments
            sets["masked_lm_positions"][i, : len(positions)] = positions
            sets["masked_lm_ids"][i, : len(labels)] = labels
        for name, values in sets.items():
            file.create_dataset(name, data=values, compression="gzip" if name == "input_mask" else None)
        file.create_dataset("next_sentence_labels", data=s.random_next)


def nvidia_packed(path, s, groups):
    """Several sequences in a row: positions are places in the row."""
    parts = list(rows(s))
    types = {"input_ids": "i2", "segment_ids": "i1", "masked_lm_positions": "i2", "masked_lm_ids": "i2",
             "next_sentence_labels": "i1", "packed_input_len": "i2", "packed_masked_lm_len": "i2"}  # fmt: skip
    with h5py.File(path, "w") as file:
        sets = {n: file.create_dataset(n, (len(groups),), dtype=h5py.vlen_dtype(np.dtype(t))) for n, t in types.items()}
        for row, group in enumerate(groups):
            chosen = [parts[i] for i in group]
            lengths = [len(part[0]) for part in chosen]
            sets["input_ids"][row] = np.concatenate([part[0] for part in chosen])
            sets["segment_ids"][row] = np.concatenate([part[1] for part in chosen])
            offsets = [sum(lengths[:k]) for k in range(len(group))]
            shifted = [part[2] + offset for part, offset in zip(chosen, offsets, strict=True)]
            sets["masked_lm_positions"][row] = np.concatenate(shifted)
            sets["masked_lm_ids"][row] = np.concatenate([part[3] for part in chosen])
            sets["next_sentence_labels"][row] = [part[4] for part in chosen]
            sets["packed_input_len"][row] = lengths
            sets["packed_masked_lm_len"][row] = [len(part[2]) for part in chosen]


# Byte for byte --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 1100])
def test_every_layout_gives_the_same_sequences(tmp_path, n):
    s = random_sequences(n)
    assert find_fault(s, WORDS) is None
    groups = np.split(np.arange(n), np.sort(np.random.default_rng(1).choice(n, n // 2, replace=False)))
    writers = {
        "varlength": nvidia_varlength,
        "padded": nvidia_padded,
        "packed": lambda path, s: nvidia_packed(path, s, [group.tolist() for group in groups if len(group)]),
        "tfrecord": shards.write_tfrecord,
    }
    for layout, write in writers.items():
        path = tmp_path / (layout if layout == "tfrecord" else f"{layout}.hdf5")
        write(path, s)
        assert shards.layout(path) == layout
        assert shards.read_shard(path).same(s), layout


def test_what_is_written_has_nvidias_names_types_and_values(tmp_path):
    s = random_sequences(40)
    shards.write_hdf5(tmp_path / "ours.hdf5", s)
    nvidia_varlength(tmp_path / "theirs.hdf5", s)
    with h5py.File(tmp_path / "ours.hdf5") as ours, h5py.File(tmp_path / "theirs.hdf5") as theirs:
        assert sorted(ours) == sorted(theirs)
        for name in theirs:
            assert ours[name].dtype == theirs[name].dtype
            assert h5py.check_vlen_dtype(ours[name].dtype) == h5py.check_vlen_dtype(theirs[name].dtype)
            assert ours[name].shape == theirs[name].shape
            for mine, their in zip(ours[name], theirs[name], strict=True):
                assert np.array_equal(mine, their)
    shards.write_hdf5(tmp_path / "again.hdf5", s)
    assert (tmp_path / "again.hdf5").read_bytes() == (tmp_path / "ours.hdf5").read_bytes()


def test_equal_lengths_are_no_matrix(tmp_path):
    """NumPy makes a matrix of rows of one length, which is no ragged dataset."""
    s = random_sequences(6, longest=5)
    s = s.take(np.flatnonzero(s.lengths == 5))
    shards.write_hdf5(tmp_path / "x.hdf5", s)
    assert shards.layout(tmp_path / "x.hdf5") == "varlength"
    assert shards.read_shard(tmp_path / "x.hdf5").same(s)


def slow_crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("level", _C.supported_levels())
def test_crc32c(level):
    crc32c = _C.load(level).crc32c
    assert crc32c(np.frombuffer(b"123456789", np.uint8).ctypes.data, 9) == 0xE3069283  # RFC 3720's check
    data = np.random.default_rng(0).integers(0, 256, 300, dtype=np.uint8)
    for start, size in [(0, 0), (0, 1), (3, 7), (1, 8), (5, 9), (0, 300), (7, 63)]:
        assert crc32c(data.ctypes.data + start, size) == slow_crc32c(data[start : start + size].tobytes())


def test_an_example_by_hand():
    """A record as the specification has it, each way a list may be encoded, and fields that are to be passed over."""

    def record(payload):
        def masked(data):
            crc = slow_crc32c(data)
            return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

        head = struct.pack("<Q", len(payload))
        return head + masked(head) + payload + masked(payload)

    def entry(name, value):
        inner = b"\x0a" + bytes([len(name)]) + name + b"\x12" + bytes([len(value)]) + value
        return b"\x0a" + bytes([len(inner)]) + inner

    ints = b"\x1a\x07\x0a\x05\x01\xac\x02\x00\x7f"  # packed: 1, 300, 0, 127
    single = b"\x1a\x05\x08\x05\x08\xac\x02"  # one by one: 5, 300
    negative = b"\x1a\x0c\x0a\x0a" + b"\xff" * 9 + b"\x01"  # -1
    floats = b"\x12\x0a\x0a\x08" + struct.pack("<ff", 1.0, 0.5)
    features = b"".join([entry(b"a", ints), entry(b"b", single), entry(b"c", negative), entry(b"d", floats)])
    payload = b"\x0a" + bytes([len(features)]) + features + b"\x78\x05\x7d\x00\x00\x00\x00"
    read = tfrecord.example(payload)
    assert {name: values.tolist() for name, values in read.items()} == {
        "a": [1, 300, 0, 127], "b": [5, 300], "c": [-1], "d": [1.0, 0.5],
    }  # fmt: skip
    assert record(payload)[12:-4] == payload


# Faults ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hdf5", "tfrecord"])
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.9, 0.9999])
def test_a_shard_cut_anywhere_is_one_error_with_its_name(tmp_path, kind, share):
    path = tmp_path / ("part.hdf5" if kind == "hdf5" else "part")
    (shards.write_hdf5 if kind == "hdf5" else shards.write_tfrecord)(path, random_sequences(60))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=rf"^{path}.*(cut short|not a whole HDF5 file|is empty|ends in its header)"):
        shards.read_shard(path)


@pytest.mark.parametrize("at", [3, 9, 200, -2])
def test_a_flipped_bit_in_a_tfrecord_is_found(tmp_path, at):
    path = tmp_path / "part"
    shards.write_tfrecord(path, random_sequences(3))
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path}: record [02] at byte [\d,]+: the checksum of its"):
        shards.read_shard(path)


def test_records_that_are_no_examples(tmp_path):
    path = tmp_path / "part"
    for features, message in (
        ({"input_ids": np.zeros(512, np.int64)}, "record 0: segment_ids is missing"),
        ({}, "record 0: input_ids is missing"),
    ):
        tfrecord.write(path, [features])
        with pytest.raises(UserError, match=message):
            shards.read_shard(path)
    good = {name: np.zeros(4, np.int64) for name in (*shards.RAGGED, "input_mask", "next_sentence_labels")}
    good |= {"masked_lm_weights": np.zeros(4, np.float32), "next_sentence_labels": np.zeros(1, np.int64)}
    tfrecord.write(path, [good, {**good, "input_ids": np.zeros(5, np.int64)}])
    with pytest.raises(UserError, match="record 1: input_ids is missing or of another length"):
        shards.read_shard(path)
    tfrecord.write(path, [{**good, "input_mask": np.array([1, 0, 1, 0])}])
    with pytest.raises(UserError, match="input_mask: what is used must come first"):
        shards.read_shard(path)
    tfrecord.write(path, [{**good, "input_ids": np.array([40_000, 0, 0, 0]), "input_mask": np.array([1, 0, 0, 0])}])
    with pytest.raises(UserError, match="input_ids: a number that no 16 bits hold"):
        shards.read_shard(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, i: replace(s, tokens=with_value(s.tokens, s.starts[i] + 2, -5)), "row 4: id -5, but the vocabulary"),
        (lambda s, i: replace(s, tokens=with_value(s.tokens, s.starts[i], WORDS)), "row 4: id 30522, but the vocab"),
        (lambda s, i: replace(s, labels=with_value(s.labels, s.mask_starts[i], WORDS)), "row 4: label 30522, but the"),
        (lambda s, i: replace(s, positions=with_value(s.positions, s.mask_starts[i + 1] - 1, 600)),
         r"row 4: masked position 600 in a sequence of \d+ tokens"),
        (lambda s, i: replace(s, positions=with_value(s.positions, s.mask_starts[i] + 1, 1)), "row 4: masked position"),
        (lambda s, i: replace(s, random_next=with_value(s.random_next, i, 2)), "row 4: next-sentence label 2"),
        (lambda s, i: replace(s, first=with_value(s.first, i, 0)), "row 4: 0 tokens of segment 0"),
        (lambda s, i: joined([s.take(np.arange(i)), one(0, 0)]), "row 4: a sequence without tokens"),
        (lambda s, i: joined([s.take(np.arange(i)), one(513, 1)]), "row 4: 513 tokens, but 512 are the most"),
        (lambda s, i: joined([s.take(np.arange(i)), one(9, 0)]), "row 4: no masked position"),
        (lambda s, i: joined([s.take(np.arange(i)), one(200, 77)]), "row 4: 77 masked positions, but 76 are the most"),
        (lambda s, i: s.take(np.arange(0)), "no sequences"),
    ],
)  # fmt: skip
def test_sequences_that_no_step_could_take(change, message):
    s = random_sequences(9)
    assert find_fault(s, WORDS) is None
    assert find_fault(change(s, 4), WORDS).startswith(message.split(r"\d")[0])


def with_value(values, at, value):
    changed = values.copy()
    changed[at] = value
    return changed


def one(length, masked):
    return Sequences(
        np.ones(length, np.int16), np.array([0, length]), np.array([min(length, 2)], np.int16),
        np.arange(1, masked + 1, dtype=np.int16), np.ones(masked, np.int16), np.array([0, masked]),
        np.zeros(1, np.int8),
    )  # fmt: skip


def test_segments_that_go_back(tmp_path):
    path = tmp_path / "x.hdf5"
    nvidia_varlength(path, random_sequences(5))
    with h5py.File(path, "a") as file:
        segments = file["segment_ids"][3]
        segments[-1] = 0
        file["segment_ids"][3] = segments
    with pytest.raises(UserError, match=r"x\.hdf5: rows 0 and up: sequence 3: segment ids must be 0 … 0 1 … 1"):
        shards.read_shard(path)
    with h5py.File(path, "a") as file:
        del file["masked_lm_ids"]
    with pytest.raises(UserError, match=r"x\.hdf5: no dataset 'masked_lm_ids'"):
        shards.read_shard(path)


def test_a_folder_must_hold_one_whole_set(tmp_path):
    with pytest.raises(UserError, match="there is no such folder of shards"):
        shards.find_shards(tmp_path / "none")
    with pytest.raises(UserError, match="holds no shards"):
        shards.find_shards(tmp_path)
    for number in (0, 2):
        (tmp_path / f"part_{number:05d}_of_00003.hdf5").touch()
    with pytest.raises(UserError, match="holds 2 of 3 shards, number 1 is missing"):
        shards.find_shards(tmp_path)
    (tmp_path / "part_00001_of_00003.hdf5").touch()
    assert [path.name[5:10] for path in shards.find_shards(tmp_path)] == ["00000", "00001", "00002"]
    (tmp_path / "part-00000-of-00500").touch()
    with pytest.raises(UserError, match="shards of different sets"):
        shards.find_shards(tmp_path)


def test_take_and_join():
    s = random_sequences(30, longest=60)
    order = np.random.default_rng(3).permutation(30)
    taken = s.take(order)
    for i, (left, right) in enumerate(zip(rows(taken), [list(rows(s))[j] for j in order], strict=True)):
        assert all(np.array_equal(a, b) for a, b in zip(left, right, strict=True)), i
    assert joined([s.take(np.arange(11)), s.take(np.arange(11, 30))]).same(s)
