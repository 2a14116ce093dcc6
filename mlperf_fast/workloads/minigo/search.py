"""Tree search for many games at once: the face of the native search (csrc/go/search.h).

    search = Search(new_games(1024, 19), Options(), seed=1)
    full = search.draw_full(fast_share=0.75)
    search.start(torch.where(full, 800, 80), full)      # readouts of each game's next move
    while len(batch := search.leaves()):
        search.take(*network(batch.planes))             # policies [L, 362], values [L]
    found = search.choose(prune=full)
    search.play(found.moves)

Each call works on all games, on as many threads as torch has, whose number changes no result. Values are from Black's
side, -1 to 1, all the way. The search is that of mlcommons/training (minigo, cc/mcts_tree.cc and
cc/concurrent_selfplay.cc). With its cache of answers, which several searches may share:

    search = Search(games, Options(), seed=1, cache=Cache(1024, 19))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mlperf_fast import _C
from mlperf_fast.errors import UserError
from mlperf_fast.ops.checks import check, native
from mlperf_fast.workloads.minigo.board import PLANES, Games

_FULL, _RESIGN = 0, 1  # purposes of draws(): each makes random numbers of its own


@dataclass(frozen=True)
class Options:
    """The benchmark's values on 19 lines; soft_moves and noise_alpha None: by its formulas for the board's size."""

    leaves: int = 4  # of a game in one batch
    value_init_penalty: float = 0.2  # a move not yet read looks so much worse than its node
    komi: float = 7.5
    noise_alpha: float | None = None  # Dirichlet's; default 0.03 * 361 / points
    noise_mix: float = 0.3
    soft_moves: int | None = None  # drawn by visits at a game's start; default 2 * (points // 12 // 2); 0: none
    soft_power: float = 0.98
    restrict_passes: int = (
        4  # in a row by one side: from then on no move in pass-alive area is picked. 0: from the start
    )
    own_eyes: bool = True  # False: no own eye is filled, and a pass is read only where nothing else is left


class Leaves(NamedTuple):
    planes: Tensor  # uint8 [L, 13, size, size], a view that the next leaves() overwrites
    symmetries: Tensor  # int32 [L], of the planes: take() undoes them
    games: Tensor  # int32 [L]

    def __len__(self) -> int:
        return self.planes.shape[0]


class Choice(NamedTuple):
    moves: Tensor  # int32 [n], -1 where none was asked for
    pi: Tensor  # float32 [n, size * size + 1], visits as shares: what the network learns
    q: Tensor  # float32 [n], the root's


class Roots(NamedTuple):
    """W and P are float32, visits int32; 0 where a move isn't legal or the root isn't expanded."""

    visits: Tensor  # [n, size * size + 1]
    W: Tensor
    P: Tensor
    own_visits: Tensor  # [n]
    own_W: Tensor


class CacheCounts(NamedTuple):
    hits: int  # positions that were expanded without the network
    misses: int  # that it was asked for
    entries: int  # positions that are held, each with its eight symmetries
    bytes: int  # that they may take


class Cache:
    """What the network has answered, for the searches that are given it, from any thread.

    A position has one entry in all of its eight symmetries, with the mean of the answers; one that was not asked for in
    the symmetry that a search would use is asked for again. The key is the stones, the side to move, which empty points
    are illegal, and whether the last move was a pass: not the earlier boards, which the network sees, so that a hit is
    approximate. So it is when the network has changed: only clear() forgets, as in the benchmark.

    While one search at a time works with it, results don't depend on the number of threads. Of several that work at the
    same time, what one finds depends on how far the others are.
    """

    def __init__(self, megabytes: int, size: int):
        """Takes so many times 2^20 bytes, the least recently used positions make room; for boards of `size` lines.

        Raises UserError for megabytes other than 1 to 2^20 and sizes other than 5 to 19.
        """
        self._native = native(_C.GoCache, megabytes, size)

    def clear(self) -> None:
        """Forgets all, the counts too."""
        self._native.clear()

    def counts(self) -> CacheCounts:
        return CacheCounts(*self._native.counts())


class Search:
    """Trees below the present positions of `games`, which only play() may change from now on; see reset()."""

    def __init__(self, games: Games, options: Options | None = None, *, seed: int = 0, cache: Cache | None = None):
        """Raises UserError for no games at all, options outside their ranges, and a cache for another board."""
        options = Options() if options is None else options
        points, rows = games.size**2, games.rows
        alpha = 0.03 * 361 / points if options.noise_alpha is None else options.noise_alpha
        soft = 2 * (points // 12 // 2) if options.soft_moves is None else options.soft_moves
        if not rows.is_contiguous():
            raise UserError("search: the games' rows must be contiguous; games.copy() makes them so")
        values = (options.leaves, options.value_init_penalty, options.komi, alpha, options.noise_mix, soft)
        store = None if cache is None else cache._native
        rules = (options.soft_power, options.restrict_passes, options.own_eyes, seed)
        self._native = native(_C.GoSearch, rows.data_ptr(), *rows.shape, *values, *rules, store)
        self.games, self.options = games, options  # the native side works in the rows: they live as long as it does
        most = len(games) * options.leaves
        self._planes = torch.empty(most, PLANES, games.size, games.size, dtype=torch.uint8)
        self._symmetries, self._owners = (torch.empty(most, dtype=torch.int32) for _ in range(2))

    def __len__(self) -> int:
        return len(self.games)

    def reset(
        self, which: "Tensor | Sequence[bool] | None" = None, ids: "Tensor | Sequence[int] | None" = None
    ) -> None:
        """Forgets the trees of games that were put into the rows anew.

        which  bool [n]; None: all
        ids    int64 [n]: with the seed, what a game's random numbers come from. At first a game's is its row
        """
        chosen = None if which is None else self._one_each("which", which, torch.bool)
        numbers = None if ids is None else self._one_each("ids", ids, torch.int64)
        native(self._native.reset, *(0 if x is None else x.data_ptr() for x in (chosen, numbers)))

    def start(self, readouts: "Tensor | Sequence[int]", full: "Tensor | Sequence[bool]") -> None:
        """The next leaves() go on until each root has so many more visits than now.

        readouts  int32 [n]; 0 leaves a game alone
        full      bool [n]: after that sum was made the tree is thrown away, and the root gets noise
        """
        more, whole = self._one_each("readouts", readouts, torch.int32), self._one_each("full", full, torch.bool)
        native(self._native.start, more.data_ptr(), whole.data_ptr())

    def leaves(self) -> Leaves:
        """The positions that the network is to judge, of all games together; none: all visits were made."""
        buffers = self._planes, self._symmetries, self._owners
        count = native(self._native.select, *(x.data_ptr() for x in buffers))
        return Leaves(*(x[:count] for x in buffers))

    def take(self, policies: Tensor, values: Tensor) -> None:
        """The network's answers to leaves(), in its order and its symmetries.

        policies  float32 [L, size * size + 1], probabilities; what isn't legal is left out and the rest scaled to 1
        values    float32 [L], -1 to 1, Black's
        Raises UserError for other shapes, and for numbers that are none or out of range; then nothing was taken.
        """
        shape = (len(policies), self.games.size**2 + 1)
        check("take", "policies", policies, shape, (torch.float32,), self.games.rows)
        check("take", "values", values, shape[:1], (torch.float32,), self.games.rows)
        policies, values = policies.contiguous(), values.contiguous()
        native(self._native.back_up, policies.data_ptr(), values.data_ptr(), len(policies))

    def done(self) -> Tensor:
        """bool [n]: the games whose visits were made, without leaves that wait: they can be chosen for and played.

        Never those without a target from start(): there was none since the last play(), it was 0, the game was over.
        With it each game moves on by itself, while the visits of others still go on:

            search.take(*network(search.leaves().planes))
            moves = search.choose(search.done()).moves      # -1 for those that read on
            search.play(moves)
            search.start(torch.where(moves >= 0, 800, 0), full)
        """
        done = torch.empty(len(self), dtype=torch.bool)
        self._native.done(done.data_ptr())
        return done

    def play_out(self) -> Tensor:
        """float32 [L]: who wins a random game from each position of leaves(), 1 Black, -1 White, 0 nobody.

        With a uniform policy, the answers of an opponent that has no network. No own eye is filled, and the area counts
        after 3 * size * size moves at the latest. Superko knows the boards of the game so far and of the random game,
        not those in the tree between them. A value is a function of the search's seed, the game's id and the position.
        Raises UserError where the search has a cache.
        """
        values = torch.empty(len(self._owners))
        return values[: native(self._native.play_out, values.data_ptr())]

    def choose(
        self, which: "Tensor | Sequence[bool] | None" = None, *, prune: "Tensor | Sequence[bool] | None" = None
    ) -> Choice:
        """The moves to play. Raises UserError where a game has read nothing, or waits for values.

        which  bool [n]; None: all games
        prune  bool [n]: visits that turned out to be of no use are taken from pi (target pruning), and stay out of the
               tree. None: nowhere
        """
        chosen = torch.ones(len(self), dtype=torch.bool) if which is None else which
        modes = self._one_each("which", chosen, torch.bool).to(torch.uint8)
        if prune is not None:
            modes = modes * (1 + self._one_each("prune", prune, torch.bool).to(torch.uint8))
        found = Choice(
            torch.empty(len(self), dtype=torch.int32),
            torch.empty(len(self), self.games.size**2 + 1),
            torch.empty(len(self)),
        )
        native(self._native.choose, modes.data_ptr(), *(x.data_ptr() for x in found))
        return found

    def play(self, moves: "Tensor | Sequence[int]") -> Tensor:
        """Plays in the games, -1: none, and keeps what was read below each move. Returns Games.play()'s verdicts."""
        played = self._one_each("moves", moves, torch.int32)
        verdicts = torch.empty(len(self), dtype=torch.int32)
        native(self._native.play, played.data_ptr(), verdicts.data_ptr())
        return verdicts

    def roots(self) -> Roots:
        n, moves = len(self), self.games.size**2 + 1
        visits, own_visits = torch.empty(n, moves, dtype=torch.int32), torch.empty(n, dtype=torch.int32)
        found = Roots(visits, torch.empty(n, moves), torch.empty(n, moves), own_visits, torch.empty(n))
        self._native.roots(*(x.data_ptr() for x in found))
        return found

    def line(self, game: int, first: int | None = None, most: int = 20) -> list[int]:
        """The moves that one game is expected to take, at most so many: those with the most visits, from the root on.
        `first`: begins with this one. Empty where nothing was read."""
        moves = torch.empty(most, dtype=torch.int32)
        count = native(self._native.line, game, -1 if first is None else first, moves.data_ptr(), most)
        return moves[:count].tolist()

    def draw_full(self, fast_share: float) -> Tensor:
        """bool [n]: whether each game's next move is read in full; the first always, others with 1 - fast_share."""
        return (self.draws(_FULL, by_move=True) >= fast_share) | (self.games.facts().moves == 0)

    def draw_thresholds(self, least: float, most: float) -> Tensor:
        """float32 [n], one for each game from beginning to end, for resigns()."""
        return (least + (most - least) * self.draws(_RESIGN, by_move=False)).float()

    def resigns(self, q: Tensor, thresholds: Tensor) -> Tensor:
        """bool [n]: whether the side to move, to whom its position is worth less than minus the threshold, gives up."""
        return q * self.games.facts().to_move < -thresholds

    def draws(self, purpose: int, *, by_move: bool) -> Tensor:
        """float64 [n] in [0, 1), by the seed, the game's id, the purpose and, if so, the number of the move."""
        drawn = torch.empty(len(self), dtype=torch.float64)
        native(self._native.draws, purpose, by_move, drawn.data_ptr())
        return drawn

    def bytes(self) -> int:
        """That the trees hold."""
        return self._native.bytes()

    def _one_each(self, name: str, values: "Tensor | Sequence", dtype: torch.dtype) -> Tensor:
        found = torch.as_tensor(values)
        if found.shape != (len(self),):
            raise UserError(f"{name} has shape {list(found.shape)}, expected [{len(self)}], one for each game")
        if found.is_floating_point() or (found.dtype is torch.bool) != (dtype is torch.bool):
            wanted = "true or false" if dtype is torch.bool else "whole numbers"
            raise UserError(f"{name} is {str(found.dtype).removeprefix('torch.')}, expected {wanted}")
        return found.to(dtype).contiguous()
