"""RecordIO by the format's own description, written out by hand, and what is said of damaged files."""

import struct

import numpy as np
import pytest

from mlperf_fast.data import recordio
from mlperf_fast.errors import UserError

MAGIC = struct.pack("<I", 0xCED7230A)


def images(n=5):
    rng = np.random.default_rng(0)
    return [(3 * i + 1, i % 4, rng.bytes(10 + i)) for i in range(n)]


@pytest.fixture
def files(tmp_path):
    rec, idx = tmp_path / "train.rec", tmp_path / "train.idx"
    recordio.write(rec, idx, images())
    return rec, idx


def read(rec, idx):
    data = np.memmap(rec, dtype=np.uint8, mode="r")
    for key, at in recordio.offsets(rec, idx).items():
        record = recordio.read_record(data, at, rec)
        found = recordio.image(record.payload)
        assert found.key == key
        begin = record.start + found.skip
        if record.parts == 1:
            assert data[begin : begin + len(found.data)].tobytes() == found.data
        yield key, int(found.label), found.data


def test_what_was_written_is_read(files):
    assert list(read(*files)) == images()
    assert files[0].stat().st_size % 4 == 0


def test_the_bytes_are_those_of_the_format(tmp_path):
    rec, idx = tmp_path / "a.rec", tmp_path / "a.idx"
    recordio.write(rec, idx, [(7, 3, b"JPEG!"), (8, 999, b"")])
    first = MAGIC + struct.pack("<I", 29) + struct.pack("<IfQQ", 0, 3.0, 7, 0) + b"JPEG!\0\0\0"
    second = MAGIC + struct.pack("<I", 24) + struct.pack("<IfQQ", 0, 999.0, 8, 0)
    assert rec.read_bytes() == first + second
    assert idx.read_text() == f"7\t0\n8\t{len(first)}\n"


def test_a_label_list_of_one_is_read():
    payload = struct.pack("<IfQQf", 1, 0.0, 5, 0, 42.0) + b"JPEG"
    assert recordio.image(payload) == recordio.Image(42.0, 5, 28, b"JPEG")
    with pytest.raises(ValueError, match="2 labels"):
        recordio.image(struct.pack("<IfQQff", 2, 0.0, 5, 0, 1.0, 2.0))
    with pytest.raises(ValueError, match="no image header"):
        recordio.image(b"short")


@pytest.mark.parametrize(
    "data",
    [MAGIC, MAGIC * 3, b"abcd" + MAGIC + b"tail", b"abcd" + MAGIC, b"x" + MAGIC, b"abcd" + MAGIC + MAGIC + b"efghi"],
)
def test_the_magic_number_within_an_image(tmp_path, data):
    rec, idx = tmp_path / "a.rec", tmp_path / "a.idx"
    recordio.write(rec, idx, [(0, 1, data), (1, 2, b"next")])
    assert list(read(rec, idx)) == [(0, 1, data), (1, 2, b"next")]
    # At a multiple of 4 bytes it begins records only, so that a reader may look for the next one there.
    words = np.frombuffer(rec.read_bytes(), dtype="<u4")
    aligned = sum(data[i : i + 4] == MAGIC for i in range(0, len(data), 4))
    assert (words == 0xCED7230A).sum() == 2 + aligned


def test_an_index_of_another_file(files, tmp_path):
    other = tmp_path / "other.rec", tmp_path / "other.idx"
    recordio.write(*other, [(key, label, data + b"12345678") for key, label, data in images()])
    with pytest.raises(
        UserError, match=r"other.idx isn't the index of .*train.rec: 5 entries for 5 records; .* byte 44"
    ):
        recordio.offsets(files[0], other[1])
    lines = files[1].read_text().splitlines(keepends=True)
    files[1].write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match="4 entries for 5 records"):
        recordio.offsets(*files)


@pytest.mark.parametrize(
    ("line", "message"),
    [("7 12\n", "line 6 is '7 12'"), ("a\tb\n", "line 6"), ("1\t0\n", "line 6: the key 1 is there twice")],
)
def test_lines_that_are_no_index(files, line, message):
    files[1].write_text(files[1].read_text() + line)
    with pytest.raises(UserError, match=message):
        recordio.read_index(files[1])


def test_damaged_files(files):
    rec, idx = files
    whole = rec.read_bytes()
    rec.write_bytes(whole[:-5])
    with pytest.raises(UserError, match=r"train.rec: cut short in its last record"):
        recordio.offsets(rec, idx)
    data = np.memmap(rec, dtype=np.uint8, mode="r")
    with pytest.raises(UserError, match="cut short in the record at byte"):
        recordio.read_record(data, list(recordio.read_index(idx).values())[-1], rec)
    rec.write_bytes(whole[:8] + whole[12:])
    with pytest.raises(UserError, match=r"train.rec: no record begins at byte 44"):
        recordio.offsets(rec, idx)
    with pytest.raises(UserError, match="no record begins at byte 4: no RecordIO file, or the index isn't its own"):
        recordio.read_record(np.frombuffer(whole, np.uint8), 4, rec)
    middle = MAGIC + struct.pack("<I", 2 << 29 | 4) + b"abcd"
    with pytest.raises(UserError, match="parts in disorder"):
        recordio.read_record(np.frombuffer(middle, np.uint8), 0, rec)


def test_lists(tmp_path):
    path = tmp_path / "train.lst"
    path.write_text("4\t17.000000\tn01440764/a.JPEG\n0\t3\tb c.JPEG\n")
    assert recordio.read_list(path) == {4: (17.0, "n01440764/a.JPEG"), 0: (3.0, "b c.JPEG")}
    path.write_text("4 17 a\n")
    with pytest.raises(UserError, match="line 1"):
        recordio.read_list(path)
