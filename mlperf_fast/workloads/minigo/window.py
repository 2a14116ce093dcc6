"""What an iteration trains on: the newest generations, of each so many games, of these a share of the examples.

    window = Window(cfg, ranks)
    window.add(read_generation(choose(folder / "17", 8192, seed)))
    for batch in window.batches(seed, iteration=18): step(batch)

A generation is the games that one network finished. Of several processes each reads, keeps and trains on its own share
of the games.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlperf_fast.errors import UserError
from mlperf_fast.loop.dist import Ranks, gather_rows
from mlperf_fast.workloads.minigo import records
from mlperf_fast.workloads.minigo.board import PLANES, SYMMETRIES, transform_planes, transform_policies
from mlperf_fast.workloads.minigo.presets import MinigoConfig

Chosen = Sequence[tuple[str, int]]  # a file of games and a game's place in it


class Batch(NamedTuple):
    planes: Tensor  # uint8 [b, 13, N, N]
    pi: Tensor  # float32 [b, N N + 1]
    z: Tensor  # float32 [b]


class Examples(NamedTuple):
    planes: Tensor  # uint8 [k, bytes], 13 N N bits each
    pi: Tensor
    z: Tensor


def choose(folder: Path, games: int, seed: int) -> Chosen:
    """`games` of the games in `folder`, drawn once: what was drawn is written down there and holds from then on."""
    path = folder / "chosen.json"
    if path.exists():
        return [(name, index) for name, index in json.loads(path.read_text())]
    found = [(file.name, i) for file in records.files(folder) for i in range(records.games_in(file))]
    if len(found) < games:
        raise UserError(f"{folder} holds {len(found)} games, expected {games} or more")
    order = np.random.default_rng([seed, len(found)]).permutation(len(found))[:games]
    chosen = [found[i] for i in sorted(order)]
    partial = path.with_name("chosen.partial")
    partial.write_text(json.dumps(chosen))
    os.replace(partial, path)
    return chosen


def read_generation(folder: Path, chosen: Chosen, size: int) -> tuple[Examples, list[records.Record]]:
    """The chosen games' examples, and the games. UserError for games on another board."""
    games: list[records.Record] = []
    held: tuple[str, list[records.Record]] = ("", [])
    for name, index in chosen:
        if held[0] != name:
            held = name, records.read(folder / name)
        if index >= len(held[1]) or held[1][index].size != size:
            raise UserError(f"{folder / name}: there is no game {index} on {size} lines; was the file replaced?")
        games.append(held[1][index])
    if not games:
        return Examples(
            torch.empty(0, records.packed_bytes(size), dtype=torch.uint8), torch.empty(0, size**2 + 1), torch.empty(0)
        ), []
    z = np.concatenate([np.full(len(game.planes), game.z, np.float32) for game in games])
    planes, pi = (np.concatenate([getattr(game, part) for game in games]) for part in ("planes", "pi"))
    return Examples(*map(torch.from_numpy, (planes, pi, z))), games


class Window:
    """The newest `cfg.window` generations, this process' share of each."""

    def __init__(self, cfg: MinigoConfig, ranks: Ranks) -> None:
        self.cfg, self.ranks = cfg, ranks
        self.generations: list[Examples] = []

    def add(self, examples: Examples) -> None:
        self.generations = [*self.generations, examples][-self.cfg.window :]

    def batches(self, seed: int, iteration: int) -> Iterator[Batch]:
        """One pass over a share of the examples, in an order and in symmetries of this iteration's own. What doesn't
        fill a batch is left out; all processes have as many batches."""
        cfg, size = self.cfg, self.cfg.size
        generator = torch.Generator().manual_seed(seed)
        for part in (iteration, self.ranks.rank):  # neighbours' streams have nothing in common
            generator.manual_seed(int(torch.randint(1 << 62, (), generator=generator)) + part)
        counts = [len(examples.z) for examples in self.generations]
        kept = (torch.rand(sum(counts), generator=generator) < cfg.filter_amount).nonzero()[:, 0]
        kept = kept[torch.randperm(len(kept), generator=generator)]
        rows = cfg.batch_size // self.ranks.world
        steps = int(
            torch.cat(gather_rows(self.ranks, torch.tensor([len(kept) // rows], device=self.ranks.device))).min()
        )
        starts = torch.tensor([0, *counts]).cumsum(0)
        for step in range(steps):
            places = kept[step * rows : (step + 1) * rows]
            owners = torch.bucketize(places, starts, right=True) - 1
            found = Examples(*(torch.empty(rows, *x.shape[1:], dtype=x.dtype) for x in self.generations[0]))
            for owner in owners.unique().tolist():
                of_owner = (owners == owner).nonzero()[:, 0]
                for to, source in zip(found, self.generations[owner], strict=True):
                    to[of_owner] = source[places[of_owner] - starts[owner]]
            turns = torch.randint(SYMMETRIES, (rows,), generator=generator, dtype=torch.int32)
            yield Batch(
                transform_planes(unpack(found.planes, size), turns).to(self.ranks.device),
                transform_policies(found.pi, size, turns).to(self.ranks.device),
                found.z.to(self.ranks.device),
            )


def unpack(planes: Tensor, size: int) -> Tensor:
    """uint8 [k, bytes] of bits -> uint8 [k, 13, N, N] of 0 and 1."""
    bits = np.unpackbits(planes.numpy(), axis=1, count=PLANES * size**2)
    return torch.from_numpy(bits).view(len(planes), PLANES, size, size)
