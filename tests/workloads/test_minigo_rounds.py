"""Games that move on one by one, and the opponent that judges positions by random games."""

import pytest
import torch
from numerics import threads
from simple_go import game_of
from simple_search import answer

from mlperf_fast.workloads.minigo.board import new_games
from mlperf_fast.workloads.minigo.search import Options, Search

# done() ----------------------------------------------------------------------------------------------------------


def test_games_that_move_on_by_themselves_play_what_they_play_together():
    n, moves = 6, 5
    options = Options(komi=0.5, soft_moves=3)

    def readouts(search):
        full = search.draw_full(0.6)
        return torch.where(full, 24, 6), full

    together = Search(new_games(n, 5), options, seed=3)
    for _ in range(moves):
        more, full = readouts(together)
        together.start(more, full)
        while len(batch := together.leaves()):
            answer(together, batch)
        together.play(together.choose(prune=full).moves)

    alone = Search(new_games(n, 5), options, seed=3)
    more, full = readouts(alone)
    alone.start(more, full)
    apart = False
    while len(batch := alone.leaves()) or alone.done().any():
        if len(batch):
            assert not alone.done()[batch.games.long()].any(), "leaves wait"
            answer(alone, batch)
        played = alone.choose(alone.done(), prune=full).moves
        assert torch.equal(played >= 0, alone.done())
        alone.play(played)
        assert not alone.done()[played >= 0].any(), "no target yet"
        counts = alone.games.facts().moves
        apart |= int(counts.max()) > int(counts.min()) + 1
        more, next_full = readouts(alone)
        full = torch.where(played >= 0, next_full, full)
        alone.start(torch.where((played >= 0) & (counts < moves), more, 0), full)
    assert apart
    assert alone.games.facts().moves.tolist() == [moves] * n
    assert torch.equal(alone.games.rows, together.games.rows)


def test_what_has_no_target_is_not_done():
    games = new_games(4, 5)
    games.play([25, 25, -1, -1])
    games.play([25, -1, -1, -1])
    search = Search(games, Options(leaves=1))
    assert search.done().tolist() == [False] * 4
    search.start([3, 3, 0, 1], [False] * 4)
    assert search.done().tolist() == [False] * 4
    answer(search, search.leaves())
    assert search.done().tolist() == [False, False, False, True]
    while len(batch := search.leaves()):
        assert batch.games.tolist() == [1]
        answer(search, batch)
    assert search.done().tolist() == [False, True, False, True], "the first is over"
    search.start([0, 2, 0, 0], [False] * 4)
    assert search.done().tolist() == [False, False, False, True]
    search.reset([False, False, False, True])
    assert not search.done().any()


# play_out() ------------------------------------------------------------------------------------------------------


def by_random_games(search, readouts):
    n, moves = len(search), search.games.size**2 + 1
    search.start([readouts] * n, [False] * n)
    while rows := len(search.leaves()):
        search.take(torch.full((rows, moves), 1 / moves), search.play_out())


def first_values(n, seed, *, ids=None, komi=0.5, moves=()):
    games = new_games(n, 5)
    for move in moves:
        games.play([move] * n)
    search = Search(games, Options(komi=komi), seed=seed)
    if ids is not None:
        search.reset(ids=ids)
    search.start([1] * n, [False] * n)
    search.leaves()
    return search.play_out()


def test_values_are_those_of_random_games():
    n = 3000
    values = first_values(n, seed=1, komi=2.5, moves=[12])
    assert set(values.tolist()) == {-1, 1}
    games = new_games(1, 5)
    games.play([12])
    _, scores = games.playouts(n, 1, max_moves=75)
    assert float(values.mean()) == pytest.approx(float((scores - 2.5).sign().mean()), abs=0.07)
    assert (first_values(8, seed=1, komi=30) == -1).all()
    assert (first_values(8, seed=1, komi=-30) == 1).all()
    often = int(scores.flatten().mode().values)
    assert 0.0 in first_values(200, seed=1, komi=often, moves=[12]), "a draw"


def test_values_come_from_the_seed_the_id_and_the_position():
    values = first_values(200, seed=1)
    assert torch.equal(first_values(200, seed=1), values)
    assert not torch.equal(first_values(200, seed=2), values)
    assert not torch.equal(first_values(200, seed=1, moves=[25]), values)
    assert torch.equal(first_values(50, seed=1, ids=range(50, 100)), values[50:100])

    def roots():
        search = Search(new_games(20, 6), Options(komi=4.5, own_eyes=False), seed=4)
        by_random_games(search, 30)
        return search.roots()

    with threads(1):
        alone = roots()
    with threads(3):
        assert all(map(torch.equal, roots(), alone))
    assert len(set(alone.own_W.tolist())) > 3


def test_a_search_by_random_games_takes_what_decides_the_game():
    games = game_of("""
        . X X X .
        X O O O X
        X O . O X
        X O O O X
        . X X X .""", to_move="W")  # fmt: skip
    taken = games.copy()
    taken.play([25])
    search = Search(taken, Options(komi=4.5, own_eyes=False, soft_moves=0))
    by_random_games(search, 120)
    assert search.choose().moves.tolist() == [12], "all of White's stones"
    assert float(search.choose().q) > 0.5


def test_nothing_waits():
    assert Search(new_games(2, 5)).play_out().shape == (0,)
