"""A judged game as a picture: Black's win rate over the moves, and the board at its end. Plain SVG, light and dark.

    Path("game.svg").write_text(picture(record, positions))

Nothing is loaded and no script runs; what stands in the record is never taken for markup.
"""

from collections.abc import Sequence
from html import escape

from mlperf_fast.workloads.minigo import sgf
from mlperf_fast.workloads.minigo.analyze import Position, mistakes, sentence
from mlperf_fast.workloads.minigo.board import BLACK
from mlperf_fast.workloads.minigo.sgf import Record
from mlperf_fast.workloads.minigo.vertices import COLUMNS

WIDTH, HEIGHT = 960, 400
LEFT, TOP, PLOT_WIDTH, PLOT_HEIGHT = 48, 56, 500, 296  # of the curve
BOARD_LEFT, BOARD_TOP, BOARD = 604, 56, 296
# Contrasts of 3 and more to the ground; the curve is blue, mistakes are vermilion (Okabe and Ito, 2008).
STYLE = """
svg { --ink: #1b1f24; --quiet: #57606a; --grid: #d0d7de; --paper: #ffffff; --curve: #0072b2; --mistake: #c84e00;
  --wood: #ecd9b0; --line: #6b5a36; background: var(--paper); font: 13px system-ui, "Segoe UI", sans-serif }
@media (prefers-color-scheme: dark) { svg { --ink: #e6edf3; --quiet: #9ba6b1; --grid: #38414b; --paper: #12161b;
  --curve: #56b4e9; --mistake: #f28e4b; --wood: #b79a62; --line: #4a3c20 } }
text { fill: var(--ink) } .quiet { fill: var(--quiet) } .title { font-size: 15px; font-weight: 600 }
.grid { stroke: var(--grid) } .half { stroke: var(--quiet); stroke-dasharray: 4 4 }
.area { fill: var(--curve); opacity: .15 } .curve { fill: none; stroke: var(--curve); stroke-width: 2 }
.mistake { fill: var(--mistake) } .wood { fill: var(--wood) } .line { stroke: var(--line) }
.B { fill: #111; stroke: #555 } .W { fill: #f7f7f7; stroke: #555 } .last { fill: none; stroke-width: 2 }
"""


def picture(record: Record, positions: Sequence[Position]) -> str:
    players = [
        f"{side}: {record.info[key]}" for side, key in (("Black", "PB"), ("White", "PW")) if record.info.get(key)
    ]
    title = plain(", ".join([*players, *([record.result] if record.result else [])]) or "Game of Go")
    rates = [position.win_rate for position in positions]
    story = (
        f"Black's win rate over {len(positions) - 1} moves, from {rates[0]:.0%} to {rates[-1]:.0%}, and the last board"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(story)}">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            f'<text class="title" x="{LEFT}" y="28">{escape(title[:100])}</text>',
            *curve(rates, mistakes(list(positions)), record.size),
            *board(record),
            "</svg>\n",
        ]
    )


def plain(text: str) -> str:
    """On one line, and without characters that XML doesn't have."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def curve(rates: Sequence[float], worst: Sequence[Position], size: int) -> list[str]:
    last = max(1, len(rates) - 1)

    def at(number: int, rate: float) -> str:
        return f"{LEFT + PLOT_WIDTH * number / last:.1f},{TOP + PLOT_HEIGHT * (1 - rate):.1f}"

    parts = []
    for rate in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = TOP + PLOT_HEIGHT * (1 - rate)
        kind = "half" if rate == 0.5 else "grid"
        parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{LEFT + PLOT_WIDTH}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="quiet" x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{rate:.0%}</text>')
    for number in sorted({0, last // 4, last // 2, 3 * last // 4, last}):
        x = LEFT + PLOT_WIDTH * number / last
        parts.append(
            f'<text class="quiet" x="{x:.1f}" y="{TOP + PLOT_HEIGHT + 18}" text-anchor="middle">{number}</text>'
        )
    parts.append(
        f'<text class="quiet" x="{LEFT}" y="{HEIGHT - 8}">Black wins, after so many moves; dots: mistakes</text>'
    )
    points = " ".join(at(number, rate) for number, rate in enumerate(rates))
    parts.append(f'<polygon class="area" points="{at(0, 0)} {points} {at(len(rates) - 1, 0)}"/>')
    parts.append(f'<polyline class="curve" points="{points}"/>')
    for position in worst:
        cx, cy = at(position.number + 1, rates[position.number + 1]).split(",")
        parts.append(
            f'<circle class="mistake" cx="{cx}" cy="{cy}" r="5"><title>{sentence(position, size)}</title></circle>'
        )
    return parts


def board(record: Record) -> list[str]:
    """The stones at the record's end, with coordinates and a ring on the last move."""
    size, games = record.size, sgf.replay(record)
    step = BOARD / size
    stones = games.stones()[0].tolist()

    def middle(row: int, column: int) -> tuple[float, float]:
        return BOARD_LEFT + step * (column + 0.5), BOARD_TOP + step * (row + 0.5)

    parts = [f'<rect class="wood" x="{BOARD_LEFT}" y="{BOARD_TOP}" width="{BOARD}" height="{BOARD}" rx="4"/>']
    first, last = middle(0, 0), middle(size - 1, size - 1)
    for i in range(size):
        x, y = middle(i, i)
        parts.append(
            f'<path class="line" d="M{x:.1f} {first[1]:.1f}V{last[1]:.1f}M{first[0]:.1f} {y:.1f}H{last[0]:.1f}"/>'
        )
        name = f'text-anchor="middle" font-size="10">{COLUMNS[i]}</text>'
        parts.append(f'<text class="quiet" x="{x:.1f}" y="{BOARD_TOP + BOARD + 14}" {name}')
        parts.append(
            f'<text class="quiet" x="{BOARD_LEFT - 6}" y="{middle(i, 0)[1] + 4:.1f}" text-anchor="end" '
            f'font-size="10">{size - i}</text>'
        )
    for row in range(size):
        for column in range(size):
            if stones[row][column]:
                x, y = middle(row, column)
                kind = "B" if stones[row][column] == BLACK else "W"
                parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{step * 0.46:.1f}"/>')
    move = int(games.facts().last[0])
    if 0 <= move < size**2:
        x, y = middle(*divmod(move, size))
        ring = "#fff" if stones[move // size][move % size] == BLACK else "#111"
        parts.append(f'<circle class="last" stroke="{ring}" cx="{x:.1f}" cy="{y:.1f}" r="{step * 0.24:.1f}"/>')
    return parts
