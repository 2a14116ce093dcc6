"""A player of one game, with a tree that is kept from move to move: what gtp.py speaks for.

player = Player(9, 7.5, by_playouts, readouts=400)
move = player.think(BLACK)              # reads; None: gives up. Nothing is played yet
player.play(BLACK, move)                # LEGAL, or why not (board.VERDICTS)
player.win_rate(), player.candidates()  # of what was read last; win rates are Black's, 0 to 1
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mlperf_fast.workloads.minigo.board import BLACK, LEGAL, OVER, WHITE, Games, new_games
from mlperf_fast.workloads.minigo.judge import Judge
from mlperf_fast.workloads.minigo.search import Options, Search

# Stones that a game may see for each point of the board. Games that people play, take back and go on with are long.
STONES = 16


@dataclass(frozen=True)
class Candidate:
    """A move that was read at least once."""

    move: int
    visits: int
    win_rate: float  # Black's
    prior: float  # the network's share for it
    line: list[int]  # what is expected to follow, the move itself first


class Player:
    def __init__(
        self,
        size: int,
        komi: float,
        judge: Judge,
        readouts: int,
        *,
        resign: float = 0.0,
        own_eyes: bool = True,
        seed: int = 0,
    ) -> None:
        """An empty board. resign: below this win rate it gives up. own_eyes: as in search.Options.

        Raises UserError for a size other than 5 to 19, and for a komi that is more than the board has points.
        """
        self.size, self.komi, self.judge, self.readouts, self.resign = size, komi, judge, readouts, resign
        self.own_eyes, self.seed = own_eyes, seed
        self.begin()

    def begin(self, black: Sequence[int] = (), white: Sequence[int] = (), to_move: int = BLACK) -> None:
        """A new game from these stones. UserError where a chain of them has no liberties; then the old game stays."""
        stones = STONES * self.size**2
        games = new_games(1, self.size, max_stones=stones, black=black, white=white, to_move=to_move)
        self._from(games)
        self.set_up = list(black), list(white), to_move
        self.moves: list[tuple[int, int]] = []  # (colour, move)

    def _from(self, games: Games) -> None:
        self.search = self.reading = self._search(games, self.komi)
        self.games = games

    def _search(self, games: Games, komi: float) -> Search:
        options = Options(komi=komi, noise_mix=0, soft_moves=0, own_eyes=self.own_eyes)
        return Search(games, options, seed=self.seed)

    @property
    def to_move(self) -> int:
        return int(self.games.facts().to_move[0])

    @property
    def passes(self) -> int:
        """In a row; 2: the game is over."""
        return int(self.games.facts().passes[0])

    def set_komi(self, komi: float) -> None:
        """Forgets what was read: it was worth something else. UserError for more than the board has points."""
        self.search = self.reading = self._search(self.games, komi)
        self.komi = komi

    def play(self, colour: int, move: int) -> int:
        """Plays, whosever turn it is, and on after two passes. Returns Games.play()'s verdict; where it isn't LEGAL
        nothing has changed."""
        if self.passes >= 2:
            verdict = LEGAL if move == self.size**2 else self._resume(colour, move)
        elif colour == self.to_move:
            verdict = int(self.search.play([move])[0])
        else:
            verdict = int(self.games.play([move], [colour])[0])
            self.search.reset()
        if verdict == LEGAL:
            self.moves.append((colour, move))
        return verdict

    def _resume(self, colour: int, move: int) -> int:
        """After two passes the players found something left to play for."""
        games = turned(self.games, colour)
        verdict = int(games.play([move])[0])
        if verdict == LEGAL:
            self._from(games)
        return verdict

    def undo(self) -> bool:
        """Takes the last move back; False where there is none."""
        if not self.moves:
            return False
        moves = self.moves[:-1]
        self.begin(*self.set_up)
        for colour, move in moves:
            self.play(colour, move)
        return True

    # Reading --------------------------------------------------------------------------------------------------------

    def think(self, colour: int, seconds: float | None = None) -> int | None:
        """What it would play; None: it gives up. With `seconds` it stops after so many, one batch it always reads.

        It passes without reading where all is pass-alive, and where the other side has passed and the count says that
        this one has won.
        """
        won = self.passes > 0 and colour * float(self.games.scores(self.komi)[0]) > 0
        if won or self.games.all_pass_alive()[0]:
            return self.size**2
        self.look(colour)
        self.read(self.readouts, seconds)
        rate = self.win_rate()
        if (rate if colour == BLACK else 1 - rate) < self.resign:
            return None
        chosen = int(self.reading.choose().moves[0])
        # Where the board was turned, the search didn't know which boards were there before.
        for move in [chosen, *(candidate.move for candidate in self.candidates())]:
            if self.reading is self.search or self.games.copy().play([move], [colour])[0] in (LEGAL, OVER):
                return move
        return self.size**2

    def look(self, colour: int) -> None:
        """What read() reads from here on: the present position, this side to move."""
        is_as_played = self.passes < 2 and colour == self.to_move
        self.reading = self.search if is_as_played else self._search(turned(self.games, colour), self.komi)

    def read(self, readouts: int, seconds: float | None = None) -> None:
        """So many visits more, or as many as there is time for, at least one batch."""
        end = math.inf if seconds is None else time.monotonic() + seconds
        self.reading.start([readouts], [False])
        while len(leaves := self.reading.leaves()):
            self.reading.take(*self.judge(self.reading, leaves))
            if time.monotonic() > end:
                break

    def win_rate(self) -> float:
        """Black's, by what was read last; 0.5 where nothing was."""
        roots = self.reading.roots()
        return float(1 + roots.own_W[0] / (1 + roots.own_visits[0])) / 2

    def candidates(self, line: int = 12) -> list[Candidate]:
        """The moves that were read, those with the most visits first, each with at most so many that follow."""
        visits, W, P, _, _ = (x[0] for x in self.reading.roots())
        rates = (1 + W / (1 + visits)) / 2
        best = visits.argsort(descending=True, stable=True)[: int((visits > 0).sum())].tolist()
        return [
            Candidate(move, int(visits[move]), float(rates[move]), float(P[move]), self.reading.line(0, move, line))
            for move in best
        ]


def turned(games: Games, to_move: int) -> Games:
    """The board of one game as a new one's, with this side to move: earlier boards may come back."""
    stones = games.stones().flatten()
    black, white = ((stones == colour).nonzero().flatten().tolist() for colour in (BLACK, WHITE))
    return new_games(1, games.size, max_stones=games.max_stones, black=black, white=white, to_move=to_move)
