"""The Go Text Protocol, version 2: what Sabaki, GoGui, Lizzie and other engines speak with this one.

    server = Server(make_player, size=9, komi=7.5)
    serve(server, Lines(0), sys.stdout)

Commands come a line each, answers begin with `=` or, for mistakes, `?`, and end with an empty line. Nothing that comes
in ends the server but `quit` and the end of the input. Source: Farnebäck, Specification of the Go Text Protocol,
version 2, draft 2.
"""

import os
import re
import select
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from mlperf_fast import __version__
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.minigo import sgf, vertices
from mlperf_fast.workloads.minigo.board import BLACK, LEAST_SIZE, LEGAL, MOST_SIZE, VERDICTS, WHITE
from mlperf_fast.workloads.minigo.clock import Clock
from mlperf_fast.workloads.minigo.player import Player
from mlperf_fast.workloads.minigo.vertices import COLOURS, COLUMNS, vertex

MOST_BYTES = 1 << 30  # of a tree that is only watched
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")  # all but the tab and the line's end


class Lines:
    """Lines of a file descriptor, and whether the next one is there already: an analysis goes on until it is."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.rest, self.ended = descriptor, b"", False

    def __iter__(self) -> Iterator[str]:
        while True:
            while b"\n" not in self.rest and not self.ended:
                read = os.read(self.descriptor, 1 << 16)
                self.ended = not read
                self.rest += read
            line, _, self.rest = self.rest.partition(b"\n")
            if self.ended and not line and not self.rest:
                return
            yield line.decode("utf-8", "replace")

    def waits(self, seconds: float = 0) -> bool:
        """Whether a line or the end is there, at the latest after so many seconds."""
        return b"\n" in self.rest or self.ended or bool(select.select([self.descriptor], [], [], seconds)[0])


def serve(server: "Server", lines: Lines, out: TextIO) -> None:
    """Answers until `quit` or the end of the lines."""
    for line in lines:
        words = CONTROL.sub("", line.partition("#")[0]).split()
        number = words.pop(0) if words and words[0].isascii() and words[0].isdigit() else ""
        if not words:
            continue
        name, *arguments = words
        command = COMMANDS.get(name)
        try:
            if command is None:
                raise UserError("unknown command")
            answer = command(server, arguments)
        except UserError as error:
            # An empty line would end the answer too early.
            out.write(f"?{number} {' '.join(str(error).split())}\n\n")
        else:
            if isinstance(answer, str):
                out.write(f"={number} {answer}".rstrip() + "\n\n")
            else:
                write_on(answer, number, lines, out)
        out.flush()
        if name == "quit":
            return


def write_on(parts: Iterator[str], number: str, lines: Lines, out: TextIO) -> None:
    """An answer that grows until the next command comes."""
    out.write(f"={number}\n")
    for part in parts:
        out.write(f"{part}\n")
        out.flush()
        if lines.waits():
            break
    out.write("\n")


class Server:
    """make(size, komi): a player; UserError where it can't play on such a board."""

    def __init__(self, make: Callable[[int, float], Player], size: int, komi: float) -> None:
        self.make, self.player, self.clock = make, make(size, komi), Clock()

    def colour(self, text: str) -> int:
        if (colour := COLOURS.get(text.lower())) is None:
            raise UserError("invalid color or coordinate")
        return colour

    def move(self, text: str) -> int:
        if (move := vertices.move(text, self.player.size)) is None:
            raise UserError("invalid color or coordinate")
        return move

    # What each command does with its arguments. ----------------------------------------------------------------------

    def known_command(self, arguments: list[str]) -> str:
        return "true" if " ".join(arguments) in COMMANDS else "false"

    def boardsize(self, arguments: list[str]) -> str:
        size = whole(arguments, "boardsize not an integer")
        if not LEAST_SIZE <= size <= MOST_SIZE:
            raise UserError("unacceptable size")
        try:
            self.player = self.make(size, self.player.komi)
        except UserError:
            raise UserError("unacceptable size") from None
        return ""

    def clear_board(self, arguments: list[str]) -> str:
        self.player.begin()
        self.clock.restart()
        return ""

    def komi(self, arguments: list[str]) -> str:
        [text] = exactly(1, arguments)
        try:
            self.player.set_komi(float(text))
        except UserError:
            raise UserError("unacceptable komi") from None
        except ValueError:
            raise UserError("komi not a float") from None
        return ""

    def play(self, arguments: list[str]) -> str:
        colour, point = exactly(2, arguments)
        verdict = self.player.play(self.colour(colour), self.move(point))
        if verdict != LEGAL:
            raise UserError(f"illegal move: {VERDICTS[verdict]}")
        return ""

    def genmove(self, arguments: list[str]) -> str:
        colour, move = self._think(arguments)
        if move is None:
            return "resign"
        self.player.play(colour, move)
        return vertex(move, self.player.size)

    def reg_genmove(self, arguments: list[str]) -> str:
        """What it would play, without playing it."""
        _, move = self._think(arguments)
        return "resign" if move is None else vertex(move, self.player.size)

    def _think(self, arguments: list[str]) -> tuple[int, int | None]:
        [text] = exactly(1, arguments)
        colour, start = self.colour(text), time.monotonic()
        seconds = self.clock.seconds(colour, len(self.player.moves), self.player.size**2)
        move = self.player.think(colour, seconds)
        self.clock.used(colour, time.monotonic() - start)
        return colour, move

    def undo(self, arguments: list[str]) -> str:
        if not self.player.undo():
            raise UserError("cannot undo")
        return ""

    def fixed_handicap(self, arguments: list[str]) -> str:
        stones = whole(arguments, "invalid number of stones")
        return self._handicap(vertices.handicap(stones, self.player.size))

    def place_free_handicap(self, arguments: list[str]) -> str:
        """Where fixed ones lie, and fewer than asked for where there are no places for more, as the protocol allows."""
        stones = whole(arguments, "invalid number of stones")
        places = (vertices.handicap(n, self.player.size) for n in range(min(stones, 9), 1, -1))
        return self._handicap(next(filter(None, places), []))

    def set_free_handicap(self, arguments: list[str]) -> str:
        points = [self.move(text) for text in arguments]
        if len(points) < 2 or len(set(points)) < len(points) or self.player.size**2 in points:
            raise UserError("bad vertex list")
        self._handicap(points)
        return ""

    def _handicap(self, points: list[int]) -> str:
        if not points:
            raise UserError("invalid number of stones")
        if self.player.moves or self.player.games.stones().any():
            raise UserError("board not empty")
        try:
            self.player.begin(black=points, to_move=WHITE)
        except UserError:
            raise UserError("bad vertex list") from None
        return " ".join(vertex(point, self.player.size) for point in points)

    def loadsgf(self, arguments: list[str]) -> str:
        """loadsgf FILE [N]: the position before move N, or at the end."""
        if not arguments:
            raise UserError("syntax error: expected a file name")
        *names, last = arguments
        count = max(0, int(last) - 1) if names and re.fullmatch("[0-9]{1,9}", last) else None
        name = " ".join(arguments if count is None else names)
        try:
            record = sgf.read(name)[0]
            sgf.replay(record, name)
            player = self.make(record.size, self.player.komi if record.komi is None else record.komi)
        except UserError as error:
            raise UserError(f"cannot load file: {error}") from None
        player.begin(record.black, record.white, record.to_move)
        for colour, move in record.moves[:count]:
            player.play(colour, move)
        self.player = player
        return ""

    def final_score(self, arguments: list[str]) -> str:
        return score_text(float(self.player.games.scores(self.player.komi)[0]))

    def final_status_list(self, arguments: list[str]) -> str:
        """alive and dead: a chain a line. What seki is, area counting doesn't ask."""
        [status] = exactly(1, arguments)
        if status not in ("alive", "dead", "seki"):
            raise UserError("syntax error: expected alive, seki or dead")
        stones, owner = self.player.games.stones()[0].flatten(), self.player.games.area()[0].flatten()
        dead = (stones != 0) & (owner == -stones)
        wanted = {"alive": (stones != 0) & ~dead, "dead": dead, "seki": dead & ~dead}[status]
        chains = [chain for chain in chains_of(stones.tolist(), self.player.size) if wanted[chain[0]]]
        return "\n".join(" ".join(vertex(point, self.player.size) for point in chain) for chain in chains)

    def showboard(self, arguments: list[str]) -> str:
        return board_text(self.player)

    def time_settings(self, arguments: list[str]) -> str:
        main, extra, stones = numbers(arguments, 3)
        self.clock = Clock(main, extra, int(stones))
        return ""

    def time_left(self, arguments: list[str]) -> str:
        colour, *rest = exactly(3, arguments)
        left, stones = numbers(rest, 2)
        self.clock.told(self.colour(colour), left, int(stones))
        return ""

    def analyze(self, arguments: list[str]) -> Iterator[str]:
        """lz-analyze [COLOUR] [CENTISECONDS]: a line each time, until the next command. Other arguments are let be."""
        words = [word for word in arguments if word != "interval"]
        colour = COLOURS[words.pop(0).lower()] if words and words[0].lower() in COLOURS else self.player.to_move
        seconds = numbers(words[:1], 1)[0] / 100 if words else 1.0
        return self._analyze(colour, max(seconds, 0.01))

    def _analyze(self, colour: int, seconds: float) -> Iterator[str]:
        self.player.look(colour)
        while True:
            if self.player.reading.bytes() < MOST_BYTES:
                self.player.read(1 << 20, seconds)
            else:
                time.sleep(seconds)
            if text := info(self.player, colour):
                yield text


def info(player: Player, colour: int) -> str:
    """Leela Zero's form: win rates and priors of the side to move, in hundredths of a per cent."""
    parts = []
    for order, found in enumerate(player.candidates()):
        rate = found.win_rate if colour == BLACK else 1 - found.win_rate
        line = " ".join(vertex(move, player.size) for move in found.line)
        parts.append(
            f"info move {vertex(found.move, player.size)} visits {found.visits} winrate {round(rate * 10_000)} "
            f"prior {round(found.prior * 10_000)} order {order} pv {line}"
        )
    return " ".join(parts)


def board_text(player: Player) -> str:
    """The board with its coordinates: X Black, O White, ) behind the last move."""
    facts, stones = player.games.facts(), player.games.stones()[0].tolist()
    size, last = player.size, int(facts.last[0])
    columns = "   " + " ".join(COLUMNS[:size])
    lines = ["", columns]
    for row in range(size):
        points = "".join(
            {BLACK: "X", WHITE: "O", 0: "."}[stones[row][column]] + (")" if row * size + column == last else " ")
            for column in range(size)
        )
        lines.append(f"{size - row:2d} {points}{size - row}")
    side = "Black" if player.to_move == BLACK else "White"
    lines.append(columns)
    lines.append(f"{side} to move, komi {player.komi:g}, move {len(player.moves) + 1}")
    lines.append(f"Captured by X: {int(facts.white_lost[0])}, by O: {int(facts.black_lost[0])}")
    return "\n".join(lines)


def chains_of(stones: list[int], size: int) -> list[list[int]]:
    chains, seen = [], set[int]()
    for start, colour in enumerate(stones):
        if colour == 0 or start in seen:
            continue
        chain, edge = [start], [start]
        seen.add(start)
        while edge:
            for point in neighbours(edge.pop(), size):
                if stones[point] == colour and point not in seen:
                    seen.add(point)
                    chain.append(point)
                    edge.append(point)
        chains.append(sorted(chain))
    return chains


def neighbours(point: int, size: int) -> Iterator[int]:
    row, column = divmod(point, size)
    for r, c in ((row - 1, column), (row, column - 1), (row, column + 1), (row + 1, column)):
        if 0 <= r < size and 0 <= c < size:
            yield r * size + c


def score_text(lead: float) -> str:
    return "0" if lead == 0 else f"{'B' if lead > 0 else 'W'}+{abs(lead):g}"


def exactly(count: int, arguments: list[str]) -> list[str]:
    if len(arguments) != count:
        raise UserError(f"syntax error: {len(arguments)} arguments, expected {count}")
    return arguments


def whole(arguments: list[str], otherwise: str) -> int:
    [text] = exactly(1, arguments)
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise UserError(otherwise)
    return int(text)


def numbers(arguments: list[str], count: int) -> list[float]:
    texts = exactly(count, arguments)
    if not all(re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?", text) for text in texts):
        raise UserError("syntax error: expected numbers")
    return [float(text) for text in texts]


Command = Callable[[Server, list[str]], str | Iterator[str]]
COMMANDS: dict[str, Command] = {
    "protocol_version": lambda server, _: "2",
    "name": lambda server, _: "mlperf_fast",
    "version": lambda server, _: __version__,
    "known_command": Server.known_command,
    "list_commands": lambda server, _: "\n".join(COMMANDS),
    "quit": lambda server, _: "",
    "boardsize": Server.boardsize,
    "clear_board": Server.clear_board,
    "komi": Server.komi,
    "play": Server.play,
    "genmove": Server.genmove,
    "reg_genmove": Server.reg_genmove,
    "undo": Server.undo,
    "fixed_handicap": Server.fixed_handicap,
    "place_free_handicap": Server.place_free_handicap,
    "set_free_handicap": Server.set_free_handicap,
    "loadsgf": Server.loadsgf,
    "final_score": Server.final_score,
    "final_status_list": Server.final_status_list,
    "showboard": Server.showboard,
    "time_settings": Server.time_settings,
    "time_left": Server.time_left,
    "lz-analyze": Server.analyze,
}
