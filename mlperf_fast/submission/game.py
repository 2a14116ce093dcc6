"""A game of Go from the end of a run of Minigo, as its log holds it (`final_game`): who played, how it ended, the last
board, and how the players saw it on the way. What has another form is no game: `None`, never a part of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from mlperf_fast.submission.records import Record
from mlperf_fast.submission.sanity import number

SIZES = range(5, 20)  # lines of a board
MOST_MOVES = 2 * SIZES[-1] ** 2  # the reference ends its games at 7/5 of the board's points
MOST_SCORE = 1000  # points; all of a board and any komi are less
LONGEST_NAME = 60  # characters; what is longer is cut


@dataclass(frozen=True, slots=True)
class Game:
    """A game that has ended.

    black, white: names of the players. score: Black's points ahead, komi taken off. moves: how many, passes included.
    board: rows from the top, as long as there are rows, of "X" (Black), "O" (White) and ".". win_rates: before each
    move, how likely a win of Black was to the player to move, 0 to 1; None where that isn't known.
    """

    black: str
    white: str
    score: float
    moves: int
    board: tuple[str, ...]
    win_rates: tuple[float | None, ...] = ()

    @property
    def result(self) -> str:
        """Who won, and by how much."""
        if self.score == 0:
            return "a draw"
        return f"{'Black' if self.score > 0 else 'White'} wins by {abs(self.score):g}"


def final_game(records: Sequence[Record]) -> Game | None:
    """The last game that is logged; None if there is none, or it has another form."""
    value = next((record.value for record in reversed(records) if record.key == "final_game"), None)
    if not isinstance(value, dict):
        return None
    black, white, board, moves = (value.get(key) for key in ("black", "white", "board", "moves"))
    score, rates = number(value.get("score")), value.get("win_rates")
    if not (_is_name(black) and _is_name(white) and _is_board(board)) or score is None or abs(score) > MOST_SCORE:
        return None
    if not isinstance(moves, int) or isinstance(moves, bool) or not 0 <= moves <= MOST_MOVES:
        return None
    # As many as there were moves, or it isn't known which is whose.
    known = tuple(map(_rate, rates)) if isinstance(rates, list) and len(rates) == moves else ()
    return Game(_cut(black), _cut(white), score, moves, tuple(board), known)


def _is_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and value != ""


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _is_board(value: Any) -> TypeGuard[list[str]]:
    if not isinstance(value, list) or len(value) not in SIZES:
        return False
    return all(isinstance(row, str) and len(row) == len(value) and not row.strip("XO.") for row in value)


def _rate(value: Any) -> float | None:
    rate = number(value)
    return rate if rate is not None and 0 <= rate <= 1 else None
