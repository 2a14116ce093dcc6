import errno
import fcntl
import gzip
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from criteo_text import RANGE, random_days, read_bin, write_raw
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_fast.errors import UserError
from mlperf_fast.workloads.dlrm import data, prepare, raw, verify

FLIGHTS = Path(__file__).parents[3] / "shared" / "data" / "dlrm" / "flights_criteo_format"
FILES = (data.TRAIN_FILE, data.TEST_FILE, data.COUNTS_FILE, data.META_FILE)


def checksums(folder):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


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
import re, sys
from mlperf_fast.workloads.dlrm.prepare import prepare
def peak():  # KiB. Not getrusage's, which includes that of the process this one was started from
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
prepare(sys.argv[1], sys.argv[2], max_index_range=1 << 16, memory_mb=8)
print((peak() - before) / 1024)
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
