r"""SGF, the file format of Go games (FF[4], https://www.red-bean.com/sgf): whole games in and out.

    [record] = read("game.sgf")
    games = replay(record)                  # one game of board.py, played to the record's end
    text = write(record)

Read are the main line (of variations the first), set-up and handicap stones before the first move, komi and result, and
the root's other properties as text. FF[1] to FF[3] differ in nothing of that. Points are two letters, column then row
from the top left; a pass is an empty value or, up to 19 lines, `tt`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlperf_fast.errors import UserError
from mlperf_fast.workloads.minigo.board import (
    BLACK,
    LEAST_SIZE,
    LEGAL,
    MOST_SIZE,
    VERDICTS,
    WHITE,
    Games,
    new_games,
)

MOST_BYTES = 10_000_000
MOST_NODES = 100_000  # of a main line; a game of 19 lines has hundreds
LETTERS = "abcdefghijklmnopqrs"
COLOURS = {"B": BLACK, "W": WHITE}
NAMES = {BLACK: "Black", WHITE: "White"}
# What the record's own fields hold; all else of the root goes to `info`.
OWN = {"GM", "FF", "CA", "SZ", "KM", "RE", "AB", "AW", "AE", "PL", "B", "W", "C"}
SET_UP = {"AB": BLACK, "AW": WHITE, "AE": 0}

# Whitespace may stand between all of these. A value ends at the first `]` without a backslash before it.
TOKEN = re.compile(r"\s*(?:([();])|([A-Za-z]+)(?=\s*\[)|\[([^\]\\]*(?:\\.[^\]\\]*)*)\])", re.DOTALL)
START = re.compile(r"\(\s*;")
CHARSET = re.compile(rb"CA\s*\[([^\]]*)\]")
NUMBER = re.compile(r"[+-]?(\d{1,9}\.?\d{0,9}|\.\d{1,9})", re.ASCII)
RESULT = re.compile(r"([BW])\+(\d+(?:\.\d+)?)")

Node = dict[str, list[str]]  # property -> its values, as they stand in the file


@dataclass
class Record:
    """A game as written down."""

    size: int = MOST_SIZE
    komi: float | None = None  # None: the file doesn't say
    black: list[int] = field(default_factory=list)  # set-up and handicap stones, points as in board.py
    white: list[int] = field(default_factory=list)
    to_move: int = BLACK
    moves: list[tuple[int, int]] = field(default_factory=list)  # (BLACK or WHITE, move)
    result: str = ""  # as the file has it: B+3.5, W+Resign, 0, Void …
    info: dict[str, str] = field(default_factory=dict)  # the root's other properties: PB, PW, RU, HA, DT …
    comments: dict[int, str] = field(default_factory=dict)  # after so many moves; 0: on the whole game

    @property
    def lead(self) -> float | None:
        """Black's lead as the result says; None where it was not counted, or not told."""
        if self.result.strip().lower() in ("0", "draw", "jigo"):
            return 0.0
        counted = RESULT.fullmatch(self.result.strip())
        return COLOURS[counted[1]] * float(counted[2]) if counted else None


# Reading ------------------------------------------------------------------------------------------------------------


def read(path: str | Path) -> list[Record]:
    """The games of a file, most often one. UserError, with the file's name, for what isn't SGF of a game of Go."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None
    return parse(data, str(path))


def parse(data: bytes | str, name: str = "SGF") -> list[Record]:
    """The games of a collection. `name` begins the message of a UserError."""
    if len(data) > MOST_BYTES:
        raise UserError(f"{name}: more than {MOST_BYTES:,} bytes; expected a file of games, a few kilobytes each")
    text = data if isinstance(data, str) else decode(data, name)
    records = [_record(nodes, name) for nodes in _main_lines(text, name)]
    if not records:
        raise UserError(f"{name}: holds no game; expected SGF, which begins with '(;'")
    return records


def decode(data: bytes, name: str) -> str:
    """By the file's CA property; without one as UTF-8, or as Latin-1 where it isn't that."""
    stated = CHARSET.search(data)
    if stated is None:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            return data.decode("latin-1")
    charset = stated[1].decode("ascii", "replace").strip()
    try:
        # A comment with a wrong byte must not cost the game.
        return data.decode("utf-8-sig" if charset.lower() in ("utf-8", "utf8") else charset, "replace")
    except (LookupError, UnicodeError):
        raise UserError(f"{name}: CA[{charset}] names no known character set; expected UTF-8, ISO-8859-1 …") from None


def _main_lines(text: str, name: str) -> Iterator[list[Node]]:
    """Of each game the nodes up to its first `)`: there the line of first variations ends."""
    start = START.search(text)
    while start is not None:
        at, depth, nodes, on_main_line, values = start.start(), 0, list[Node](), True, None
        while True:
            token = TOKEN.match(text, at)
            if token is None:
                raise UserError(_broken(text, at, name))
            mark, key, value = token.groups()
            at = token.end()
            if mark == "(":
                depth += 1
                if on_main_line and not START.match(text, token.start(1)):
                    raise UserError(f"{name}: line {_line(text, at)}: a variation without a node; expected '(;'")
            elif mark == ";":
                if on_main_line:
                    nodes.append({})
                    if len(nodes) > MOST_NODES:
                        raise UserError(f"{name}: a game of more than {MOST_NODES:,} nodes; expected one for each move")
            elif mark == ")":
                on_main_line = False
                depth -= 1
                if depth == 0:
                    break
            elif key is not None:
                # Lower-case letters are FF[3]'s long names: Black[aa] is B[aa].
                values = nodes[-1].setdefault("".join(filter(str.isupper, key)), []) if on_main_line else []
                continue
            elif values is None:
                raise UserError(f"{name}: line {_line(text, at)}: a value without a property")
            else:
                values.append(value)
                continue
            values = None
        yield nodes
        start = START.search(text, at)


def _broken(text: str, at: int, name: str) -> str:
    rest = text[at:].strip()
    if not rest or rest.startswith("["):
        return f"{name}: ends inside a game: the file is cut off"
    return (
        f"{name}: line {_line(text, at + 1)}: found {rest[:20]!r}, expected a node, a property or a value in brackets"
    )


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _record(nodes: Sequence[Node], name: str) -> Record:
    root = nodes[0]
    if (game := _text(root, "GM", "1").strip()) != "1":
        raise UserError(f"{name}: GM[{game}] is another game; expected GM[1], Go")
    record = Record(size=_size(_text(root, "SZ", str(MOST_SIZE)), name), result=_text(root, "RE", "").strip())
    if komi := _text(root, "KM", "").strip():
        if not NUMBER.fullmatch(komi):
            raise UserError(f"{name}: KM[{komi}] isn't a number")
        record.komi = float(komi)
    record.info = {key: _text(root, key, "") for key in root if key and key not in OWN}
    stones: dict[int, int] = {}
    for number, node in enumerate(nodes):
        if SET_UP.keys() & node.keys():
            if record.moves:
                raise UserError(
                    f"{name}: node {number} sets stones up after move {len(record.moves)}; only before the first move "
                    "they can be read"
                )
            for key, colour in SET_UP.items():
                for value in node.get(key, ()):
                    stones |= dict.fromkeys(_points(value, record.size, f"{name}: {key}[{value}]"), colour)
        if "PL" in node and not record.moves:
            record.to_move = COLOURS.get(_text(node, "PL", "")[:1].upper(), record.to_move)
        elif "AB" in node and "AW" not in node and not record.moves:
            record.to_move = WHITE  # a handicap
        for key in COLOURS.keys() & node.keys():
            record.moves.append((COLOURS[key], _move(node, key, record.size, f"{name}: move {len(record.moves) + 1}")))
        if len(COLOURS.keys() & node.keys()) > 1:
            raise UserError(f"{name}: move {len(record.moves)}: one node has moves of both colours")
        if comment := _text(node, "C", ""):
            record.comments[len(record.moves)] = comment
    record.black = sorted(point for point, colour in stones.items() if colour == BLACK)
    record.white = sorted(point for point, colour in stones.items() if colour == WHITE)
    if record.moves:
        record.to_move = record.moves[0][0]
    return record


def _text(node: Node, key: str, default: str) -> str:
    """The first value of a property without its backslashes; one at a line's end takes the break with it."""
    raw = node[key][0] if node.get(key) else default
    return re.sub(r"\\(\r\n|\n\r|.)", lambda found: "" if found[1][0] in "\r\n" else found[1], raw, flags=re.DOTALL)


def _size(text: str, name: str) -> int:
    columns, _, rows = text.strip().partition(":")
    if not columns.isascii() or not columns.isdigit() or (rows and rows != columns):
        raise UserError(f"{name}: SZ[{text}]: expected a square board, SZ[{LEAST_SIZE}] to SZ[{MOST_SIZE}]")
    if not LEAST_SIZE <= (size := int(columns[:9])) <= MOST_SIZE:
        raise UserError(f"{name}: a board of {size} lines; expected {LEAST_SIZE} to {MOST_SIZE}")
    return size


def _move(node: Node, key: str, size: int, where: str) -> int:
    text = "".join(_text(node, key, "").split())
    if text in ("", "tt"):
        return size**2
    return _point(text, size, f"{where}: {key}[{text}]")


def _point(text: str, size: int, where: str) -> int:
    if len(text) != 2 or not set(text) <= set(LETTERS[:size]):
        raise UserError(f"{where}: expected two letters of a to {LETTERS[size - 1]}, column and row")
    return LETTERS.index(text[1]) * size + LETTERS.index(text[0])


def _points(value: str, size: int, where: str) -> list[int]:
    """One point, or a rectangle by two corners, `aa:cc`."""
    first, _, last = "".join(value.split()).partition(":")
    (top, left), (bottom, right) = (divmod(_point(corner, size, where), size) for corner in (first, last or first))
    rows, columns = (range(min(pair), max(pair) + 1) for pair in ((top, bottom), (left, right)))
    return [row * size + column for row in rows for column in columns]


# Playing and writing ------------------------------------------------------------------------------------------------


def replay(record: Record, name: str = "SGF") -> Games:
    """One game, played to the record's end. UserError that names the move which the rules forbid.

    Passes after the two that end a game are left out: players who agree on the score write a third.
    """
    try:
        games = new_games(
            1,
            record.size,
            max_stones=max(1, len(record.moves)),
            black=record.black,
            white=record.white,
            to_move=record.to_move,
        )
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    for number, (colour, move) in enumerate(record.moves, 1):
        if move == record.size**2 and games.facts().passes[0] >= 2:
            continue
        verdict = int(games.play([move], [colour])[0])
        if verdict != LEGAL:
            where = letters(move, record.size) or "pass"
            raise UserError(f"{name}: move {number}, {NAMES[colour]} at {where}: {VERDICTS[verdict]}")
    return games


def letters(move: int, size: int) -> str:
    """Column and row as SGF has them; the pass is empty."""
    return "" if move == size**2 else LETTERS[move % size] + LETTERS[move // size]


def write(record: Record) -> str:
    """The game as SGF, FF[4], UTF-8, ten moves a line; a move with a comment stands on its own."""
    size = record.size
    head = {"GM": "1", "FF": "4", "CA": "UTF-8", **record.info, "SZ": str(size)}
    if record.komi is not None:
        head["KM"] = f"{record.komi:g}"
    if record.result:
        head["RE"] = record.result
    parts = ["(;", *(f"{key}[{_escaped(value)}]" for key, value in head.items())]
    for key, points in (("AB", record.black), ("AW", record.white)):
        if points:
            parts.append(key + "".join(f"[{letters(point, size)}]" for point in points))
    if (record.black or record.white) and not record.moves:
        parts.append("PL[B]" if record.to_move == BLACK else "PL[W]")
    parts.append(_comment(record, 0))
    for number, (colour, move) in enumerate(record.moves, 1):
        comment = _comment(record, number)
        new_line = "\n" if comment or number % 10 == 1 or number - 1 in record.comments else ""
        parts.append(f"{new_line};{'B' if colour == BLACK else 'W'}[{letters(move, size)}]{comment}")
    return "".join(parts) + ")\n"


def _comment(record: Record, after: int) -> str:
    return f"C[{_escaped(record.comments[after])}]" if after in record.comments else ""


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("]", "\\]")
