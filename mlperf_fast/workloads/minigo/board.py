"""Go games by the thousand: the face of the native engine (csrc/go), one call for all games of a buffer.

    games = new_games(64, 19)                       # 64 empty 19x19 boards
    verdicts = games.play(moves)                    # int32 [64]; games whose verdict isn't 0 stayed as they were
    x = games.planes()                              # uint8 [64, 13, 19, 19]: the network's input

Boards have 5 to 19 lines. A move is row * size + column, counted from the top left; size * size is the pass. Colours
are BLACK = +1 and WHITE = -1. Rules (mlcommons/training, minigo): area scoring, no suicide, simple ko and positional
superko (a board may not come back in the whole game, whoever is to move), two passes end the game.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mlperf_fast import _C
from mlperf_fast.errors import UserError
from mlperf_fast.ops.checks import check, check_contiguous, check_rank, native

BLACK, WHITE = 1, -1
LEAST_SIZE, MOST_SIZE = 5, 19
PLANES, SYMMETRIES = 13, 8
# What play() answers, by its number (csrc/go/position.h).
LEGAL, OCCUPIED, SUICIDE, KO, SUPERKO, OVER, FULL, OFF_BOARD = range(8)
VERDICTS = (
    "legal",
    "the point is occupied",
    "it would be suicide",
    "ko: it would take back at once",
    "superko: this board was there before",
    "two passes ended the game",
    "the game has no room for more stones (max_stones)",
    "it isn't on the board",
)


class Facts(NamedTuple):
    """Of each game, int32 [n]."""

    to_move: Tensor  # BLACK or WHITE
    moves: Tensor  # played so far, passes among them
    passes: Tensor  # in a row; 2: the game is over
    ko: Tensor  # the point that simple ko forbids, -1: none
    black_lost: Tensor  # stones captured so far
    white_lost: Tensor
    last: Tensor  # the last move, -1: none


@dataclass(frozen=True, eq=False)
class Games:
    """Games of one board size, a row of bytes each. Made by new_games()."""

    rows: Tensor  # uint8 [n, bytes of a game]; copying a row copies the game
    size: int
    max_stones: int

    def __len__(self) -> int:
        return self.rows.shape[0]

    def __getitem__(self, which: "slice | Sequence[int] | Tensor") -> "Games":
        """A slice shares the games' memory; a list or tensor of numbers makes copies, repeated ones too."""
        if isinstance(which, slice) and which.step not in (None, 1):
            raise UserError(f"a slice of games has step {which.step}, expected 1; a list of numbers makes copies")
        if not isinstance(which, slice):
            which = torch.as_tensor(which)
        return Games(self.rows[which], self.size, self.max_stones)

    def copy(self) -> "Games":
        return Games(self.rows.clone(), self.size, self.max_stones)

    def play(self, moves: "Tensor | Sequence[int]", colours: "Tensor | Sequence[int] | None" = None) -> Tensor:
        """One move in each game; -1 leaves a game alone.

        moves    [n] int32
        colours  [n] int8, BLACK, WHITE or 0 for the side to move; None: the side to move everywhere
        returns  [n] int32, places in VERDICTS: 0 where the move was played, otherwise why not
        """
        moves = self._one_each("moves", moves, torch.int32)
        sides = None if colours is None else self._one_each("colours", colours, torch.int8)
        verdicts = torch.empty(len(self), dtype=torch.int32)
        self._call(_C.go_play, moves, sides, verdicts)
        return verdicts

    def legal(self) -> Tensor:
        """bool [n, size * size + 1]: what the side to move may play, the pass last; nothing in a game that is over."""
        legal = torch.empty(len(self), self.size**2 + 1, dtype=torch.bool)
        self._call(_C.go_legal, legal)
        return legal

    def planes(self, symmetries: "Tensor | Sequence[int] | None" = None, out: Tensor | None = None) -> Tensor:
        """uint8 [n, 13, size, size] of 0 and 1, by csrc/go/planes.h, in `out` where it is given.

        symmetries  [n] int32, 0 .. 7, as transform_planes() has them; None: each game as it lies
        """
        turned = None if symmetries is None else self._one_each("symmetries", symmetries, torch.int32)
        shape = (len(self), PLANES, self.size, self.size)
        if out is None:
            out = torch.empty(shape, dtype=torch.uint8)
        check("planes", "out", out, shape, (torch.uint8,), self.rows)
        check_contiguous("planes", "out", out)
        self._call(_C.go_planes, turned, out)
        return out

    def stones(self) -> Tensor:
        """int8 [n, size, size]: BLACK, WHITE, 0 where empty."""
        stones = torch.empty(len(self), self.size, self.size, dtype=torch.int8)
        self._call(_C.go_stones, stones, None, None)
        return stones

    def liberties(self) -> Tensor:
        """int32 [n, size, size]: of the chain that stands there, 0 where none does."""
        liberties = torch.empty(len(self), self.size, self.size, dtype=torch.int32)
        self._call(_C.go_stones, None, liberties, None)
        return liberties

    def hashes(self) -> Tensor:
        """int64 [n], of the stones alone: equal for equal boards, whatever came before and whoever is to move."""
        hashes = torch.empty(len(self), dtype=torch.int64)
        self._call(_C.go_stones, None, None, hashes)
        return hashes

    def facts(self) -> Facts:
        facts = torch.empty(len(self), len(Facts._fields), dtype=torch.int32)
        self._call(_C.go_facts, facts)
        return Facts(*facts.unbind(1))

    def pass_alive(self) -> Tensor:
        """int8 [n, size, size]: BLACK's and WHITE's pass-alive stones and regions (Benson; csrc/go/area.h), else 0."""
        alive = torch.empty(len(self), self.size, self.size, dtype=torch.int8)
        self._call(_C.go_area, alive, None, None, None)
        return alive

    def all_pass_alive(self) -> Tensor:
        """bool [n]: whether each empty point is pass-alive, so that nothing is left to play for."""
        settled = torch.empty(len(self), dtype=torch.bool)
        self._call(_C.go_area, None, None, None, settled)
        return settled

    def area(self) -> Tensor:
        """int8 [n, size, size]: whose point it is if the game ends now, 0 nobody's.

        Stones in the other side's pass-alive regions are dead; all others count as alive.
        """
        owner = torch.empty(len(self), self.size, self.size, dtype=torch.int8)
        self._call(_C.go_area, None, owner, None, None)
        return owner

    def scores(self, komi: float) -> Tensor:
        """float32 [n]: Black's area minus White's minus komi; above 0 Black wins."""
        scores = torch.empty(len(self), dtype=torch.int32)
        self._call(_C.go_area, None, None, scores, None)
        return scores - komi

    def playouts(
        self, repeats: int, seed: int, *, first: int = 0, max_moves: int | None = None, own_eyes: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Random games from each of these to the end, with superko; the games themselves stay as they are.

        seed, first  playout r of game g is a function of the game, `seed` and first + g * repeats + r
        max_moves    stops a playout; default: 4 * size * size
        own_eyes     True: each legal move is as likely, the pass too. False: no own eye is filled, and a pass is played
                     only where nothing else is left
        returns      moves, scores: int32 [n, repeats]; the score is Black's area minus White's, without komi
        """
        moves, scores = (torch.empty(len(self), repeats, dtype=torch.int32) for _ in range(2))
        limit = 4 * self.size**2 if max_moves is None else max_moves
        rows = self.rows
        addresses = moves.data_ptr(), scores.data_ptr()
        native(_C.go_playouts, rows.data_ptr(), *rows.shape, repeats, seed, first, limit, own_eyes, *addresses)
        return moves, scores

    def _one_each(self, name: str, values: "Tensor | Sequence[int]", dtype: torch.dtype) -> Tensor:
        found = torch.as_tensor(values)
        if found.shape != (len(self),):
            raise UserError(f"{name} has shape {list(found.shape)}, expected [{len(self)}], one for each game")
        if len(self) and (found.is_floating_point() or found.dtype is torch.bool):
            raise UserError(f"{name} is {str(found.dtype).removeprefix('torch.')}, expected whole numbers")
        return found.to(dtype).contiguous()

    def _call(self, function, *tensors: Tensor | None) -> None:
        native(function, self.rows.data_ptr(), *self.rows.shape, *(0 if x is None else x.data_ptr() for x in tensors))


def new_games(
    n: int,
    size: int = MOST_SIZE,
    *,
    max_stones: int | None = None,
    black: Sequence[int] = (),
    white: Sequence[int] = (),
    to_move: int = BLACK,
) -> Games:
    """n games that begin with the stones `black` and `white`, points, on the board.

    max_stones  that can be played in a game, captured ones too; after them only passes are legal. Each takes 16 to 32
                bytes. Default: 4 * size * size, more than any game that isn't random play on a board of 5 lines
    Raises UserError for a size other than 5 to 19, and for a set-up with a chain that has no liberties.
    """
    if max_stones is None:
        max_stones = 4 * size**2
    rows = torch.empty(n, native(_C.go_game_bytes, size, max_stones), dtype=torch.uint8)
    points = torch.tensor([*black, *white], dtype=torch.int32)
    colours = torch.tensor([BLACK] * len(black) + [WHITE] * len(white), dtype=torch.int8)
    set_up = (points.data_ptr(), colours.data_ptr(), len(points), to_move)
    native(_C.go_new, rows.data_ptr(), *rows.shape, size, max_stones, *set_up)
    return Games(rows, size, max_stones)


def transform_planes(planes: Tensor, symmetries: Tensor, *, back: bool = False) -> Tensor:
    """Each example of uint8 [n, channels, size, size] in its symmetry, int32 [n]: symmetry s of an array a is
    numpy.rot90(a.T if s & 4 else a, s & 3). back: from that symmetry to the array."""
    check_rank("transform_planes", "planes", planes, "n channels size size")
    n, channels, size = planes.shape[:3]
    check("transform_planes", "planes", planes, (n, channels, size, size), (torch.uint8,), planes)
    check("transform_planes", "symmetries", symmetries, (n,), (torch.int32,), planes)
    planes, out = planes.contiguous(), torch.empty_like(planes, memory_format=torch.contiguous_format)
    addresses = planes.data_ptr(), out.data_ptr()
    native(_C.go_transform_planes, *addresses, n, channels, size, symmetries.contiguous().data_ptr(), back)
    return out


def transform_policies(policies: Tensor, size: int, symmetries: Tensor, *, back: bool = False) -> Tensor:
    """The same for float32 [n, size * size + 1]; the pass stays the last."""
    check_rank("transform_policies", "policies", policies, "n moves")
    n = len(policies)
    check("transform_policies", "policies", policies, (n, size**2 + 1), (torch.float32,), policies)
    check("transform_policies", "symmetries", symmetries, (n,), (torch.int32,), policies)
    policies, out = policies.contiguous(), torch.empty_like(policies, memory_format=torch.contiguous_format)
    addresses = policies.data_ptr(), out.data_ptr()
    native(_C.go_transform_policies, *addresses, n, size, symmetries.contiguous().data_ptr(), back)
    return out
