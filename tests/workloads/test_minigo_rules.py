"""The rules of Go in positions that everybody knows: ko, superko, snapback, suicide, captures, life and area."""

import numpy as np
import pytest
import torch
from simple_go import from_diagram, game_of, games_of, play

from mlperf_fast.workloads.minigo import board
from mlperf_fast.workloads.minigo.board import BLACK, WHITE, new_games


def lost(games):
    """(black, white) stones."""
    return int(games.facts().black_lost[0]), int(games.facts().white_lost[0])


def test_ko():
    games = game_of("""
        . X O . .
        X O . O .
        . X O . .
        . . . . .
        . . . . .""")  # fmt: skip
    assert play(games, (1, 2)) == board.LEGAL
    assert lost(games) == (0, 1)
    assert games.facts().ko.tolist() == [1 * 5 + 1]
    assert not games.legal()[0, 1 * 5 + 1]
    assert play(games, (1, 1)) == board.KO
    assert play(games, (4, 0), (4, 4), (1, 1)) == board.LEGAL  # after a threat and its answer
    assert lost(games) == (1, 1)


def test_ko_binds_the_side_to_move_alone():
    games = game_of("""
        . X O . .
        X O . O .
        . X O . .
        . . . . .
        . . . . .""")  # fmt: skip
    play(games, (1, 2))
    assert games.play([1 * 5 + 1], [BLACK]).tolist() == [board.LEGAL]


def test_taking_one_of_two_back_is_no_ko():
    games = game_of("""
        . X X O .
        X O O . O
        . X X O .
        . . . . .
        . . . . .""")  # fmt: skip
    assert play(games, (1, 3)) == board.LEGAL
    assert lost(games) == (0, 2)
    assert games.facts().ko.tolist() == [-1]
    assert play(games, (1, 2)) == board.LEGAL
    assert lost(games) == (1, 2)


def test_triple_ko_ends_by_superko():
    games = game_of("""
        . X O . . . . . .
        X O . O . . . . .
        . X O . . . . . .
        . X O . . . . . .
        X . X O . . . . .
        . X O . . . . . .
        . X O . . . . . .
        X O . O . . . . .
        . X O . . . . . .""")  # fmt: skip
    assert play(games, (1, 2), (4, 1), (7, 2), (1, 1), (4, 2)) == board.LEGAL
    assert games.facts().ko.tolist() == [4 * 9 + 1]  # elsewhere: simple ko doesn't forbid what comes
    assert play(games, (7, 1)) == board.SUPERKO
    assert not games.legal()[0, 7 * 9 + 1]
    assert int(games.planes()[0, 12, 7, 1]) == 0, "a capture that superko forbids is none"
    assert play(games.copy(), None, None, (7, 1)) == board.OVER
    assert play(games, (0, 8), (8, 8), (7, 1)) == board.LEGAL  # with two more stones it is another board


def test_sending_two_returning_one():
    """The board comes back with the other side to move: positional superko forbids it all the same."""
    games = game_of("""
        . . . O .
        X X O O .
        . X O . .
        . X O . .
        . X O . .""", to_move="W")  # fmt: skip
    play(games, (0, 1))
    one_sent = games.hashes()
    assert play(games, None, (0, 0), (0, 2)) == board.LEGAL
    assert lost(games) == (0, 2)
    assert games.facts().ko.tolist() == [-1]
    assert play(games, (0, 1)) == board.SUPERKO
    # The same without the history: a new game from this board.
    stones = games.stones()[0].flatten()
    fresh = new_games(
        1, 5, black=(stones == BLACK).nonzero()[:, 0].tolist(), white=(stones == WHITE).nonzero()[:, 0].tolist(),
        to_move=WHITE,
    )  # fmt: skip
    assert fresh.hashes() == games.hashes()
    assert play(fresh, (0, 1)) == board.LEGAL
    assert fresh.hashes() == one_sent


def test_snapback():
    games = game_of("""
        . . . . .
        . . . . .
        X X X X X
        X O O O X
        X O . . X""")  # fmt: skip
    assert play(games, (4, 2), (4, 3)) == board.LEGAL
    assert lost(games) == (1, 0)
    assert games.facts().ko.tolist() == [-1]
    assert play(games, (4, 2)) == board.LEGAL
    assert lost(games) == (1, 5)


@pytest.mark.parametrize(
    ("diagram", "verdict"),
    [
        (". X . . . / X . . . . / . . . . . / . . . . . / . . . . .", board.SUICIDE),  # one stone
        (". O X . . / O X . . . / X . . . . / . . . . . / . . . . .", board.SUICIDE),  # joins two, all shut in
        (". O X . . / O . X . . / X X . . . / . . . . . / . . . . .", board.LEGAL),  # keeps a liberty
        (". X O . . / X O . . . / O . . . . / . . . . . / . . . . .", board.LEGAL),  # takes both
        (". X O . . / O X . . . / X . . . . / . . . . . / . . . . .", board.SUICIDE),  # (0, 1) has one more liberty
    ],
)
def test_white_in_the_corner(diagram, verdict):
    games = game_of(diagram.replace("/", "\n"), to_move="W")
    before = games.rows.clone()
    assert play(games, (0, 0)) == verdict
    assert torch.equal(games.rows, before) == (verdict != board.LEGAL), "what isn't played changes nothing"


def test_a_capture_of_almost_the_whole_board():
    games = new_games(1, 19, black=[0], white=range(2, 361))
    assert games.liberties()[0].flatten().tolist() == [1, 0, *[1] * 359]
    assert play(games, (0, 1)) == board.LEGAL
    assert lost(games) == (0, 359)
    assert games.liberties()[0].flatten().tolist() == [3, 3, *[0] * 359]
    assert games.hashes() == new_games(1, 19, black=[0, 1]).hashes()


def test_merging_four_chains():
    before, after = (from_diagram(f"""
        . . X . . . .
        . . X . . . .
        . . X . O . .
        X X {mark} X X X X
        . . X O . . .
        . . X . . . .
        . . . . . . .""") for mark in ".X")  # fmt: skip
    games = games_of(before)
    assert play(games, (3, 2)) == board.LEGAL
    assert np.array_equal(games.liberties()[0].numpy(), after.liberty_counts())
    assert int(games.liberties()[0, 0, 2]) == 17


def test_dead_stones_in_pass_alive_regions_are_taken_off():
    games = game_of("""
        . X . O .
        X X X X X
        . . . . .
        O O O O O
        . O . O .""")
    expected = [[1] * 5, [1] * 5, [0] * 5, [-1] * 5, [-1] * 5]
    assert games.pass_alive()[0].tolist() == expected
    assert games.area()[0].tolist() == expected
    assert games.scores(0.5).tolist() == [-0.5]
    assert games.all_pass_alive().tolist() == [False]
    games.play([10]), games.play([11], [BLACK]), games.play([12], [BLACK]), games.play([13], [BLACK])
    assert games.all_pass_alive().tolist() == [False]
    assert games.play([14], [BLACK]).tolist() == [board.LEGAL]
    assert games.all_pass_alive().tolist() == [True]
    assert games.scores(0).tolist() == [5]


@pytest.mark.parametrize(
    ("columns", "inside", "alive"), [(3, ".", True), (3, "O", True), (4, ".", False), (4, "O", True)]
)
def test_room_in_a_pass_alive_region(columns, inside, alive):
    """One empty point away from the walls is too little for an eye and a second one; two may be enough."""
    wide = " ." * (columns - 3)
    games = game_of(f"""
        X X{wide.replace(".", "X")} X X X .{" ." * (4 - columns)} . .
        X .{wide} . . X .{" ." * (4 - columns)} . .
        X .{wide} {inside} . X X X{" ." * (4 - columns)} .
        X .{wide} . . X . X{" ." * (4 - columns)} .
        X X{wide.replace(".", "X")} X X X X X{" ." * (4 - columns)} .
        X . X . . . . . .
        X X X . . . . . .
        . . . . . . . . .
        . . . . . . . . O""")
    assert bool((games.pass_alive()[0, 1:4, 1 : 1 + columns] == 1).all()) == alive
    assert bool((games.pass_alive()[0, 0, :5] == 1).all()), "the chain has two eyes in any case"
    assert not games.pass_alive()[0, 8].any()


def test_seki_is_nobodys():
    games = game_of("""
        X X X X X X X
        X O O O O O X
        X O . X X O X
        X O X X . O X
        X O O O O O X
        X X X X X X X
        . X . X . . .""")
    owner = games.area()[0]
    assert owner[2, 2] == owner[3, 4] == 0
    assert games.pass_alive()[0, 2].tolist() == [1, 0, 0, 0, 0, 0, 1]
    assert games.scores(0).tolist() == [(49 - 14 - 2) - 14]


def test_an_empty_board_is_nobodys():
    games = new_games(1, 9)
    assert not games.pass_alive().any()
    assert games.scores(7.5).tolist() == [-7.5]
    games.play([40])
    assert games.scores(7.5).tolist() == [81 - 7.5]  # all other stones count as alive
    assert not games.pass_alive().any()
