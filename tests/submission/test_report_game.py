"""A game in a log becomes a board and a curve in the report; what has another form becomes nothing."""

import math
import xml.etree.ElementTree as ElementTree

import closed_logs
import pytest
from closed_logs import GAME
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib", reason="the extra `report` is not installed")

from mlperf_fast.submission import report_figures, report_game
from mlperf_fast.submission.game import Game, final_game
from mlperf_fast.submission.logs import Log, read_log
from mlperf_fast.submission.records import Record
from mlperf_fast.submission.report_html import Html
from mlperf_fast.submission.report_svg import drawing


def game(**fields):
    return final_game([Record(1, 0.0, "final_game", {**GAME, **fields}, {})])


def pictures(*games, counted=()):
    """What stands in the report for runs with these games; counted: the places of those in the score."""
    logs = [Log(path=f"result_{i}.txt", findings=(), game=one) for i, one in enumerate(games)]
    runs = report_figures.runs(logs, [logs[i] for i in counted])
    with drawing():
        return "".join(report_game.pictures(runs, "anchor"))


def svgs(text):
    """The pictures in a text as trees: board, and win rates where there are any."""
    return ElementTree.fromstring(f"<all>{text}</all>").findall(".//svg")


def colours(tree, of, name):
    """How many elements have this colour."""
    return sum(f"fill: var(--{name})" in one.get("style", "") for one in tree.iter(of))


def test_the_game_of_a_log(tmp_path):
    path = closed_logs.write(tmp_path / "result_0.txt")
    assert read_log(path).game is None
    log = read_log(closed_logs.add_game(closed_logs.add_game(path, black="an earlier one")))
    board = (".XO..", ".XO..", "XXOO.", ".X.O.", ".XXO.")
    rates = (0.5, None, 0.625, None, 0.875, None)
    assert log.game == Game("mlperf_fast", "100 random games a move", 3.5, 6, board, rates)
    assert log.complies, "an event of our own is no fault"
    assert log.findings == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"black": None}, {"white": ["x"]}, {"white": ""}, {"score": "3.5"}, {"score": math.nan}, {"score": 1e9},
        {"score": True}, {"moves": -1}, {"moves": 6.0}, {"moves": True}, {"moves": 10**9}, {"board": None},
        {"board": "X" * 25}, {"board": []}, {"board": ["...."] * 4}, {"board": ["." * 20] * 20},
        {"board": [[0] * 5] * 5}, {"board": [".....", ".....", "....", ".....", "....."]}, {"board": ["....."] * 6},
        {"board": ["..x.."] * 5}, {"board": ["....."] * 10**5}, {"board": ["." * 10**6] * 5},
        {"board": [".....", 1, None, {}, "....."]},
    ],
)  # fmt: skip
def test_what_has_another_form_is_no_game(fields):
    assert game() is not None
    assert game(**fields) is None


def test_an_event_that_holds_no_fields_is_no_game():
    for value in (None, [], [GAME], "final_game", 7, {}):
        assert final_game([Record(1, 0.0, "final_game", value, {})]) is None
    assert final_game([]) is None


def test_estimates_that_are_none():
    assert game(win_rates=[0, 1, -0.1, 1.1, math.nan, "0.5"]).win_rates == (0, 1, None, None, None, None)
    for unusable in (None, [], [0.5] * 7, [0.5] * 10**6, "halves", {"0": 0.5}):
        assert game(win_rates=unusable).win_rates == (), "whose they are isn't known"
    assert len(svgs(pictures(game(win_rates=[None] * 6)))) == 1
    assert len(svgs(pictures(game()))) == 2


def test_a_long_name_is_cut():
    assert game(black="x" * 10**7).black == "x" * 59 + "…"


def test_results_in_words():
    said = {score: game(score=score).result for score in (3.5, -0.5, 12, 0, -0.0)}
    assert said == {3.5: "Black wins by 3.5", -0.5: "White wins by 0.5", 12: "Black wins by 12", 0: "a draw"}


def test_the_board_is_drawn_and_told():
    text = pictures(game())
    board, rates = svgs(text)
    assert (colours(board, "use", "black"), colours(board, "use", "white")) == (7, 6)
    assert [one.text for one in board.iter("text")] == [*"ABCDE", *"54321"]
    said = "mlperf_fast (Black) against 100 random games a move (White): Black wins by 3.5 after 6 moves."
    assert text.count(said) == 2, "in the caption, and for who can't see it"
    assert "5 lines. 7 stones of Black: B5 B4 A3 B3 B2 B1 C1. " in board.get("aria-label")
    assert "6 stones of White: C5 C4 C3 D3 D2 D1" in board.get("aria-label")
    assert "As Black saw it: 50% before move 1, 88% before move 5" in rates.get("aria-label")
    assert "White" not in rates.get("aria-label")
    assert [one.text for one in rates.iter("text")][-2:] == ["●", "as Black saw it"]


def test_two_players_have_a_line_each():
    _, rates = svgs(pictures(game(win_rates=[0.5, 0.25, 0.75, 0.125, 1, 0])))
    assert "As Black saw it: 50% before move 1, 100% before move 5" in rates.get("aria-label")
    assert "As White saw it: 25% before move 2, 0% before move 6, between 0% and 25%" in rates.get("aria-label")
    assert (colours(rates, "use", "series-1"), colours(rates, "use", "series-2")) == (3, 3)


def test_letters_leave_out_i():
    board, *_ = svgs(pictures(game(board=["." * 19] * 18 + ["X" * 19])))
    names = [one.text for one in board.iter("text")]
    assert "".join(names[:19]) == "ABCDEFGHJKLMNOPQRST"
    assert names[19:] == [str(i) for i in range(19, 0, -1)]
    assert "A1 B1" in board.get("aria-label")
    assert "T1" in board.get("aria-label")


@pytest.mark.parametrize(
    ("size", "count", "first"),
    [(5, 1, (2, 2)), (6, 0, None), (7, 5, (2, 2)), (9, 5, (2, 2)), (10, 4, (2, 2)), (13, 5, (3, 3)), (19, 9, (3, 3))],
)
def test_star_points(size, count, first):
    points = report_game.star_points(size)
    assert len(set(points)) == len(points) == count
    assert min(points, default=None) == first
    assert {(size - 1 - x, y) for x, y in points} == {(y, x) for x, y in points} == set(points)


def test_one_game_is_shown_of_a_run_in_the_score_first():
    games = [game(black=name) for name in ("failed", "first", "second")]
    assert "second (Black)" in pictures(*games, counted=[2])
    assert "A game from the end of run 1<" in pictures(*games, counted=[1, 2])
    assert "failed (Black)" in pictures(*games)
    assert pictures(None, games[1], counted=[0]).count("<svg") == 2
    assert pictures(None, None, counted=[0]) == ""


JUNK = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
BOARDS = st.integers(4, 20).flatmap(
    lambda size: st.lists(st.text("XO.", min_size=size, max_size=size), min_size=size, max_size=size)
)
HOSTILE_GAMES = st.fixed_dictionaries(
    {
        "black": st.text(min_size=1, max_size=5), "white": st.just("</svg>") | JUNK, "score": st.floats(-9, 9) | JUNK,
        "moves": st.integers(0, 3), "board": BOARDS | JUNK, "win_rates": st.lists(st.floats(0, 1) | JUNK, max_size=3),
    }
)  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(value=JUNK | HOSTILE_GAMES)
def test_any_event_is_drawn_or_left_out(value):
    one = final_game([Record(1, 0.0, "final_game", value, {})])
    text = pictures(one)
    assert (text == "") == (one is None)
    for svg in svgs(text):
        assert "nan" not in Html(ElementTree.tostring(svg, encoding="unicode")).lower()
