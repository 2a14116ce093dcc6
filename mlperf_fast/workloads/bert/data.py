"""Batches on their way to a step: sequences without padding, in an order drawn from the run's seed.

A data set is a folder with meta.json (verify.py); its shards are HDF5 in one of NVIDIA's layouts (shards.py). All ranks
see the same order of sequences. Those of one global batch are dealt to the ranks by length, so that each has the same
number of them and nearly the same number of tokens.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mlperf_fast.data.order import permutation
from mlperf_fast.data.prefetch import Prefetcher
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.bert import shards
from mlperf_fast.workloads.bert.sequences import EMPTY, Sequences, find_fault, joined
from mlperf_fast.workloads.bert.verify import Meta

SHARD_ORDER, ROW_ORDER = 3, 4  # which random stream is drawn for what; `prepare` has 1 and 2
IGNORED = -1  # the label of a masked place that is padding


class Batch(NamedTuple):
    """One rank's part of a global batch: b sequences of T tokens in all, M of them masked, one behind the other.

    T and M may be rounded up (see train_batches): what is added at the end belongs to no sequence.
    """

    ids: torch.Tensor  # int32 [T]; 0, [PAD], in what is added
    positions: torch.Tensor  # int32 [T], place in its own sequence; 0 in what is added
    segments: torch.Tensor  # int32 [T], 0 or 1; 0 in what is added
    cu_seqlens: torch.Tensor  # int32 [b+1]: sequence i is tokens cu_seqlens[i] .. cu_seqlens[i+1]-1
    masked: torch.Tensor  # int32 [M], index into the T tokens, ascending; 0 in what is added
    labels: torch.Tensor  # int32 [M], the word that was there; IGNORED in what is added
    masked_count: torch.Tensor  # f32 [1], masked tokens without what is added
    random_next: torch.Tensor  # int32 [b], the next-sentence label: 1 where B is from elsewhere


def train_batches(
    folder: str | os.PathLike,
    meta: Meta,
    *,
    batch_size: int,
    seed: int,
    steps: int,
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
    token_multiple: int = 1,
    masked_multiple: int = 1,
    device: torch.device | str = "cpu",
) -> Prefetcher[Batch]:
    """This rank's batches of the steps `start_step` … `steps` - 1, of `batch_size` sequences over all ranks.

    Each epoch takes the shards in another order, and the rows of each; the batches go on over its end, so all are full.
    T and M are rounded up to multiples of `token_multiple` and `masked_multiple`, which keeps the number of CUDA graphs
    small. Use it in a `with` block. UserError, where its batch would have come, names the file and row of a fault.
    """
    if batch_size < 1 or batch_size % world:
        raise UserError(f"batch size {batch_size} must be a positive multiple of the {world} processes")
    source = stream(Path(folder), meta, seed, start_step * batch_size)
    batches = deal_batches(source, batch_size, rank, world, token_multiple, masked_multiple, torch.device(device))
    left = max(0, steps - start_step)
    return Prefetcher((batch for _, batch in zip(range(left), batches, strict=False)), length=left, device=device)


def deal_batches(
    source: Iterator[Sequences], batch_size: int, rank: int, world: int, token_multiple: int, masked_multiple: int,
    device: torch.device,
) -> Iterator[Batch]:  # fmt: skip
    pool, at = EMPTY, 0
    # The next shard is read while batches are made of this one.
    with Prefetcher(source, depth=1) as blocks:
        for block in blocks:
            pool, at = joined([pool.take(np.arange(at, len(pool))), block]), 0
            lengths = pool.lengths
            while len(pool) - at >= batch_size:
                own = at + deal(lengths[at : at + batch_size], rank, world)
                yield packed(pool.take(own), token_multiple, masked_multiple, device)
                at += batch_size


def deal(lengths: np.ndarray, rank: int, world: int) -> np.ndarray:
    """Which of a global batch's sequences are this rank's: int64 [n / world], or one less where world doesn't divide n.

    The longest go to ranks 0, 1 … world-1, the next to world-1 … 0, and so on ("snake order").
    """
    if world == 1:
        return np.arange(len(lengths))
    order = np.argsort(-lengths, kind="stable")
    turn = np.arange(len(lengths)) % (2 * world)
    return order[(turn == rank) | (turn == 2 * world - 1 - rank)]


def stream(folder: Path, meta: Meta, seed: int, start: int) -> Iterator[Sequences]:
    """The endless order of sequences from number `start` on, shard by shard."""
    counts = np.array(list(meta.train.values()))
    epoch, skip = divmod(start, int(counts.sum()))
    while True:
        for shard in permutation(len(counts), seed, SHARD_ORDER, epoch).tolist():
            if skip >= counts[shard]:
                skip -= int(counts[shard])
                continue
            rows = permutation(int(counts[shard]), seed, ROW_ORDER, epoch, shard)
            yield load(folder, meta, meta.train, shard).take(rows[skip:])
            skip = 0
        epoch += 1


def load(folder: Path, meta: Meta, names: Mapping[str, int], number: int) -> Sequences:
    """A shard's sequences; UserError where they aren't those of meta.json, or none that a step could take."""
    name = list(names)[number]
    s = shards.read_shard(folder / name)
    fault = find_fault(s, meta.words, meta.longest, meta.most_masked)
    if not fault and len(s) != names[name]:
        fault = f"{len(s):,} sequences, but meta.json says {names[name]:,}"
    if fault:
        raise UserError(
            f"{folder / name}: {fault}. Check the whole data set with `mlperf-fast prepare bert --verify --out "
            f"{folder}`, or make it anew"
        )
    return s


def eval_batches(
    folder: str | os.PathLike,
    meta: Meta,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
) -> Prefetcher[Batch]:
    """This rank's part of the evaluation set in batches of up to `batch_size`: over all ranks each sequence comes once.

    All ranks have the same number of sequences, or one less, and nearly the same number of tokens.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} must be positive")

    def batches() -> Iterator[Batch]:
        s = joined(load(Path(folder), meta, meta.eval, number) for number in range(len(meta.eval)))
        own = deal(s.lengths, rank, world)
        for start in range(0, len(own), batch_size):
            yield packed(s.take(own[start : start + batch_size]), 1, 1, torch.device(device))

    return Prefetcher(batches(), device=device)


def packed(s: Sequences, token_multiple: int, masked_multiple: int, device: torch.device) -> Batch:
    """Sequences as a step's tensors, in pinned memory for a GPU."""
    tokens, masks = len(s.tokens), len(s.positions)
    lengths = s.lengths

    def tensor(values: np.ndarray, multiple: int = 1, added: int = 0) -> torch.Tensor:
        size = -(-len(values) // multiple) * multiple
        out = torch.empty(size, dtype=torch.int32, pin_memory=device.type == "cuda")
        view = out.numpy()
        view[: len(values)], view[len(values) :] = values, added
        return out

    place = np.arange(tokens, dtype=np.int32) - np.repeat(s.starts[:-1].astype(np.int32), lengths)
    segments = place >= np.repeat(s.first, lengths)
    masked = np.repeat(s.starts[:-1], s.masked) + s.positions
    count = torch.full((1,), float(masks), pin_memory=device.type == "cuda")
    return Batch(
        ids=tensor(s.tokens, token_multiple),
        positions=tensor(place, token_multiple),
        segments=tensor(segments, token_multiple),
        cu_seqlens=tensor(s.starts),
        masked=tensor(masked, masked_multiple),
        labels=tensor(s.labels, masked_multiple, IGNORED),
        masked_count=count,
        random_next=tensor(s.random_next),
    )
