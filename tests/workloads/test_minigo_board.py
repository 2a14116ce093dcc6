"""The Go engine against a simple one in sets of points; planes, symmetries, playouts, and the buffer of games."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import EXAMPLES, threads
from simple_go import COLOURS, SIDES, SimpleGo, from_diagram, game_of, games_of, play

from mlperf_fast import _C
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.minigo import board
from mlperf_fast.workloads.minigo.board import BLACK, new_games, transform_planes, transform_policies

every_level = pytest.mark.parametrize("level", _C.supported_levels())


@pytest.fixture
def native(level, monkeypatch):
    """All calls go to the engine of one instruction set."""
    monkeypatch.setattr(board, "_C", _C.load(level))


def verdicts(games):
    """Of every move in a single game: int list [points + 1]."""
    n = games.size**2 + 1
    return games[[0] * n].play(torch.arange(n, dtype=torch.int32)).tolist()


def point_of(move, size):
    return None if move == size**2 else divmod(move, size)


def same(simple, games):
    """All that a game of the engine tells, whole board."""
    facts = games.facts()
    ko = -1 if simple.ko is None else simple.number(simple.ko)
    expected = [SIDES[simple.to_move], simple.moves, simple.passes, ko, simple.lost["B"], simple.lost["W"], simple.last]
    assert [int(fact[0]) for fact in facts] == expected
    assert np.array_equal(games.stones()[0].numpy(), simple.array(simple.stones))
    assert np.array_equal(games.liberties()[0].numpy(), simple.liberty_counts())
    assert np.array_equal(games.planes()[0].numpy(), simple.planes())
    alive = simple.pass_alive_array()
    assert np.array_equal(games.pass_alive()[0].numpy(), alive)
    empty = simple.array(simple.stones) == 0
    assert bool(games.all_pass_alive()[0]) == bool((alive[empty] != 0).all())
    owners = simple.array(simple.owners())
    assert np.array_equal(games.area()[0].numpy(), owners)
    assert float(games.scores(7.5)[0]) == int(owners.sum(dtype=int)) - 7.5


def random_game(size, seed, moves, *, fill_eyes, pass_share=0.02, every=1):
    """Plays both engines side by side and yields after each move, with the verdicts before every `every`-th."""
    draw = random.Random(seed)
    simple, games = SimpleGo(size), new_games(1, size, max_stones=moves + 1)
    for number in range(moves):
        legal = games.legal()[0]
        if number % every == 0:
            expected = simple.verdicts()
            assert verdicts(games) == expected
            assert legal.tolist() == [verdict == board.LEGAL for verdict in expected]
        if not legal[-1]:
            assert simple.passes == 2
            return
        points = [p for p in simple.points() if legal[simple.number(p)] and (fill_eyes or not eye(simple, p))]
        point = draw.choice(points) if points and draw.random() >= pass_share else None
        assert games.play([simple.number(point)]).tolist() == [board.LEGAL]
        simple.play(point)
        yield simple, games, expected


def eye(simple, point):
    """Whether it is an eye of the side to move: own stones beside it, and not too many of the others diagonally."""
    if any(simple.stones.get(near) != simple.to_move for near in simple.beside(point)):
        return False
    corners = [(point[0] + r, point[1] + c) for r in (-1, 1) for c in (-1, 1)]
    inside = [corner for corner in corners if {*corner} <= set(range(simple.size))]
    others = sum(simple.stones.get(corner, simple.to_move) != simple.to_move for corner in inside)
    return others <= (len(inside) == 4)


@every_level
@EXAMPLES
@given(size=st.integers(5, 9), seed=st.integers(0, 10**6), fill_eyes=st.booleans())
def test_random_games_go_as_in_the_simple_engine(native, size, seed, fill_eyes):
    for number, (simple, games, _) in enumerate(random_game(size, seed, 60, fill_eyes=fill_eyes)):
        assert np.array_equal(games.stones()[0].numpy(), simple.array(simple.stones))
        if number % 10 == 0:
            same(simple, games)
    same(simple, games)


def test_random_games_meet_every_rule():
    """What the comparison above is worth: such games hold every verdict, large captures, and pass-alive regions."""
    seen, largest, alive = set(), 0, False
    for seed in range(8):
        before = 0
        for simple, _, expected in random_game(5, seed, 150, fill_eyes=seed % 2 == 0, pass_share=0.05):
            seen |= set(expected)
            lost = sum(simple.lost.values())
            largest, before = max(largest, lost - before), lost
            alive = alive or bool(simple.pass_alive("B") and simple.pass_alive("W"))
    assert seen >= {board.LEGAL, board.OCCUPIED, board.SUICIDE, board.KO, board.SUPERKO}
    assert largest >= 8
    assert alive


@every_level
def test_a_whole_game_on_nineteen_lines(native):
    for number, (simple, games, _) in enumerate(random_game(19, 1, 400, fill_eyes=False, pass_share=0, every=80)):
        if number % 133 == 132 or simple.passes == 2:
            same(simple, games)


@every_level
@pytest.mark.parametrize("size", range(5, 20))
def test_every_size(native, size):
    """The wall is where it should be: stones on the whole edge, and a chain round the board."""
    games, simple = new_games(1, size), SimpleGo(size)
    edge = [p for p in simple.points() if {0, size - 1} & set(p)]
    for point in edge:
        assert games.play([simple.number(point)], [BLACK]).tolist() == [board.LEGAL]
        simple.play(point, "B")
    same(simple, games)
    assert int(games.liberties()[0, 0, 0]) == 4 * (size - 2) - 4
    assert games.facts().moves.tolist() == [4 * size - 4]


def children(games):
    """One game for each legal move of each of these."""
    which, moves = games.legal().nonzero(as_tuple=True)
    found = games[which]
    assert not found.play(moves.to(torch.int32)).any()
    return found


def perft(simple, depth):
    """The number of move sequences of that length."""
    legal = [p for p in [*simple.points(), None] if simple.verdict(p) == board.LEGAL]
    if depth == 1:
        return len(legal)
    total = 0
    for point in legal:
        child = SimpleGo(simple.size, simple.stones, simple.to_move)
        child.seen, child.ko, child.passes = set(simple.seen), simple.ko, simple.passes
        child.play(point)
        total += perft(child, depth - 1)
    return total


@every_level
@pytest.mark.parametrize(
    ("diagram", "depth"),
    [
        (". . . . . / . . . . . / . . . . . / . . . . . / . . . . .", 2),
        (". X O . . / X . X O . / . X O O . / X X O . O / . X O O .", 4),  # a ko, eyes, stones in atari
        ("X X X X X / O O O O . / . O . O O / X O O O X / X . X X .", 4),  # large captures
        ("O X . X X / . O X X . / O O O X X / O . O O X / . O O . O", 5),
    ],
)
def test_perft(native, diagram, depth):
    simple = from_diagram(diagram.replace("/", "\n"))
    games = games_of(simple, max_stones=7)
    for _ in range(depth):
        games = children(games)
    assert len(games) == perft(simple, depth)


def test_perft_of_an_empty_board():
    games, counts = new_games(1, 5, max_stones=3), []
    for _ in range(2):
        games = children(games)
        counts.append(len(games))
    assert counts == [25 + 1, 25 * (24 + 1) + (25 + 1)]


# Planes, symmetries, playouts -------------------------------------------------------------------------------------


def turned(array, symmetry):
    return np.rot90(array.T if symmetry & 4 else array, symmetry & 3)


def opening(n, size, moves, seed=0):
    """n games after so many random moves, passes where there is nothing else."""
    games, draw = new_games(n, size), torch.Generator().manual_seed(seed)
    for _ in range(moves):
        weights = games.legal().float()
        weights[:, -1] *= 1e-6
        assert not games.play(torch.multinomial(weights, 1, generator=draw)[:, 0]).any()
    return games


def test_missing_history_is_zeros():
    games = new_games(1, 5)
    assert games.planes()[0, :8].sum() == 0
    play(games, (0, 0), None, (1, 1))
    counts = games.planes()[0].sum((1, 2)).tolist()
    #                  now  -1   -2    -3: the empty board
    assert counts == [0, 2, 0, 1, 0, 1, 0, 0, 0, 0, 1, 1, 0]


@every_level
@pytest.mark.parametrize("size", [5, 8, 19])
def test_symmetries(native, size):
    games = opening(1, size, size * 4)[[0] * 8]
    symmetries = torch.arange(8, dtype=torch.int32)
    plain, planes = games.planes(), games.planes(symmetries)
    for s in range(8):
        assert np.array_equal(planes[s].numpy(), [turned(plane, s) for plane in plain[s].numpy()])
    assert torch.equal(transform_planes(plain, symmetries), planes)
    assert torch.equal(transform_planes(planes, symmetries, back=True), plain)
    policies = torch.rand(8, size**2 + 1)
    found = transform_policies(policies, size, symmetries)
    for s in range(8):
        expected = turned(policies[s, :-1].reshape(size, size).numpy(), s)
        assert np.array_equal(found[s, :-1].reshape(size, size).numpy(), expected)
    assert torch.equal(found[:, -1], policies[:, -1])
    assert torch.equal(transform_policies(found, size, symmetries, back=True), policies)
    assert len({tuple(one.tolist()) for one in found}) == 8


def test_playouts_depend_on_the_seed_and_the_place_alone():
    games = opening(5, 9, 20)
    moves, scores = games.playouts(7, seed=3)
    assert moves.shape == scores.shape == (5, 7)
    for n in (1, 2, 3):
        with threads(n):
            assert all(map(torch.equal, games.playouts(7, seed=3), (moves, scores)))
    part = games[2:3].playouts(4, seed=3, first=2 * 7 + 3)
    assert torch.equal(part[0][0], moves[2, 3:])
    assert torch.equal(part[1][0], scores[2, 3:])
    assert not torch.equal(games.playouts(7, seed=4)[1], scores)
    assert len(set(zip(moves.flatten().tolist(), scores.flatten().tolist(), strict=True))) > 25


def test_playouts_end_where_eyes_are_left():
    """Without filling its eyes Black, who has two, keeps all that it has; the middle goes to whoever comes first."""
    games = game_of("""
        . X . O .
        X X X X X
        . . . . .
        O O O O O
        . O . O .""")
    moves, scores = games.playouts(200, seed=0)
    # Black takes the dead stone; the middle can't be split but by stones that stay.
    assert scores.min() >= -5
    assert scores.max() <= 5
    assert set(scores.abs().flatten().tolist()) <= {1, 3, 5}
    assert moves.min() >= 2
    assert moves.max() < 100
    long, _ = new_games(1, 9).playouts(50, seed=0, max_moves=30)
    assert set(long.flatten().tolist()) == {30}


@pytest.mark.parametrize("own_eyes", [True, False])
def test_a_playouts_moves_are_equally_likely(own_eyes):
    """One move each where moves give different scores: each score as often as there are moves to it."""
    games_of_22_moves = opening(300, 5, 22)
    for number in range(300):
        games = games_of_22_moves[number : number + 1]
        simple = SimpleGo(5, to_move=COLOURS[int(games.facts().to_move[0])])
        simple.stones = {(r, c): COLOURS[int(x)] for (r, c), x in np.ndenumerate(games.stones()[0].numpy()) if x}
        legal = games.legal()[0]
        for point in simple.points() if not own_eyes else ():
            legal[simple.number(point)] &= not eye(simple, point)
        legal[-1] &= own_eyes
        after = games[[0] * int(legal.sum())]
        assert not after.play(legal.nonzero()[:, 0]).any()
        expected = torch.bincount(after.scores(25).abs().long(), minlength=51) / max(len(after), 1)
        if (expected > 0).sum() >= 5:
            break
    n = 40_000
    scores = games.playouts(n, seed=5, max_moves=1, own_eyes=own_eyes)[1][0]
    found = torch.bincount(25 - scores, minlength=51) / n
    assert ((found - expected).abs() <= 4.5 * (expected * (1 - expected) / n).sqrt()).all()
    assert (expected > 0).sum() >= 5


# The buffer and its errors ----------------------------------------------------------------------------------------


def test_rows_are_values():
    games = new_games(4, 7)
    other = games.copy()
    assert games[1:3].play([10, -1]).tolist() == [0, 0]
    assert games.facts().last.tolist() == [-1, 10, -1, -1]
    assert other.facts().moves.tolist() == [0] * 4
    picked = games[[1, 1, 0]]
    picked.play([11, 12, 13])
    assert picked.facts().last.tolist() == [11, 12, 13]
    assert games.facts().last.tolist() == [-1, 10, -1, -1]
    assert len(games[:0].planes()) == 0
    assert games[:0].play([]).tolist() == []


def test_many_games_on_many_threads_go_their_own_ways():
    with threads(1):
        alone = opening(64, 9, 30)
    with threads(3):
        games = opening(64, 9, 30)
    assert torch.equal(alone.rows, games.rows)
    assert len(set(games.hashes().tolist())) > 50


def test_a_full_game_takes_passes_only():
    games = new_games(1, 5, max_stones=2)
    assert play(games, (0, 0), None, (1, 1), (2, 2)) == board.FULL
    assert games.legal()[0].tolist() == [False] * 25 + [True]
    assert play(games, None, None) == board.LEGAL
    assert not games.legal().any()
    assert play(games, None) == board.OVER


def test_moves_off_the_board():
    games = new_games(4, 5)
    assert games.play([26, -2, 25, 0]).tolist() == [board.OFF_BOARD, board.OFF_BOARD, board.LEGAL, board.LEGAL]
    assert games.facts().moves.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda games: new_games(1, 4), "board's size is 4; expected 5 to 19"),
        (lambda games: new_games(1, 20), "board's size is 20; expected 5 to 19"),
        (lambda games: new_games(1, 9, max_stones=0), "max_stones is 0; expected 1 to 1048576"),
        (lambda games: new_games(1, 9, black=[81]), "point 81 of the set-up isn't on the board"),
        (lambda games: new_games(1, 9, black=[3], white=[3]), "point 3 of the set-up is named twice"),
        (lambda games: new_games(1, 9, black=[0], white=[1, 9]), "set-up makes a chain without liberties"),
        (lambda games: new_games(1, 9, black=[1, 9], white=[0]), "set-up makes a chain without liberties"),
        (lambda games: games.play([1]), r"moves has shape \[1\], expected \[3\], one for each game"),
        (lambda games: games.play([1.0, 2.0, 3.0]), "moves is float32, expected whole numbers"),
        (lambda games: games.play([1, 2, 3], [1, 2]), r"colours has shape \[2\], expected \[3\]"),
        (lambda games: games[::2], "a slice of games has step 2, expected 1"),
        (lambda games: games.planes([0, 1, 8]), "a symmetry is 8; expected 0 to 7"),
        (lambda games: games.planes(out=torch.empty(3, 13, 9, 8, dtype=torch.uint8)), "out has shape"),
        (lambda games: games.playouts(1, 0, max_moves=0), "max_moves is 0; expected 1 to"),
        (lambda games: transform_policies(torch.ones(2, 81), 9, torch.zeros(2).int()), "policies has shape"),
        (lambda games: transform_planes(torch.ones(2, 81), torch.zeros(2).int()), "planes has shape"),
        (
            lambda games: board.Games(torch.zeros(2, 4096, dtype=torch.uint8), 9, 9).legal(),
            "row 0 of the buffer holds no",
        ),
        (lambda games: board.Games(games.rows[:, :-64].contiguous(), 9, 9).legal(), "row 0 of the buffer holds no"),
    ],
)
def test_errors(wrong, message):
    with pytest.raises(UserError, match=message):
        wrong(new_games(3, 9))
