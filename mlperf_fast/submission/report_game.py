"""The report's part on a game that a run of Minigo played at its end: the last board, and how likely Black's win was.

    yield from report_game.pictures(runs, anchor)

For runs whose logs hold no game that is nothing.
"""

from collections.abc import Iterator, Sequence

from mlperf_fast.submission.game import Game
from mlperf_fast.submission.report_figures import SMALL, WIDE, Run, blank_axes, few_ticks
from mlperf_fast.submission.report_html import Html, counted, element, pictured
from mlperf_fast.submission.report_svg import BLACK, BOARD, INK, QUIET, SERIES, WHITE, inline

LETTERS = "ABCDEFGHJKLMNOPQRST"  # of the columns: Go leaves I out
LARGEST_CELL, MARGIN = 40, 20  # CSS pixels: between two lines of a small board, and beside a board for coordinates
MANY_MOVES = 60  # of one player: from here on not every estimate has a dot
_STONES = (("Black", "X", BLACK), ("White", "O", WHITE))
# The players' estimates, told apart by colour, mark and line: player, colour, marker, the same as a letter, line style.
_VIEWS = (("Black", SERIES[0], "o", "●", "-"), ("White", SERIES[1], "s", "■", (0, (4, 2))))


def pictures(runs: Sequence[Run], anchor: str) -> Iterator[Html]:
    """The game of the first run that has one, of those in the score before others. anchor: of the section's heading."""
    by_rank = sorted(runs, key=lambda run: run.state != "counted")
    played = [(run, game) for run in by_rank if (game := run.log.game)]
    if not played:
        return
    run, game = played[0]
    players = f"{game.black} (Black) against {game.white} (White)"
    ended = f"{game.result} after {counted(game.moves, 'move')}"
    label = f"The last board, {players}: {ended}. {_spoken_board(game)}"
    shown = [pictured("The last board", f"{players}: {ended}.", board(f"{anchor}-board", label, game))]
    label = f"Black's chance to win, before each move. {_spoken_rates(game)}"
    rates = win_rates(f"{anchor}-win-rates", label, game)
    if rates:
        caption = "Before each move, as the player to move saw it. Above 50 % Black is ahead."
        shown.append(pictured("Black's chance to win", caption, rates))
    yield element("h4", f"A game from the end of run {run.name}")
    yield element("div", *shown, class_="pictures")


def board(name: str, label: str, game: Game) -> Html:
    """The last position, with star points and the coordinates that Go uses: letters without I, numbers from below."""
    size = len(game.board)
    cell = min(LARGEST_CELL, (WIDE - MARGIN - 1) / size)
    width = cell * size + MARGIN + 1
    axes, figure = blank_axes(width, width, bottom=MARGIN, left=MARGIN, top=1, right=1)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)  # rows count from the top
    axes.set_facecolor(BOARD)
    axes.spines[:].set_visible(False)
    last = size - 1
    axes.hlines(range(size), 0, last, color=QUIET, linewidth=0.8, zorder=1)
    axes.vlines(range(size), 0, last, color=QUIET, linewidth=0.8, zorder=1)
    stars = star_points(size)
    axes.plot([x for x, _ in stars], [y for _, y in stars], "o", color=QUIET, markersize=0.2 * cell, zorder=2)
    for _, mark, colour in _STONES:
        stones = _stones(game, mark)
        axes.plot(
            [x for x, _ in stones], [y for _, y in stones], "o", markersize=0.9 * cell, color=colour,
            markeredgecolor=INK, markeredgewidth=0.8, zorder=3,
        )  # fmt: skip
    for ticks, names in ((axes.set_xticks, LETTERS[:size]), (axes.set_yticks, range(size, 0, -1))):
        ticks(range(size), [str(one) for one in names], fontsize=SMALL)
    axes.tick_params(length=0, pad=3)
    return inline(figure, name, label)


def star_points(size: int) -> list[tuple[int, int]]:
    """(column, row), from 0, of the points that are marked on an empty board of so many lines."""
    if size < 7:
        return [(size // 2, size // 2)] if size % 2 else []
    edge = 2 if size < 12 else 3
    near, middle, far = edge, size // 2, size - 1 - edge
    lines = (near, middle, far) if size % 2 and size >= 15 else (near, far)
    centre = [(middle, middle)] if size % 2 and size < 15 else []
    return [(x, y) for x in lines for y in lines] + centre


def win_rates(name: str, label: str, game: Game) -> Html | None:
    """How likely a win of Black was before each move, a line a player. None if no estimate is logged."""
    if not any(_views(game)):
        return None
    axes, figure = blank_axes(WIDE, 260, bottom=44, left=50, top=24)
    axes.axhline(50, color=QUIET, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    at = 0
    for (player, colour, marker, sign, line), points in zip(_VIEWS, _views(game), strict=True):
        if points:
            axes.plot(
                [move for move, _ in points], [100 * rate for _, rate in points], linestyle=line, color=colour,
                marker=marker if len(points) <= MANY_MOVES else "", markersize=3.5, zorder=2, clip_on=False,
            )  # fmt: skip
            for text, x, tint in ((sign, at, colour), (f"as {player} saw it", at + 14, INK)):
                axes.annotate(text, (0, 1), xycoords="axes fraction", xytext=(x, 9), textcoords="offset points",
                              fontsize=SMALL, color=tint)  # fmt: skip
            at += 130
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 25))
    axes.yaxis.set_major_formatter("{x:g} %")
    axes.set_xlim(0, game.moves + 1)
    axes.set_xlabel("move")
    axes.grid(axis="y")
    few_ticks(axes, 8)
    return inline(figure, name, label)


def _views(game: Game) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """(move from 1, estimate) before Black's moves, and before White's."""
    known = [(move, rate) for move, rate in enumerate(game.win_rates, 1) if rate is not None]
    return [(move, rate) for move, rate in known if move % 2], [(move, rate) for move, rate in known if not move % 2]


def _stones(game: Game, mark: str) -> list[tuple[int, int]]:
    """(column, row), from 0 and from the top."""
    return [(x, y) for y, row in enumerate(game.board) for x, one in enumerate(row) if one == mark]


def _spoken_board(game: Game) -> str:
    """Where the stones are, for who can't see it."""
    parts = []
    for player, mark, _ in _STONES:
        stones = _stones(game, mark)
        places = " ".join(f"{LETTERS[x]}{len(game.board) - y}" for x, y in stones)
        parts.append(f"{counted(len(stones), 'stone')} of {player}{': ' if places else ''}{places}")
    return f"{len(game.board)} lines. {'. '.join(parts)}"


def _spoken_rates(game: Game) -> str:
    parts = []
    for (player, *_), points in zip(_VIEWS, _views(game), strict=True):
        if points:
            rates = [rate for _, rate in points]
            (first, begin), (last, end) = points[0], points[-1]
            parts.append(
                f"As {player} saw it: {begin:.0%} before move {first}, {end:.0%} before move {last}, "
                f"between {min(rates):.0%} and {max(rates):.0%}"
            )
    return ". ".join(parts)
