"""A game judged position by position: who was winning, what each move lost, what would have been better.

    [record] = sgf.read("game.sgf")
    positions = analyze(record, by_playouts, readouts=100)
    mistakes(positions)                     # those that lost most
    annotated(record, positions)            # a Record with comments, for sgf.write()

All positions of the game are read at once, a row of one search each.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from mlperf_fast.workloads.minigo import sgf
from mlperf_fast.workloads.minigo.board import BLACK, Games, new_games
from mlperf_fast.workloads.minigo.judge import Judge, read
from mlperf_fast.workloads.minigo.player import turned
from mlperf_fast.workloads.minigo.search import Options, Search
from mlperf_fast.workloads.minigo.sgf import NAMES, Record
from mlperf_fast.workloads.minigo.vertices import vertex

KOMI = 7.5  # where the record has none
# Nodes at once, of 8 KB each on 19 lines and a tenth of it on 6: half a gigabyte. Longer games are read in parts.
MOST_NODES = 60_000
LEAST_MISTAKE = 0.02  # in win rate
BAR = 16  # characters


@dataclass(frozen=True)
class Position:
    """Before a move, or at the game's end."""

    number: int  # of moves played before
    colour: int  # that played here, or is to move at the end
    played: int | None  # None: the end
    win_rate: float  # Black's, 0 to 1
    preferred: int | None  # by the search; None: the game is over
    line: list[int]  # what it expects from here on, beginning with `preferred`
    lost: float = 0.0  # of the mover's win rate, by the move that was played


def analyze(
    record: Record, judge: Judge, readouts: int, *, own_eyes: bool = True, seed: int = 0, name: str = "SGF"
) -> list[Position]:
    """A position for each move of the record and one for its end. A record without komi gets 7.5.

    UserError, which begins with `name`, for moves that the rules forbid.
    """
    sgf.replay(record, name)
    games, colours = every_position(record)
    komi = KOMI if record.komi is None else record.komi
    options = Options(komi=komi, noise_mix=0, soft_moves=0, own_eyes=own_eyes)
    found: list[Position] = []
    most = max(1, MOST_NODES // readouts)
    for first in range(0, len(games), most):
        part = games[first : first + most].copy()
        search = Search(part, options, seed=seed)
        search.reset(ids=range(first, first + len(part)))
        search.start([readouts] * len(part), [False] * len(part))
        read(search, judge)
        found += _judged(record, search, colours, first)
    # What a move lost only the next position tells.
    return [
        replace(now, lost=max(0.0, now.colour * (now.win_rate - after.win_rate))) if after else now
        for now, after in zip(found, [*found[1:], None], strict=True)
    ]


def every_position(record: Record) -> tuple[Games, list[int]]:
    """The game before each of its moves and at its end, a row each, and whose turn it is there."""
    count = len(record.moves)
    games = new_games(
        count + 1,
        record.size,
        max_stones=count + 4 * record.size**2,  # the search needs room for what it reads
        black=record.black,
        white=record.white,
        to_move=record.to_move,
    )
    for number, (colour, move) in enumerate(record.moves):
        games[number + 1 :].play([move] * (count - number), [colour] * (count - number))
    colours = [colour for colour, _ in record.moves]
    colours.append(int(games.facts().to_move[-1]))
    facts = games.facts()
    for row, colour in enumerate(colours):
        if colour != facts.to_move[row] and facts.passes[row] < 2:  # two moves of one side on end
            games.rows[row] = turned(games[row : row + 1], colour).rows[0]
    return games, colours


def _judged(record: Record, search: Search, colours: list[int], first: int) -> Iterable[Position]:
    going = search.games.facts().passes < 2
    choice, scores = search.choose(going), search.games.scores(search.options.komi)
    for row in range(len(search)):
        number = first + row
        played = record.moves[number][1] if number < len(record.moves) else None
        if going[row]:
            rate, move = float(1 + choice.q[row]) / 2, int(choice.moves[row])
            yield Position(number, colours[number], played, rate, move, search.line(row, move))
        else:
            yield Position(number, colours[number], played, float(1 + scores[row].sign()) / 2, None, [])


def mistakes(positions: list[Position], most: int = 5) -> list[Position]:
    """The moves that lost most, and another than the search would have played."""
    worse = [p for p in positions if p.played not in (None, p.preferred) and p.lost >= LEAST_MISTAKE]
    return sorted(worse, key=lambda p: -p.lost)[:most]


def sentence(position: Position, size: int) -> str:
    """Of a move that was played."""
    played, better = (vertex(move, size) for move in (position.played, position.preferred) if move is not None)
    line = names(position.line[:8], size)
    return (
        f"move {position.number + 1}, {NAMES[position.colour]} {played}: lost {position.lost:.0%}; "
        f"better {better} ({line})"
    )


def names(moves: list[int], size: int) -> str:
    return " ".join(vertex(move, size) for move in moves)


def annotated(record: Record, positions: list[Position]) -> Record:
    """The record with what was found in its comments, behind those that it has."""
    comments = {}
    for before, after in pairwise(positions):
        lines = [f"Black wins {after.win_rate:.0%}."]
        if before.preferred is not None:
            wish = "as the search" if before.played == before.preferred else "the search prefers"
            lines.append(f"Lost {before.lost:.0%}; {wish} {names(before.line[:8], record.size)}")
        comments[after.number] = "\n".join(lines)
    worst = [sentence(position, record.size) for position in mistakes(positions)]
    comments[0] = "\n".join([f"Black wins {positions[0].win_rate:.0%} at the start.", *worst])
    both = {number: "\n\n".join(filter(None, (record.comments.get(number), text))) for number, text in comments.items()}
    return replace(record, comments={**record.comments, **both})


def as_json(record: Record, positions: list[Position]) -> dict[str, Any]:
    """Moves by their names, win rates 0 to 1."""

    def name(move: int | None) -> str | None:
        return None if move is None else vertex(move, record.size)

    return {
        "size": record.size,
        "komi": record.komi,
        "black": record.info.get("PB"),
        "white": record.info.get("PW"),
        "result": record.result,
        "positions": [
            {
                "move": position.number + 1,
                "colour": NAMES[position.colour],
                "played": name(position.played),
                "preferred": name(position.preferred),
                "black_win_rate": round(position.win_rate, 4),
                "lost": round(position.lost, 4),
                "line": [name(move) for move in position.line],
            }
            for position in positions
        ],
    }


def show(record: Record, positions: list[Position]) -> None:
    """A table with a bar of Black's win rate, and the biggest mistakes, on standard output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("move", justify="right")
    table.add_column("played", no_wrap=True)
    table.add_column("search", no_wrap=True)
    table.add_column("lost", justify="right")
    table.add_column("Black", justify="right")
    table.add_column("wins", no_wrap=True)
    table.add_column("and then", no_wrap=True)
    for p in positions:
        name = "B" if p.colour == BLACK else "W"
        table.add_row(
            "end" if p.played is None else str(p.number + 1),
            "" if p.played is None else f"{name} {vertex(p.played, record.size)}",
            "" if p.preferred is None else vertex(p.preferred, record.size),
            f"{p.lost:.0%}" if p.lost >= LEAST_MISTAKE else "",
            f"{p.win_rate:.0%}",
            "█" * round(BAR * p.win_rate) + "░" * (BAR - round(BAR * p.win_rate)),
            names(p.line[1:7], record.size),
        )
    console = Console(highlight=False)
    console.print(table)
    worst = mistakes(positions)
    console.print("the biggest mistakes" if worst else "no move lost much", markup=False)
    for position in worst:
        console.print(f"  {sentence(position, record.size)}", markup=False)
