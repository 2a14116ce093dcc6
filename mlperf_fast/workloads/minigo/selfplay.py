"""Games of a network against itself, each at its own pace.

    play = SelfPlay(cfg, cfg.play, inference, seed=1)
    records = play.round(model=18)         # asks the network once for each half of the games; games that ended

Where the network runs on a GPU the games are two halves: while it judges the leaves of one, the CPU's cores read on in
the other. Source: mlcommons/training, minigo, cc/concurrent_selfplay.cc.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mlperf_fast.errors import UserError
from mlperf_fast.workloads.minigo.board import LEGAL, VERDICTS, Games, new_games
from mlperf_fast.workloads.minigo.inference import Answer, Inference
from mlperf_fast.workloads.minigo.presets import MinigoConfig, Play
from mlperf_fast.workloads.minigo.records import Record, packed_bytes
from mlperf_fast.workloads.minigo.search import Cache, Options, Search


def bootstrap_rules(play: Play) -> Play:
    """How the first generation plays, whose network knows nothing: a side that may pass soon does nothing else."""
    return replace(play, readouts=80, fast_share=0.0, own_eyes=False, prune=False, resign=(0.99, 1.0), cache_mb=0)


def search_options(cfg: MinigoConfig, play: Play) -> Options:
    return Options(
        leaves=play.leaves, value_init_penalty=play.value_init_penalty, komi=cfg.komi, noise_alpha=play.noise_alpha,
        noise_mix=play.noise_mix, soft_moves=play.soft_moves, own_eyes=play.own_eyes,
    )  # fmt: skip


def first_settled_move(size: int) -> int:
    """From this move on a board that is all pass-alive is passed to the end without reading."""
    return size * ((size + 2) // 3)


class SelfPlay:
    """`play.games` games in flight. Their ids, and so their random numbers, count up from `first_id`."""

    def __init__(self, cfg: MinigoConfig, play: Play, inference: Inference, *, seed: int, first_id: int = 0) -> None:
        halves = 2 if inference.device.type != "cpu" and play.games > 1 else 1
        sizes = [play.games // 2, play.games - play.games // 2] if halves == 2 else [play.games]
        self.inference = inference
        self.next_id = first_id
        cache = Cache(play.cache_mb, cfg.size) if play.cache_mb else None
        self.halves = [Half(cfg, play, n, seed, cache) for n in sizes]
        for half in self.halves:
            every = torch.ones(len(half.search), dtype=torch.bool)
            half.begin(every, self._ids)
            half.start(every)
        self._waiting: tuple[Half, Callable[[], Answer]] | None = None

    def _ids(self, n: int) -> Tensor:
        self.next_id += n
        return torch.arange(self.next_id - n, self.next_id)

    def round(self, model: int) -> list[Record]:
        """`model`: the number of the network that plays now; the games that ended are its own."""
        records = []
        for half in self.halves:
            leaves = half.search.leaves()
            waiting = (half, self.inference.submit(leaves.planes)) if len(leaves) else None
            if len(self.halves) == 1:
                records += self._finish(waiting or (half, None), model)
            else:  # the other half's answers were computed meanwhile
                if self._waiting:
                    records += self._finish(self._waiting, model)
                self._waiting = waiting
                if not waiting:
                    records += self._finish((half, None), model)
        return records

    def _finish(self, waiting: "tuple[Half, Callable[[], Answer] | None]", model: int) -> list[Record]:
        half, answer = waiting
        if answer:
            half.search.take(*answer())
        return half.advance(model, self._ids)


class Half:
    """Games with their trees and what was recorded of them so far."""

    def __init__(self, cfg: MinigoConfig, play: Play, n: int, seed: int, cache: Cache | None = None) -> None:
        self.play, self.komi, self.size = play, cfg.komi, cfg.size
        self.empty = new_games(1, cfg.size)
        self.games: Games = new_games(n, cfg.size)
        self.search = Search(self.games, search_options(cfg, play), seed=seed, cache=cache)
        self.full = torch.zeros(n, dtype=torch.bool)  # whether the present move is read in full
        self.thresholds = torch.ones(n)
        self.moves: list[list[int]] = [[] for _ in range(n)]
        self.examples: list[list[tuple[np.ndarray, np.ndarray, float]]] = [[] for _ in range(n)]

    def begin(self, which: Tensor, ids: Callable[[int], Tensor]) -> None:
        """New games in the rows `which`, bool [n]; start() is to follow."""
        rows = which.nonzero()[:, 0]
        if not len(rows):
            return
        self.games.rows[rows] = self.empty.rows
        numbers = torch.zeros(len(which), dtype=torch.int64)
        numbers[rows] = ids(len(rows))
        self.search.reset(which, numbers)
        for row in rows.tolist():
            self.moves[row], self.examples[row] = [], []
        if self.play.resign:
            drawn = self.search.draw_thresholds(*self.play.resign)
            self.thresholds = torch.where(which, drawn, self.thresholds)

    def start(self, which: Tensor) -> None:
        """The next move's readouts in the rows `which`."""
        full = self.search.draw_full(self.play.fast_share)
        self.full = torch.where(which, full, self.full)
        readouts = torch.where(full, self.play.readouts, self.play.fast_readouts) * which
        self.search.start(readouts, full)

    def advance(self, model: int, ids: Callable[[int], Tensor]) -> list[Record]:
        """Plays a move in each game whose readouts are made; returns the games that ended, and begins new ones."""
        due = self.search.done()
        if not due.any():
            return []
        taught = due & self.full
        choice = self.search.choose(due, prune=taught if self.play.prune else None)
        self._keep(taught, choice.pi, choice.q)
        resigned = due & self.search.resigns(choice.q, self.thresholds) if self.play.resign else torch.zeros_like(due)
        losers = self.games.facts().to_move if self.play.resign else torch.zeros(len(due), dtype=torch.int32)
        self._play(torch.where(resigned, -1, choice.moves))
        facts = self.games.facts()
        over = due & ((facts.passes >= 2) | resigned)
        settled = due & ~over & (facts.moves >= first_settled_move(self.size))
        if settled.any():
            rows = settled.nonzero()[:, 0]
            settled[rows] = self.games[rows].all_pass_alive()
            while settled.any():
                self._play(torch.where(settled, self.size**2, -1))
                over |= settled & (self.games.facts().passes >= 2)
                settled &= ~over
        records = self._ended(over, resigned, losers, model)
        self.begin(over, ids)
        self.start(due)
        return records

    def _play(self, moves: Tensor) -> None:
        verdicts = self.search.play(moves)
        if (verdicts != LEGAL).any():
            row = int((verdicts != LEGAL).nonzero()[0])
            raise UserError(f"self-play chose move {int(moves[row])} in game {row}, but {VERDICTS[verdicts[row]]}")
        for row, move in enumerate(moves.tolist()):
            if move >= 0:
                self.moves[row].append(move)

    def _keep(self, which: Tensor, pi: Tensor, q: Tensor) -> None:
        rows = which.nonzero()[:, 0]
        if not len(rows):
            return
        # Of all games: copying those rows' games would take longer than their planes.
        planes = np.packbits(self.games.planes()[rows].flatten(1).numpy(), axis=1)
        for row, example in zip(
            rows.tolist(), zip(planes, pi[rows].numpy(), q[rows].tolist(), strict=True), strict=True
        ):
            self.examples[row].append(example)

    def _ended(self, over: Tensor, resigned: Tensor, losers: Tensor, model: int) -> list[Record]:
        rows = over.nonzero()[:, 0]
        if not len(rows):
            return []
        scores = torch.where(resigned[rows], -losers[rows].float(), self.games[rows].scores(self.komi))
        records = []
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            planes, pi, q = zip(*self.examples[row], strict=True) if self.examples[row] else ((), (), ())
            records.append(
                Record(
                    self.size, model, score, bool(resigned[row]), np.array(self.moves[row], np.int16),
                    stacked(planes, packed_bytes(self.size), np.uint8), stacked(pi, self.size**2 + 1, np.float32),
                    np.array(q, np.float32),
                )
            )  # fmt: skip
        return records


def stacked(rows: Sequence[np.ndarray], width: int, dtype: type) -> np.ndarray:
    """[k, width], of which there may be none."""
    return np.stack(rows) if rows else np.empty((0, width), dtype)
