"""What `prepare` and `verify` say about faulty text, folders and files."""

import gzip
import shutil

import numpy as np
import pytest
from criteo_text import RANGE, random_days, write_raw

from mlperf_fast.errors import UserError
from mlperf_fast.workloads.dlrm import data, prepare, verify

# Faults ---------------------------------------------------------------------------------------------------------------


GOOD = "\t".join(["0"] * 14 + ["ab"] * 26)


def with_field(column, text):
    fields = GOOD.split("\t")
    fields[column] = text
    return "\t".join(fields)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (with_field(0, "2"), r"column 1 \(label\): '2'; the label must be 0 or 1"),
        (with_field(0, ""), r"column 1 \(label\): ''; the label must be 0 or 1"),
        (with_field(0, "-1"), r"column 1 \(label\): '-1'"),
        (with_field(0, "x"), r"column 1 \(label\): 'x'"),
        (with_field(3, "1.5"), r"column 4 \(int_2\): '1\.5'; expected a whole number"),
        (with_field(13, "2147483648"), r"column 14 \(int_12\): '2147483648'"),
        (with_field(13, "-2147483649"), r"column 14 \(int_12\): '-2147483649'"),
        (with_field(1, "9" * 30), r"column 2 \(int_0\): '9+'"),
        (with_field(5, "-"), r"column 6 \(int_4\): '-'"),
        (with_field(5, "+1"), r"column 6 \(int_4\): '\+1'"),
        (with_field(5, " 1"), r"column 6 \(int_4\): ' 1'"),
        (with_field(14, "xyz"), r"column 15 \(cat_0\): 'xyz'; expected 1 to 8 hexadecimal"),
        (with_field(39, "123456789"), r"column 40 \(cat_25\): '123456789'"),
        (with_field(20, "\x00\xff"), r"column 21 \(cat_6\): '"),
        (GOOD + "\t1", r"41 fields instead of 40"),
        (GOOD.rpartition("\t")[0], r"39 fields instead of 40"),
        ("", r"1 fields instead of 40: ''"),
        ("bad\t" + GOOD, r"41 fields instead of 40"),
        ("\r", r"1 fields instead of 40"),
    ],
)
@pytest.mark.parametrize("lines_before", [0, 7, 5000])
def test_a_fault_in_the_text_names_its_place(tmp_path, line, message, lines_before):
    days = [[GOOD] * 3, [GOOD] * lines_before + [line] + [GOOD] * 3, [GOOD]]
    (tmp_path / "raw").mkdir()
    for day, lines in enumerate(days):
        text = "".join(line + "\n" for line in lines).encode("latin-1")
        (tmp_path / "raw" / f"day_{day}.gz").write_bytes(gzip.compress(text, 1))
    with pytest.raises(UserError, match=rf"day_1\.gz, line {lines_before + 1}: {message}"):
        prepare.prepare(tmp_path / "raw", tmp_path / "out", max_index_range=RANGE, memory_mb=1)


def damaged(content, kind):
    return {
        "empty file": b"",
        "no gzip": b"0\t1\t2\n" * 50,
        "only a header": content[:10],
        "cut in the middle": content[: len(content) // 2],
        "cut in the checksum": content[:-3],
        "a flipped byte": content[:500] + bytes([content[500] ^ 0x55]) + content[501:],
        "rubbish behind": content + b"rubbish",
        "no lines": gzip.compress(b""),
        "an endless line": gzip.compress(b"7" * (1 << 20)),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty file", "is empty"),
        ("no gzip", "damaged near byte"),
        ("only a header", "cut short at byte"),
        ("cut in the middle", "cut short at byte"),
        ("cut in the checksum", "cut short at byte"),
        ("a flipped byte", r"damaged near byte|line \d+"),
        ("rubbish behind", "damaged near byte"),
        ("no lines", "is empty"),
        ("an endless line", "a line is longer"),
    ],
)
def test_a_damaged_day_is_named(tmp_path, kind, message):
    source = write_raw(tmp_path / "raw", random_days([20, 20, 20]))
    path = source / "day_1.gz"
    path.write_bytes(damaged(path.read_bytes(), kind))
    with pytest.raises(UserError, match=rf"day_1\.gz.*({message})"):
        prepare.prepare(source, tmp_path / "out", max_index_range=RANGE)


def test_missing_days_are_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        prepare.prepare(tmp_path / "raw", tmp_path / "out")
    source = write_raw(tmp_path / "raw", random_days([3, 3, 3, 3]))
    (source / "day_2.gz").unlink()
    with pytest.raises(UserError, match=r"goes up to day_3\.gz, but has no day_2\.gz"):
        prepare.prepare(source, tmp_path / "out")
    for day in (1, 3):
        (source / f"day_{day}.gz").unlink()
    with pytest.raises(UserError, match=r"holds 1 files day_N\.gz, but 2 are the least"):
        prepare.prepare(source, tmp_path / "out")


def test_a_test_set_of_one_label_is_refused(tmp_path):
    with pytest.raises(UserError, match="all labels are the same"):
        prepare.prepare(write_raw(tmp_path / "raw", [[GOOD], [GOOD]]), tmp_path / "out", max_index_range=RANGE)


def test_hostile_folders_are_refused_and_kept(tmp_path):
    source = write_raw(tmp_path / "raw", random_days([5, 5]))
    with pytest.raises(UserError, match="name the same folder"):
        prepare.prepare(source, source / ".." / "raw")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        prepare.prepare(source, tmp_path / "file")
    with pytest.raises(UserError, match="Not a directory"):
        prepare.prepare(source, tmp_path / "file" / "out")
    for name in ("notes.txt", data.TRAIN_FILE, data.COUNTS_FILE):
        out = tmp_path / f"with {name}"
        out.mkdir()
        (out / name).write_text("mine")
        with pytest.raises(UserError, match=rf"holds other files \({name}\)"):
            prepare.prepare(source, out)
        assert [path.name for path in out.iterdir()] == [name]
        assert (out / name).read_text() == "mine"
    assert sorted(path.name for path in source.iterdir()) == ["day_0.gz", "day_1.gz"]


def test_the_disk_must_be_large_enough(tmp_path, monkeypatch):
    source = write_raw(tmp_path / "raw", random_days([1000, 1000]))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=200_000))
    with pytest.raises(
        UserError, match=r"about 0\.0 GB are needed for some (1,9|2,0)\d\d rows, but the disk has 0\.0 GB"
    ):
        prepare.prepare(source, tmp_path / "out", max_index_range=RANGE)


@pytest.mark.parametrize("more", [{"max_index_range": 0}, {"max_index_range": 2**31}, {"memory_mb": 0}, {"seed": -1}])
def test_wrong_arguments_are_refused(tmp_path, more):
    with pytest.raises(UserError, match="max_index_range must"):
        prepare.prepare(tmp_path, tmp_path / "out", **more)


# Verification ---------------------------------------------------------------------------------------------------------


def test_verify_lists_every_problem(tmp_path):
    out = tmp_path / "out"
    meta = prepare.prepare(write_raw(tmp_path / "raw", random_days([500, 300])), out, max_index_range=RANGE)
    rows = np.memmap(out / data.TRAIN_FILE, dtype="<i4", mode="r+", shape=(500, 40))
    rows[17, 0] = 9
    rows[18, 4] = -5
    rows[[19, 20], 14] = meta.table_rows[0]
    rows[21, 39] = -1
    rows.flush()
    test = np.memmap(out / data.TEST_FILE, dtype="<i4", mode="r+", shape=(150, 40))
    test[3, 0] ^= 1
    test.flush()
    (out / data.COUNTS_FILE).write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        verify.verify(out)
    text = str(caught.value)
    for problem in (
        "train.bin: row 17, column label: 9 is outside 0 .. 1",
        "train.bin: row 18, column int_3: -5 is outside 0 .. 2147483647",
        f"train.bin: row 19, column cat_0: {meta.table_rows[0]} is outside 0 .. {meta.table_rows[0] - 1}",
        "train.bin: row 21, column cat_25: -1 is outside",
        f"{data.TRAIN_FILE}: its checksum isn't",
        f"{data.TEST_FILE}: its checksum isn't",
        f"{data.COUNTS_FILE}: its checksum isn't",
    ):
        assert problem in text
    assert "row 20" not in text, "one line a column is enough"
    assert "clicks instead of" in text


@pytest.mark.parametrize("name", [data.TRAIN_FILE, data.TEST_FILE])
def test_verify_finds_any_flipped_bit(tmp_path, name):
    prepare.prepare(write_raw(tmp_path / "raw", random_days([50, 50])), tmp_path / "out", max_index_range=RANGE)
    path = tmp_path / "out" / name
    content = bytearray(path.read_bytes())
    content[8] ^= 1  # an integer: still a fine value
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: its checksum"):
        verify.verify(tmp_path / "out")


def test_verify_without_meta_checks_the_values(tmp_path):
    prepare.prepare(write_raw(tmp_path / "raw", random_days([50, 50])), tmp_path / "out", max_index_range=RANGE)
    (tmp_path / "out" / data.META_FILE).unlink()
    said = []
    verify.verify(tmp_path / "out", said.append)
    assert any("no checksums to compare" in line for line in said)
    rows = np.memmap(tmp_path / "out" / data.TEST_FILE, dtype="<i4", mode="r+", shape=(25, 40))
    rows[24, 30] = 10**6
    rows.flush()
    with pytest.raises(UserError, match=r"row 24, column cat_16: 1000000 is outside"):
        verify.verify(tmp_path / "out")
