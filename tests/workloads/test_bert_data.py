"""Batches: every sequence once an epoch, the same at any start, dealt evenly, and equal to the sequences on disk."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("h5py", reason="needs h5py: pip install 'mlperf_fast[bert]'")

from mlperf_fast.errors import UserError
from mlperf_fast.workloads.bert import data, shards, verify
from mlperf_fast.workloads.bert.sequences import Sequences, joined, starts_of

SIZES = (50, 31, 44)


def numbered(n, first, seed):
    """Sequences of which each carries its own number in its first word."""
    rng = np.random.default_rng(seed)
    lengths = np.where(rng.random(n) < 0.3, 64, rng.integers(6, 65, n))
    masked = np.maximum(1, np.round(0.15 * lengths)).astype(int)
    positions = [np.sort(rng.choice(np.arange(1, size - 1), k, replace=False)) for size, k in zip(lengths, masked)]  # noqa: B905
    tokens = rng.integers(1, 400, lengths.sum())
    tokens[starts_of(lengths)[:-1]] = first + np.arange(n)
    return Sequences(
        tokens.astype(np.int16), starts_of(lengths), rng.integers(2, lengths - 1).astype(np.int16),
        np.concatenate(positions).astype(np.int16), rng.integers(1, 400, masked.sum()).astype(np.int16),
        starts_of(masked), rng.integers(0, 2, n).astype(np.int8),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("data")
    names = {"train": {}, "eval": {}}
    first = 0
    for part, sizes in (("train", SIZES), ("eval", (37,))):
        (out / part).mkdir()
        for number, size in enumerate(sizes):
            name = f"{part}/part_{number:05d}_of_{len(sizes):05d}.hdf5"
            shards.write_hdf5(out / name, numbered(size, first, first))
            names[part][name] = size
            first += size
    report = verify.inspect(out, names["train"], 512, 64, 10)
    assert not report.problems
    verify.write_meta(out, verify.Meta(512, 64, 10, "varlength", names["train"], names["eval"], report.tokens,
                                       report.lengths.tolist(), report.sha256, "a test"))  # fmt: skip
    return out


@pytest.fixture(scope="module")
def meta(folder):
    return verify.read_meta(folder)


def batches(folder, meta, **options):
    with data.train_batches(folder, meta, **{"batch_size": 8, "seed": 1, "steps": 40, **options}) as source:
        return list(source)


def numbers(batch):
    return batch.ids[batch.cu_seqlens[:-1].long()].tolist()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_batch_holds_its_sequences_without_padding(folder, meta):
    whole = joined(shards.read_shard(folder / name) for name in meta.train)
    for batch in batches(folder, meta, steps=20):
        assert [tensor.dtype for tensor in batch] == [torch.int32] * 6 + [torch.float32, torch.int32]
        assert len(batch.cu_seqlens) == 9
        assert batch.cu_seqlens[-1] == len(batch.ids)
        for i, number in enumerate(numbers(batch)):
            a, b = batch.cu_seqlens[i : i + 2].tolist()
            start, end = whole.starts[number : number + 2]
            assert batch.ids[a:b].tolist() == whole.tokens[start:end].tolist()
            assert batch.positions[a:b].tolist() == list(range(b - a))
            first = int(whole.first[number])
            assert batch.segments[a:b].tolist() == [0] * first + [1] * (b - a - first)
            here = (batch.masked >= a) & (batch.masked < b)
            c, d = whole.mask_starts[number : number + 2]
            assert (batch.masked[here] - a).tolist() == whole.positions[c:d].tolist()
            assert batch.labels[here].tolist() == whole.labels[c:d].tolist()
            assert batch.random_next[i] == whole.random_next[number]
        assert batch.masked_count.item() == len(batch.masked)


def test_rounding_up_adds_what_belongs_to_nothing(folder, meta):
    plain, rounded = batches(folder, meta), batches(folder, meta, token_multiple=64, masked_multiple=16)
    for one, other in zip(plain, rounded, strict=True):
        t, m = len(one.ids), len(one.masked)
        assert len(other.ids) == -(-t // 64) * 64
        assert len(other.masked) == len(other.labels) == -(-m // 16) * 16
        assert torch.equal(one.cu_seqlens, other.cu_seqlens)
        assert other.masked_count.item() == m
        for name, size, added in (("ids", t, 0), ("positions", t, 0), ("segments", t, 0), ("masked", m, 0),
                                  ("labels", m, data.IGNORED)):  # fmt: skip
            values = getattr(other, name)
            assert torch.equal(values[:size], getattr(one, name))
            assert (values[size:] == added).all()


def test_each_epoch_has_each_sequence_once_in_another_order(folder, meta):
    n = sum(SIZES)
    order = [number for batch in batches(folder, meta, batch_size=5, steps=3 * n // 5) for number in numbers(batch)]
    epochs = [order[i * n : (i + 1) * n] for i in range(3)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = [number for batch in batches(folder, meta, batch_size=5, seed=2) for number in numbers(batch)]
    assert other[:n] != epochs[0]
    # The order doesn't depend on the batch size.
    assert [number for batch in batches(folder, meta, batch_size=25, steps=5) for number in numbers(batch)] == epochs[0]


@pytest.mark.parametrize("start", [0, 1, 6, 15, 16, 17, 39, 40])
def test_it_goes_on_at_any_step(folder, meta, start):
    whole = batches(folder, meta)
    rest = batches(folder, meta, start_step=start)
    assert len(rest) == 40 - start
    assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_share_a_batch_evenly(folder, meta, world):
    one = batches(folder, meta, batch_size=32)
    ranks = [batches(folder, meta, batch_size=32, rank=rank, world=world) for rank in range(world)]
    for step, whole in enumerate(one):
        parts = [rank[step] for rank in ranks]
        assert Counter(number for part in parts for number in numbers(part)) == Counter(numbers(whole))
        assert {len(part.random_next) for part in parts} == {32 // world}
        tokens = [len(part.ids) for part in parts]
        assert sum(tokens) == len(whole.ids)
    with pytest.raises(UserError, match="batch size 32 must be a positive multiple of the 3 processes"):
        batches(folder, meta, batch_size=32, world=3)


def test_snake_order_balances_what_chance_does_not():
    rng = np.random.default_rng(0)
    worst = {"snake": 0.0, "chance": 0.0}
    for _ in range(50):
        lengths = np.where(rng.random(448) < 0.3, 512, rng.integers(5, 513, 448))
        for name, parts in (("snake", [data.deal(lengths, r, 8) for r in range(8)]),
                            ("chance", [np.arange(r, 448, 8) for r in range(8)])):  # fmt: skip
            tokens = [lengths[part].sum() for part in parts]
            worst[name] = max(worst[name], max(tokens) / np.mean(tokens) - 1)
    assert worst["snake"] < 0.005 < 0.05 < worst["chance"]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_evaluation_has_each_sequence_once_over_all_ranks(folder, meta, world):
    found, sizes, tokens = Counter(), [], []
    for rank in range(world):
        with data.eval_batches(folder, meta, batch_size=7, rank=rank, world=world) as source:
            own = list(source)
        assert all(len(batch.random_next) <= 7 for batch in own)
        found.update(number for batch in own for number in numbers(batch))
        sizes.append(sum(len(batch.random_next) for batch in own))
        tokens.append(sum(len(batch.ids) for batch in own))
    assert found == Counter(range(sum(SIZES), sum(SIZES) + 37))
    assert max(sizes) - min(sizes) <= 1
    assert max(tokens) - min(tokens) <= 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": 300}, r"part_0000\d_of_00003.hdf5: row \d+: id \d+, but the vocabulary has the ids 0 to 299"),
        ({"longest": 40}, r"part_0000\d_of_00003.hdf5: row \d+: \d+ tokens, but 40 are the most"),
        ({"train": {"train/part_00000_of_00003.hdf5": 49}}, "50 sequences, but meta.json says 49"),
    ],
)
def test_faults_come_where_the_batch_would(folder, meta, change, message):
    with pytest.raises(UserError, match=message):
        batches(folder, replace(meta, **change))


def test_leaving_early_disturbs_nothing(folder, meta):
    """A loader that is left early ends its threads; a second one is independent of it."""
    with data.train_batches(folder, meta, batch_size=4, seed=3, steps=1000) as source:
        first = next(iter(source))
    with data.train_batches(folder, meta, batch_size=4, seed=3, steps=1000) as source:
        assert same(first, next(iter(source)))
        assert len(source) == 1000
