import itertools
import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_fast import _C
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.dlrm import data
from mlperf_fast.workloads.dlrm.verify import write_counts, write_meta

TABLE_ROWS = tuple(3 + 7 * table for table in range(26))


def random_rows(n, seed=0):
    rng = np.random.default_rng(seed)
    rows = np.empty((n, 40), dtype="<i4")
    rows[:, 0] = rng.random(n) < 0.3
    rows[:, 1:14] = np.exp(rng.uniform(0, 21, (n, 13))).astype(np.int64) - 1
    rows[:, 14:] = rng.integers(0, TABLE_ROWS, (n, 26))
    return rows


def make_folder(path, train, test, meta=True):
    path.mkdir(exist_ok=True)
    train.tofile(path / data.TRAIN_FILE)
    test.tofile(path / data.TEST_FILE)
    write_counts(path / data.COUNTS_FILE, TABLE_ROWS)
    if meta:
        write_meta(path, data.Meta(TABLE_ROWS, len(train), len(test), source="test", sha256={"x": "y"}))
    return data.read_meta(path)


# Decoding -------------------------------------------------------------------------------------------------------------


def decode(rows, module=_C, *, batch=None, first=0, last=None, tables=range(26), table_rows=TABLE_ROWS):
    batch = len(rows) if batch is None else batch
    last = batch if last is None else last
    tables = np.array(list(tables), dtype=np.int32)
    table_rows = np.array(table_rows, dtype=np.int32)
    dense = np.full((last - first, 13), np.nan, dtype=np.float32)
    labels = np.full(last - first, np.nan, dtype=np.float32)
    ids = np.full((batch, len(tables)), -1, dtype=np.int32)
    fault = module.criteo_decode(
        rows.ctypes.data, len(rows), batch, first, last, table_rows.ctypes.data, tables.ctypes.data, len(tables),
        dense.ctypes.data, labels.ctypes.data, ids.ctypes.data,
    )  # fmt: skip
    return fault, dense, labels, ids


def decode_in_numpy(rows, batch, first, last, tables):
    padded = rows[np.minimum(np.arange(batch), len(rows) - 1)]
    own = padded[first:last]
    return np.log1p(own[:, 1:14].astype(np.float64)), own[:, 0].astype(np.float32), padded[:, [14 + t for t in tables]]


def assert_within_ulps(found, exact, ulps):
    steps = np.abs(found - exact) / np.spacing(np.maximum(exact, 1e-30).astype(np.float32)).astype(np.float64)
    worst = np.unravel_index(np.argmax(steps), steps.shape)
    assert steps[worst] <= ulps, f"log(x+1): {found[worst]!r} for {exact[worst]!r}, {steps[worst]:.2f} ulp"


@pytest.mark.parametrize("level", _C.supported_levels())
@pytest.mark.parametrize("tables", [range(26), range(3, 11), [25], [], [7, 2, 19, 3], [0, 2, 3, 4]])
@pytest.mark.parametrize(
    ("n", "batch", "first", "last"), [(1, 1, 0, 1), (64, 64, 0, 64), (37, 64, 32, 48), (5, 64, 48, 64)]
)
def test_decode_equals_numpy(level, tables, n, batch, first, last):
    rows = random_rows(n)
    fault, dense, labels, ids = decode(rows, _C.load(level), batch=batch, first=first, last=last, tables=tables)
    exact, expected_labels, expected_ids = decode_in_numpy(rows, batch, first, last, tables)
    assert fault[0] == -1
    assert_within_ulps(dense, exact, 2)
    assert np.array_equal(labels, expected_labels)
    assert np.array_equal(ids, expected_ids)


@pytest.mark.parametrize("level", _C.supported_levels())
def test_log_is_accurate_over_all_integers(level):
    near_powers = np.concatenate([2**power + np.arange(-50, 50) for power in range(6, 31)])
    spread = np.random.default_rng(1).integers(0, 2**31, 200_000)
    x = np.concatenate([np.arange(1 << 18), near_powers, spread, 2**31 - 1 - np.arange(100)])
    x = np.resize(x, (len(x) // 13 + 1, 13))
    rows = np.zeros((len(x), 40), dtype="<i4")
    rows[:, 1:14] = x
    fault, dense, _, _ = decode(rows, _C.load(level))
    assert fault[0] == -1
    assert_within_ulps(dense, np.log1p(x.astype(np.float64)), 2)
    assert dense[0, 0] == 0.0


@pytest.mark.parametrize("level", _C.supported_levels())
@pytest.mark.parametrize(
    ("column", "value"),
    [(0, 2), (0, -1), (1, -1), (13, -(2**31)), (14, 3), (14, -1), (39, TABLE_ROWS[25]), (26, 2**31 - 1)],
)
@pytest.mark.parametrize("tables", [range(26), [25, 0, 12]])
def test_decode_names_the_first_fault(level, column, value, tables):
    rows = random_rows(50)
    rows[30:, column] = value
    rows[40:, 0] = 7
    assert decode(rows, _C.load(level), tables=tables)[0] == (30, column, value)


def test_decode_looks_at_this_ranks_tables_only():
    rows = random_rows(8)
    rows[3, 14 + 5] = 10**6
    assert decode(rows, tables=[4, 6])[0][0] == -1
    assert decode(rows, tables=[5])[0] == (3, 19, 10**6)


# meta.json ------------------------------------------------------------------------------------------------------------


def test_meta_survives_the_disk(tmp_path):
    meta = data.Meta(TABLE_ROWS, 3, 2, "here", 1, 2, {"a": "b"}, {"seed": 3})
    make_folder(tmp_path, random_rows(3), random_rows(2))
    write_meta(tmp_path, meta)
    assert data.read_meta(tmp_path) == meta


def test_a_folder_of_the_references_tools_is_read(tmp_path):
    meta = make_folder(tmp_path, random_rows(7), random_rows(4), meta=False)
    assert (meta.table_rows, meta.train_samples, meta.test_samples, meta.sha256) == (TABLE_ROWS, 7, 4, {})


def test_a_missing_folder_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match=r"no such data set folder.*mlperf-fast prepare dlrm --preset demo.*--raw"):
        data.read_meta(tmp_path / "nothing")


@pytest.mark.parametrize("name", [data.TRAIN_FILE, data.TEST_FILE])
def test_a_missing_file_is_named(tmp_path, name):
    make_folder(tmp_path, random_rows(7), random_rows(4))
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: No such file.*mlperf-fast prepare dlrm"):
        data.read_meta(tmp_path)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "is empty"),
        (7 * 160 - 1, "159 over a whole"),
        (161, "1 over a whole"),
        (6 * 160, "holds 6 samples, .* says 7"),
    ],
)
def test_a_cut_file_is_refused(tmp_path, size, message):
    make_folder(tmp_path, random_rows(7), random_rows(4))
    with open(tmp_path / data.TRAIN_FILE, "r+b") as file:
        file.truncate(size)
    with pytest.raises(UserError, match=f"{data.TRAIN_FILE}.*{message}"):
        data.read_meta(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.pop("table_rows"),
        lambda v: v.update(table_rows=[1] * 25),
        lambda v: v.update(table_rows=[1] * 25 + [0]),
        lambda v: v.update(table_rows=[1] * 25 + ["7"]),
        lambda v: v.update(train_samples="7"),
        lambda v: v.update(test_samples=None),
        lambda v: v.update(sha256=["x"]),
        lambda v: v.update(unknown=1),
    ],
)
def test_a_wrong_meta_is_refused(tmp_path, change):
    make_folder(tmp_path, random_rows(7), random_rows(4))
    values = json.loads((tmp_path / data.META_FILE).read_text())
    change(values)
    (tmp_path / data.META_FILE).write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"meta\.json"):
        data.read_meta(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"table_rows": 3}'])
def test_a_damaged_meta_is_refused(tmp_path, content):
    make_folder(tmp_path, random_rows(7), random_rows(4))
    (tmp_path / data.META_FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"meta\.json"):
        data.read_meta(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 no zip"])
def test_damaged_counts_are_refused(tmp_path, content):
    make_folder(tmp_path, random_rows(7), random_rows(4), meta=False)
    (tmp_path / data.COUNTS_FILE).unlink()
    if content is not None:
        (tmp_path / data.COUNTS_FILE).write_bytes(content)
    with pytest.raises(UserError, match=data.COUNTS_FILE):
        data.read_meta(tmp_path)


def test_pickled_counts_are_refused(tmp_path):
    make_folder(tmp_path, random_rows(7), random_rows(4), meta=False)
    np.savez(tmp_path / data.COUNTS_FILE, counts=np.array([{}] * 26, dtype=object))
    with pytest.raises(UserError, match="no readable array"):
        data.read_meta(tmp_path)


opened: list[str] | None = None


def _note_opening(event, arguments):
    if event == "open" and opened is not None:
        opened.append(str(arguments[0]))


sys.addaudithook(_note_opening)


def test_nothing_opens_data_before_batches_are_asked_for(tmp_path):
    global opened
    make_folder(tmp_path, random_rows(7), random_rows(4))
    opened = []
    try:
        meta = data.read_meta(tmp_path)
        before = [path for path in opened if path.endswith(".bin")]
        list(data.train_batches(tmp_path, meta, batch_size=4, seed=0))
        after = [path for path in opened if path.endswith(".bin")]
    finally:
        opened = None
    assert before == []
    assert after  # the hook sees openings


# Batches --------------------------------------------------------------------------------------------------------------


def numbered_rows(n):
    """Rows that carry their number in the first integer."""
    rows = random_rows(n)
    rows[:, 1] = np.arange(n)
    return rows


def numbers(batch):
    """The numbers of the valid rows of a batch of `numbered_rows`."""
    return torch.expm1(batch.dense[batch.weight > 0, 0].double()).round().long().tolist()


def test_an_epoch_is_every_row_once_in_shuffled_fixed_groups(tmp_path):
    meta = make_folder(tmp_path, numbered_rows(1003), random_rows(1))
    with data.train_batches(tmp_path, meta, batch_size=10, seed=5) as batches:
        assert len(batches) == 101
        groups = [numbers(batch) for batch in batches]
    starts = [group[0] for group in groups]
    assert all(group == list(range(group[0], min(group[0] + 10, 1003))) for group in groups)
    assert sorted(starts) == list(range(0, 1003, 10))
    assert starts != sorted(starts)
    assert starts.index(1000) != 100, "the short group is shuffled like the others"


def test_the_order_depends_on_the_seed_alone(tmp_path):
    meta = make_folder(tmp_path, numbered_rows(300), random_rows(1))

    def order(seed, **more):
        return [numbers(batch) for batch in data.train_batches(tmp_path, meta, batch_size=10, seed=seed, **more)]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1, epochs=2)[:30] == order(1)
    assert order(1, epochs=2)[30:] != order(1)


@pytest.mark.parametrize("start", [0, 1, 29, 30, 31, 59, 60, 61])
def test_resuming_gives_the_rest(tmp_path, start):
    meta = make_folder(tmp_path, numbered_rows(300), random_rows(1))
    whole = [numbers(batch) for batch in data.train_batches(tmp_path, meta, batch_size=10, seed=4, epochs=2)]
    rest = data.train_batches(tmp_path, meta, batch_size=10, seed=4, epochs=2, start_step=start)
    assert len(rest) == max(0, 60 - start)
    assert [numbers(batch) for batch in rest] == whole[start:]


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 70), local=st.integers(1, 9), world=st.integers(1, 5), seed=st.integers(0, 2**63))
def test_ranks_share_each_batch(tmp_path_factory, n, local, world, seed):
    folder = tmp_path_factory.mktemp("ranks")
    rows = numbered_rows(n)
    meta = make_folder(folder, rows, rows)
    size = local * world
    tables = [range(rank, 26, world) for rank in range(world)]
    ranks = [
        list(data.train_batches(folder, meta, batch_size=size, seed=seed, rank=r, world=world, tables=tables[r]))
        for r in range(world)
    ]
    seen = []
    for parts in zip(*ranks, strict=True):
        group = list(itertools.chain.from_iterable(numbers(part) for part in parts))
        seen += group
        weight = torch.cat([part.weight for part in parts])
        loss = torch.cat([part.dense[:, 5] for part in parts])
        expected = np.log1p(rows[group, 6].astype(np.float64)).mean()
        assert (weight * loss).mean().item() == pytest.approx(expected, rel=1e-5)
        assert torch.cat([part.labels for part in parts])[: len(group)].tolist() == rows[group, 0].tolist()
        for rank, part in enumerate(parts):
            assert part.dense.shape == (local, 13)
            assert part.dense.dtype == part.labels.dtype == part.weight.dtype == torch.float32
            assert (part.ids.shape, part.ids.dtype) == ((size, len(tables[rank])), torch.int32)
            assert part.ids[: len(group)].tolist() == rows[group][:, [14 + t for t in tables[rank]]].tolist()
            last = rows[group[-1], [14 + t for t in tables[rank]]]
            assert (part.ids[len(group) :].numpy() == last).all(), "padding repeats a row that is there"
    assert sorted(seen) == list(range(n))


@pytest.mark.parametrize("world", [1, 3, 4])
@pytest.mark.parametrize("n", [1, 11, 12, 13, 48])
def test_each_test_sample_comes_once_in_order(tmp_path, n, world):
    rows = numbered_rows(n)
    meta = make_folder(tmp_path, random_rows(1), rows)
    ranks = [
        list(data.test_batches(tmp_path, meta, batch_size=12, rank=r, world=world, tables=range(26), device="cpu"))
        for r in range(world)
    ]
    seen = []
    for parts in zip(*ranks, strict=True):
        for batch, valid in parts:
            assert valid == int((batch.weight > 0).sum())
            assert len(batch.labels) == 12 // world
            seen += torch.expm1(batch.dense[:valid, 0].double()).round().long().tolist()
    assert seen == list(range(n))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, 5, "column label: 5, but the label must be 0 or 1"),
        (4, -3, "column int_3: -3, but integers must be 0 or more"),
        (16, 17, "column cat_2: 17, but table 2 has ids 0 to 16"),
    ],
)
def test_a_fault_in_the_data_names_its_place(tmp_path, column, value, message):
    rows = random_rows(100)
    rows[57, column] = value
    meta = make_folder(tmp_path, rows, rows)
    place = rf"{data.TRAIN_FILE}: row 57, {message}\. .*--verify --out"
    with pytest.raises(UserError, match=place), data.train_batches(tmp_path, meta, batch_size=8, seed=1) as batches:
        list(batches)
    with pytest.raises(UserError, match=rf"{data.TEST_FILE}: row 57"):
        list(data.test_batches(tmp_path, meta, batch_size=16, rank=0, world=1, tables=range(26), device="cpu"))


@pytest.mark.parametrize("more", [{"batch_size": 10, "world": 3}, {"batch_size": 0}, {"batch_size": 4, "tables": [26]}])
def test_wrong_arguments_are_refused(tmp_path, more):
    meta = make_folder(tmp_path, random_rows(9), random_rows(1))
    with pytest.raises(UserError, match=r"batch size|tables must"):
        data.train_batches(tmp_path, meta, seed=0, **more)


def test_a_file_that_changed_meanwhile_is_refused(tmp_path):
    meta = make_folder(tmp_path, random_rows(9), random_rows(1))
    random_rows(8).tofile(tmp_path / data.TRAIN_FILE)
    with pytest.raises(UserError, match="changed since"):
        data.train_batches(tmp_path, meta, batch_size=4, seed=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_the_device_equal_those_on_the_host(tmp_path):
    meta = make_folder(tmp_path, random_rows(4000), random_rows(1))
    host = list(data.train_batches(tmp_path, meta, batch_size=64, seed=0))
    device = [
        data.Batch(*(tensor.clone() for tensor in batch))
        for batch in data.train_batches(tmp_path, meta, batch_size=64, seed=0, device="cuda")
    ]
    for ours, theirs in zip(host, device, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert b.is_cuda
            assert torch.equal(a, b.cpu())
