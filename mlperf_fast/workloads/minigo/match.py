"""Games between two players, all at once: what an evaluation is.

    first = Reader(cfg, judge, readouts=100, games=256, seed=1)
    results = play_match(cfg, first, second)      # the first half of the games with `first` as Black

Our side never resigns, there is no noise, the most visited move is played, and trees are kept from move to move.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from mlperf_fast.errors import UserError
from mlperf_fast.workloads.minigo.board import BLACK, LEGAL, VERDICTS, WHITE, new_games
from mlperf_fast.workloads.minigo.judge import Judge, read
from mlperf_fast.workloads.minigo.presets import MinigoConfig
from mlperf_fast.workloads.minigo.search import Search
from mlperf_fast.workloads.minigo.selfplay import first_settled_move, search_options
from mlperf_fast.workloads.minigo.sgf import Record, write

RESIGN = -2  # in place of a move


class Side(Protocol):
    """A player of as many games as the match has."""

    name: str

    def choose(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """A move or RESIGN for each game of `which`, bool [n], int32 [n]; and what it thinks of the game, float32 [n],
        Black's value, NaN where it doesn't tell."""
        ...

    def play(self, moves: Tensor) -> None:
        """What was played, whoever chose it; -1: nothing."""
        ...

    def close(self) -> None:
        """Ends what the player began."""
        ...


class Reader:
    """Reads as many visits a move as `readouts` says, the tree's own ones on top."""

    def __init__(self, cfg: MinigoConfig, judge: Judge, readouts: int, games: int, seed: int, name: str = "") -> None:
        options = replace(search_options(cfg, cfg.play), soft_moves=0)
        self.search = Search(new_games(games, cfg.size), options, seed=seed)
        self.judge, self.readouts, self.name = judge, readouts, name

    def choose(self, which: Tensor) -> tuple[Tensor, Tensor]:
        self.search.start(which * self.readouts, torch.zeros_like(which))
        read(self.search, self.judge)
        choice = self.search.choose(which)
        return choice.moves, choice.q

    def play(self, moves: Tensor) -> None:
        self.search.play(moves)

    def close(self) -> None:
        """Nothing."""


@dataclass
class Result:
    """One game of a match."""

    black: str
    white: str
    score: float  # Black's, komi taken off; of a game that was given up 1 or -1, the winner's
    moves: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)  # before each move, of who chose it, Black's; NaN: unknown
    resigned: bool = False

    @property
    def winner(self) -> int:
        return BLACK if self.score > 0 else WHITE if self.score < 0 else 0


def play_match(cfg: MinigoConfig, first: Side, second: Side, games: int) -> list[Result]:
    """`games` games from the empty board. `first` has Black in games 0 .. ceil(games / 2) - 1, White in the others."""
    board = new_games(games, cfg.size)
    pass_move, with_black = cfg.size**2, torch.arange(games) < (games + 1) // 2
    names = [(first.name, second.name) if black else (second.name, first.name) for black in with_black.tolist()]
    results = [Result(black, white, 0.0) for black, white in names]
    alive = torch.ones(games, dtype=torch.bool)
    while alive.any():
        facts = board.facts()
        settled = alive & (facts.moves >= first_settled_move(cfg.size)) & board.all_pass_alive()
        turn = (facts.to_move == BLACK) == with_black  # the first player's
        moves, values = torch.full((games,), -1, dtype=torch.int32), torch.full((games,), math.nan)
        for side, own in ((first, turn), (second, ~turn)):
            which = alive & own & ~settled
            if which.any():
                chosen, thought = side.choose(which)
                moves, values = torch.where(which, chosen, moves), torch.where(which, thought, values)
        for row in (alive & (moves == RESIGN)).nonzero()[:, 0].tolist():
            results[row].score, results[row].resigned = -float(facts.to_move[row]), True
            alive[row] = False
        moves = torch.where(settled, pass_move, torch.where(alive, moves, -1))
        verdicts = board.play(moves)
        for row in (alive & (verdicts != LEGAL)).nonzero()[:, 0].tolist():
            name = (first if turn[row] else second).name
            raise UserError(f"{name} chose move {int(moves[row])}, but {VERDICTS[verdicts[row]]}")
        first.play(moves)
        second.play(moves)
        for row in alive.nonzero()[:, 0].tolist():
            results[row].moves.append(int(moves[row]))
            results[row].values.append(float(values[row]))
        alive &= board.facts().passes < 2
    for result, score in zip(results, board.scores(cfg.komi).tolist(), strict=True):
        if not result.resigned:
            result.score = score
    return results


@dataclass(frozen=True)
class Tally:
    """How often the first player won, with each colour."""

    black_wins: int
    black_games: int
    white_wins: int
    white_games: int

    @property
    def win_rate(self) -> float:
        return (self.black_wins + self.white_wins) / (self.black_games + self.white_games)

    def text(self) -> str:
        low, high = interval(self.black_wins + self.white_wins, self.black_games + self.white_games)
        return (
            f"{self.win_rate:.1%} (95 %: {low:.0%} to {high:.0%}): {self.black_wins} of {self.black_games} as Black, "
            f"{self.white_wins} of {self.white_games} as White"
        )


def tally(results: Sequence[Result]) -> Tally:
    """Of a match's results, as play_match() returns them."""
    half = (len(results) + 1) // 2
    wins = [result.winner == (BLACK if i < half else WHITE) for i, result in enumerate(results)]
    return Tally(sum(wins[:half]), half, sum(wins[half:]), len(results) - half)


def interval(wins: int, games: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's confidence interval of a share (1927); z: standard deviations, 1.96 for 95 %."""
    share, square = wins / games, z * z / games
    middle, spread = share + square / 2, z * math.sqrt(share * (1 - share) / games + square / (4 * games))
    return (middle - spread) / (1 + square), (middle + spread) / (1 + square)


def sgf(cfg: MinigoConfig, result: Result) -> str:
    """The game as a file, with what the players thought as comments."""
    colours = [BLACK if i % 2 == 0 else WHITE for i in range(len(result.moves))]
    thought = {i + 1: f"Black wins {(1 + value) / 2:.0%}" for i, value in enumerate(result.values) if value == value}
    letter = "B" if result.score > 0 else "W"
    return write(
        Record(
            size=cfg.size, komi=cfg.komi, moves=list(zip(colours, result.moves, strict=True)),
            result=f"{letter}+{'R' if result.resigned else f'{abs(result.score):g}'}" if result.score else "0",
            info={"PB": result.black, "PW": result.white, "RU": "Chinese"}, comments=thought,
        )
    )  # fmt: skip
