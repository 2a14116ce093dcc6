"""Moves by the names that Go players use: D4, pass. Columns A to T without I, row 1 at the bottom.

vertex(72, 9)           # "A1"
move("a1", 9)           # 72; board.py's number
"""

from mlperf_fast.workloads.minigo.board import BLACK, WHITE

COLUMNS = "ABCDEFGHJKLMNOPQRST"
COLOURS = {"b": BLACK, "black": BLACK, "w": WHITE, "white": WHITE}


def vertex(move: int, size: int) -> str:
    return "pass" if move == size**2 else f"{COLUMNS[move % size]}{size - move // size}"


def move(text: str, size: int) -> int | None:
    """In capitals or not; None for what is no move of this board."""
    text = text.upper()
    if text == "PASS":
        return size**2
    column, row = COLUMNS[:size].find(text[:1] or "?"), text[1:]
    if column < 0 or not (row.isascii() and row.isdigit() and 1 <= int(row[:3]) <= size):
        return None
    return (size - int(row[:3])) * size + column


def handicap(stones: int, size: int) -> list[int]:
    """The points of a fixed handicap, as GTP has them; none where the board has no room for so many.

    Nine on boards of odd size from 9 lines on, four on the others from 7 lines on.
    """
    if not 2 <= stones <= (9 if size % 2 and size >= 9 else 4) or size < 7:
        return []
    low, middle = (3 if size >= 13 else 2), size // 2
    high = size - 1 - low
    corners = [(high, low), (low, high), (low, low), (high, high)]  # rows count from the top: lower left first
    sides = [(middle, low), (middle, high), (low, middle), (high, middle)]
    chosen = corners[:stones] if stones < 5 else corners + sides[: (stones - 4) // 2 * 2]
    if stones >= 5 and stones % 2:
        chosen = [*chosen, (middle, middle)]
    return [row * size + column for row, column in chosen]
