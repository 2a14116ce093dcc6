import errno
import fcntl
import gzip
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_fast.errors import UserError
from mlperf_fast.workloads.dlrm import data, prepare, raw, verify

FLIGHTS = Path(__file__).parents[3] / "shared" / "data" / "dlrm" / "flights_criteo_format"
RANGE = 10_000
FILES = (data.TRAIN_FILE, data.TEST_FILE, data.COUNTS_FILE, data.META_FILE)


def random_line(rng):
    integers = [rng.choice(["", "0", "7", "-1", "-12", str(rng.randrange(2**31)), "2147483647"]) for _ in range(13)]
    # From 3 to some thousand values a column, so that some are new on the last day.
    hashes = [f"{rng.randrange(3 ** (1 + column % 8)) * 2654435761 % 2**32:08x}" for column in range(26)]
    for column in range(26):
        if rng.random() < 0.1:
            hashes[column] = rng.choice(["", "A", "ff", "FFFFFFFF", "00000000"])
    return "\t".join([str(rng.randrange(2)), *integers, *hashes])


def random_days(rows, seed=0):
    rng = random.Random(seed)
    return [[random_line(rng) for _ in range(n)] for n in rows]


def write_raw(folder, days):
    folder.mkdir(exist_ok=True)
    for day, lines in enumerate(days):
        (folder / f"day_{day}.gz").write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode(), 1))
    return folder


def checksums(folder):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


def read_bin(path):
    return np.fromfile(path, dtype="<i4").reshape(-1, 40)


def reference(days, max_index_range):
    """The reference's steps in plain Python: (training rows in their order before the shuffle, test rows, counts)."""
    parsed = []
    for lines in days:
        rows = []
        for line in lines:
            fields = [field or "0" for field in line.split("\t")]
            hashes = [int(field, 16) % max_index_range for field in fields[14:]]
            rows.append(([int(field) for field in fields[:14]], hashes))
        parsed.append(rows)
    dictionaries = [{} for _ in range(26)]
    for rows in parsed:
        for _, hashes in rows:
            for dictionary, value in zip(dictionaries, hashes, strict=True):
                if value not in dictionary:
                    dictionary[value] = len(dictionary)
    final = [
        [
            (
                head[0],
                *(max(value, 0) for value in head[1:]),
                *(d[h] for d, h in zip(dictionaries, hashes, strict=True)),
            )
            for head, hashes in rows
        ]
        for rows in parsed
    ]
    test = final[-1][: (len(final[-1]) + 1) // 2]
    return list(itertools.chain(*final[:-1])), test, [len(dictionary) for dictionary in dictionaries]


# What it makes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "max_index_range"),
    [([5, 4], 40_000_000), ([1, 1, 7], 1), ([300, 200, 101], 7), ([2000, 1500, 1800, 1000], RANGE)],
)
def test_equals_the_reference(tmp_path, rows, max_index_range):
    days = random_days(rows)
    days[-1][0] = "1" + days[-1][0][1:]
    days[-1][1:2] = ["0" + line[1:] for line in days[-1][1:2]]
    train, test, counts = reference(days, max_index_range)
    meta = prepare.prepare(
        write_raw(tmp_path / "raw", days), tmp_path / "out", max_index_range=max_index_range, memory_mb=1
    )
    assert list(meta.table_rows) == counts
    assert np.load(tmp_path / "out" / data.COUNTS_FILE)["counts"].tolist() == counts
    assert read_bin(tmp_path / "out" / data.TEST_FILE).tolist() == [list(row) for row in test]
    written = [tuple(row) for row in read_bin(tmp_path / "out" / data.TRAIN_FILE).tolist()]
    assert Counter(written) == Counter(train)
    assert meta.settings["negative_integers"] == sum(
        f.startswith("-") for d in days for line in d for f in line.split("\t")
    )
    assert meta.train_positives == sum(row[0] for row in train)
    assert verify.verify(tmp_path / "out") == data.read_meta(tmp_path / "out") == meta
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)


FIELD = st.one_of(st.just(""), st.integers(-(2**31), 2**31 - 1).map(str))
HASH = st.one_of(st.just(""), st.integers(0, 2**32 - 1).map("{:x}".format), st.sampled_from(["0", "00000001", "Fe"]))
LINE = st.tuples(
    st.sampled_from("01"), st.lists(FIELD, min_size=13, max_size=13), st.lists(HASH, min_size=26, max_size=26)
)


@settings(max_examples=30, deadline=None)
@given(
    lines=st.lists(LINE, min_size=2, max_size=12),
    max_index_range=st.integers(1, 100_000),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_any_line_is_read_as_the_reference_does(tmp_path_factory, lines, max_index_range, ending):
    folder = tmp_path_factory.mktemp("lines")
    texts = ["\t".join([label, *integers, *hashes]) for label, integers, hashes in lines]
    path = folder / "day_0.gz"
    path.write_bytes(gzip.compress(ending.join(texts).encode()))  # no end of line at the end
    chunk = np.empty((3, 40), dtype="<i4")
    found = []
    for n, _ in raw.read_rows(path, chunk, max_index_range):
        found += chunk[:n].tolist()
    expected = [
        [int(label), *(max(int(f or 0), 0) for f in integers), *(int(h or "0", 16) % max_index_range for h in hashes)]
        for label, integers, hashes in lines
    ]
    assert found == expected


def numbered_days(rows):
    """Days of which each line carries its number over all days in its first integer."""
    numbers = iter(range(sum(rows)))
    rest = "\t".join(["1"] * 12 + ["a"] * 26)
    return [[f"{i % 2}\t{next(numbers)}\t{rest}" for i in range(n)] for n in rows]


@pytest.mark.parametrize(("rows", "split"), [(1200, False), (9000, False), (9000, True)])
def test_the_shuffle_is_uniform(tmp_path, monkeypatch, rows, split):
    if split:  # an estimate that is far too low gives one bucket, which must then be split
        monkeypatch.setattr(prepare, "estimate_rows", lambda path: 1)
    made = []
    monkeypatch.setattr(prepare, "scatter", lambda *args, f=prepare.scatter: made.append(len(args[2])) or f(*args))
    days = numbered_days([rows // 3, rows // 3, rows // 3, 5])
    prepare.prepare(write_raw(tmp_path / "raw", days), tmp_path / "out", memory_mb=1, max_index_range=RANGE)
    assert max(made) == {1200: 1 + (1200 > 1228), 9000: 8}[rows]  # as many parts as the memory demands
    order = read_bin(tmp_path / "out" / data.TRAIN_FILE)[:, 1]
    assert sorted(order.tolist()) == list(range(rows))
    # Each tenth of the file holds a fair share of each tenth of the original.
    table = np.histogram2d(np.arange(rows), order, bins=10)[0]
    chi_square = ((table - rows / 100) ** 2 / (rows / 100)).sum()
    assert chi_square < 140, f"{chi_square:.0f} of 81 degrees of freedom"
    assert (np.abs(np.diff(order)) == 1).sum() < 15, "neighbours stay together"
    assert read_bin(tmp_path / "out" / data.TEST_FILE)[:, 1].tolist() == [rows, rows + 1, rows + 2]


def test_the_seed_changes_the_order_and_nothing_else(tmp_path):
    source = write_raw(tmp_path / "raw", random_days([500, 300]))
    metas = [
        prepare.prepare(source, tmp_path / f"out{i}", seed=s, max_index_range=RANGE) for i, s in enumerate([1, 1, 2])
    ]
    assert metas[0].sha256 == metas[1].sha256
    assert metas[0].sha256[data.TRAIN_FILE] != metas[2].sha256[data.TRAIN_FILE]
    assert metas[0].sha256[data.TEST_FILE] == metas[2].sha256[data.TEST_FILE]
    rows = [sorted(read_bin(tmp_path / f"out{i}" / data.TRAIN_FILE).tolist()) for i in (0, 2)]
    assert rows[0] == rows[1]


def test_a_file_of_several_gzip_members_is_one_text(tmp_path):
    days = random_days([40, 30])
    write_raw(tmp_path / "one", days)
    write_raw(tmp_path / "two", days)
    text = "".join(line + "\n" for line in days[0]).encode()
    parts = [gzip.compress(text[start : start + 999]) for start in range(0, len(text), 999)]
    (tmp_path / "two" / "day_0.gz").write_bytes(b"".join(parts) + b"\0" * 512)
    metas = [
        prepare.prepare(tmp_path / name, tmp_path / f"{name}.out", max_index_range=RANGE) for name in ("one", "two")
    ]
    assert metas[0].sha256 == metas[1].sha256


@pytest.mark.skipif(not FLIGHTS.is_dir(), reason="needs the flight records of shared/data")
def test_real_records(tmp_path):
    meta = prepare.prepare(FLIGHTS, tmp_path / "out")
    assert (meta.train_samples, meta.test_samples) == (40_000, 4_000)
    days = [gzip.decompress((FLIGHTS / f"day_{day}.gz").read_bytes()).decode().splitlines() for day in range(6)]
    train, test, counts = reference(days, 40_000_000)
    assert list(meta.table_rows) == counts
    assert read_bin(tmp_path / "out" / data.TEST_FILE).tolist() == [list(row) for row in test]
    assert Counter(map(tuple, read_bin(tmp_path / "out" / data.TRAIN_FILE).tolist())) == Counter(train)


PEAK = """
import resource, sys
from mlperf_fast.workloads.dlrm.prepare import prepare
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare(sys.argv[1], sys.argv[2], max_index_range=1 << 16, memory_mb=8)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_is_bounded_whatever_the_size(tmp_path):
    block = gzip.compress("".join(line + "\n" for line in random_days([20_000])[0]).encode(), 1)
    (tmp_path / "raw").mkdir()
    for day in range(3):
        (tmp_path / "raw" / f"day_{day}.gz").write_bytes(block * 8)  # 480,000 rows, 77 MB
    command = [sys.executable, "-c", PEAK, tmp_path / "raw", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    # 8 MB of rows, 7 MB of dictionaries, and blocks of text in flight.
    assert float(done.stdout) < 48


# Interruptions --------------------------------------------------------------------------------------------------------


def prepare_and_die(source, out, calls_to_live):
    """Runs in a child: prepares, and kills itself at a certain file operation."""
    left = calls_to_live

    def dying(function):
        def wrapped(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    for owner, name in (
        (os, "replace"),
        (os, "fsync"),
        (os, "truncate"),
        (os, "unlink"),
        (Path, "unlink"),
        (prepare, "append"),
    ):
        setattr(owner, name, dying(getattr(owner, name)))
    prepare.prepare(source, out, max_index_range=RANGE, memory_mb=1)


@pytest.fixture
def interrupted(tmp_path):
    """(raw folder, out folder, checksums of an uninterrupted run) of a set that takes several buckets."""
    source = write_raw(tmp_path / "raw", random_days([1500, 1200, 900, 301]))
    prepare.prepare(source, tmp_path / "whole", max_index_range=RANGE, memory_mb=1)
    return source, tmp_path / "out", checksums(tmp_path / "whole")


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_file_operations_it_ends_with_the_same_bytes(interrupted, seed):
    source, out, expected = interrupted
    rng = random.Random(seed)
    kills = 0
    for _ in range(200):
        # Mostly far enough to make progress, at times in the first steps of a resumed run.
        calls = rng.choice([1, 2, 3, rng.randrange(1, 40), rng.randrange(20, 120)])
        child = multiprocessing.get_context("fork").Process(target=prepare_and_die, args=(source, out, calls))
        child.start()
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        kills += 1
    assert kills > 3
    assert checksums(out) == expected
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)


def test_killed_at_random_times_it_ends_with_the_same_bytes(interrupted):
    source, out, expected = interrupted
    rng = random.Random(0)
    kills, patience = 0, 0.02
    while True:
        child = multiprocessing.get_context("fork").Process(target=prepare_and_die, args=(source, out, 0))
        child.start()
        child.join(rng.uniform(0, patience))
        child.kill()
        child.join()
        if child.exitcode == 0:
            break
        kills += 1
        patience *= 1.1
    assert kills > 3
    assert checksums(out) == expected


def test_a_full_disk_loses_nothing(interrupted, monkeypatch):
    source, out, expected = interrupted
    calls = 0

    def full(path, rows, append=prepare.append):
        nonlocal calls
        calls += 1
        if calls == 60:
            append(path, rows[: len(rows) // 2])  # a part still fits
            raise OSError(errno.ENOSPC, "No space left on device")
        append(path, rows)

    monkeypatch.setattr(prepare, "append", full)
    with pytest.raises(UserError, match=r"the disk is full. Free some space.*goes on after the last finished day"):
        prepare.prepare(source, out, max_index_range=RANGE, memory_mb=1)
    assert calls == 60
    assert json.loads((out / "unfinished" / "state.json").read_text())["days"]
    prepare.prepare(source, out, max_index_range=RANGE, memory_mb=1)
    assert checksums(out) == expected


def test_other_memory_on_resuming_is_fine_but_other_data_is_not(interrupted, monkeypatch):
    source, out, expected = interrupted
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "merge_buckets", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare.prepare(source, out, max_index_range=RANGE, memory_mb=1)
    for more, name in (({"seed": 5}, "seed"), ({"max_index_range": 5}, "max_index_range")):
        with pytest.raises(UserError, match=f"unfinished work with other {name}"):
            prepare.prepare(source, out, **{"max_index_range": RANGE, **more})
    write_raw(source.with_name("other"), random_days([5, 5]))
    with pytest.raises(UserError, match="unfinished work with other raw"):
        prepare.prepare(source.with_name("other"), out, max_index_range=RANGE)
    prepare.prepare(source, out, max_index_range=RANGE, memory_mb=64)
    assert checksums(out) == expected


def test_two_at_once_are_refused(tmp_path):
    source = write_raw(tmp_path / "raw", random_days([10, 10]))
    (tmp_path / "out" / "unfinished").mkdir(parents=True)
    with open(tmp_path / "out" / "unfinished" / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is preparing"):
            prepare.prepare(source, tmp_path / "out", max_index_range=RANGE)
    prepare.prepare(source, tmp_path / "out", max_index_range=RANGE)


def test_a_damaged_state_is_refused(tmp_path):
    source = write_raw(tmp_path / "raw", random_days([10, 10]))
    (tmp_path / "out" / "unfinished").mkdir(parents=True)
    for content in ("", "[]", "{}", '{"settings": 3, "buckets": 1, "extra": 0}'):
        (tmp_path / "out" / "unfinished" / "state.json").write_text(content)
        with pytest.raises(UserError, match=r"state\.json is damaged|with other"):
            prepare.prepare(source, tmp_path / "out", max_index_range=RANGE)


def test_again_on_a_finished_folder_verifies_it(tmp_path):
    source = write_raw(tmp_path / "raw", random_days([50, 40]))
    said = []
    meta = prepare.prepare(source, tmp_path / "out", max_index_range=RANGE)
    assert prepare.prepare(source, tmp_path / "out", max_index_range=RANGE, progress=said.append) == meta
    assert any("prepared before" in line for line in said)
    with pytest.raises(UserError, match="another data set"):
        prepare.prepare(source, tmp_path / "out", max_index_range=RANGE + 1)
    with open(tmp_path / "out" / data.TEST_FILE, "r+b") as file:
        file.write(b"\5")
    with pytest.raises(UserError, match="no valid data set"):
        prepare.prepare(source, tmp_path / "out", max_index_range=RANGE)


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
