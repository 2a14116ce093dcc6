"""The cache of the network's answers: what shares an entry and what doesn't, its means, its memory, its searches."""

import threading

import numpy as np
import pytest
import torch
from numerics import threads
from simple_go import game_of
from simple_search import answer, fake, read

from mlperf_fast.errors import UserError
from mlperf_fast.workloads.minigo.board import Games, new_games, transform_policies
from mlperf_fast.workloads.minigo.search import Cache, Options, Search

CORNER = """
    . X . . .
    O . X . .
    . O . . .
    . . . X .
    . . . . ."""


def turned(symmetry, diagram=CORNER):
    rows = np.array([line.split() for line in diagram.split("\n") if line.strip()])
    rows = np.rot90(rows.T if symmetry & 4 else rows, symmetry & 3)
    return "\n".join(" ".join(row) for row in rows)


def at_roots(cache, games: Games, copies=1):
    """(search, leaves) of each root, of so many copies of each game; with 64 of them all symmetries are asked for."""
    search = Search(games[[i for i in range(len(games)) for _ in range(copies)]], cache=cache)
    search.reset(ids=list(range(copies)) * len(games))
    search.start([1] * len(search), [False] * len(search))
    return search, search.leaves()


def first_read(cache, games: Games, copies=64):
    """(search, how many the network was asked for) after each root was read."""
    search, batch = at_roots(cache, games, copies)
    if len(batch):
        as_it_sees(search, batch)
    return search, len(batch)


def as_it_sees(search, batch):
    """The answers of a network that knows nothing of symmetries."""
    found = [fake(planes) for planes in batch.planes.numpy()]
    search.take(
        torch.from_numpy(np.stack([policy for policy, _ in found])),
        torch.from_numpy(np.array([value for _, value in found], np.float32)),
    )


# One entry ---------------------------------------------------------------------------------------------------------


def test_answers_are_averaged_and_each_symmetry_counts_once():
    cache = Cache(1, 5)
    games = game_of(CORNER)
    search, batch = at_roots(cache, games, 40)
    as_it_sees(search, batch)
    legal = games.legal()[0]
    seen, policies, values = set(), torch.zeros(26), 0.0
    roots = search.roots()
    for game, turn in enumerate(batch.symmetries):
        if int(turn) not in seen:
            seen.add(int(turn))
            policy, value = fake(batch.planes[game].numpy())
            policies += transform_policies(torch.from_numpy(policy)[None], 5, turn[None], back=True)[0]
            values += float(value)
        expected = torch.where(legal, policies, 0)
        np.testing.assert_allclose(roots.P[game], expected / expected.sum(), rtol=1e-5)
        assert float(roots.own_W[game]) == pytest.approx(values / len(seen), abs=1e-6)
    assert len(seen) == 8
    assert cache.counts()[:3] == (0, 40, 1)


def test_the_symmetries_of_a_position_share_an_entry():
    cache = Cache(1, 5)
    first, asked = first_read(cache, game_of(CORNER))
    assert asked == 64
    policy = first_read(cache, game_of(CORNER))[0].roots().P[0]
    for symmetry in range(8):
        search, asked = first_read(cache, game_of(turned(symmetry)))
        assert asked == 0
        expected = transform_policies(policy[None], 5, torch.tensor([symmetry], dtype=torch.int32))
        np.testing.assert_allclose(search.roots().P, expected.expand(64, 26), rtol=1e-5)
        np.testing.assert_allclose(search.roots().own_W, first.roots().own_W[-1:].expand(64), rtol=1e-6)
    assert cache.counts()[:3] == (9 * 64, 64, 1)


def test_a_new_symmetry_is_a_miss():
    cache = Cache(1, 5)
    search, batch = at_roots(cache, game_of(CORNER))
    known = int(batch.symmetries)
    as_it_sees(search, batch)
    _, batch = at_roots(cache, game_of(CORNER), 64)
    assert set(batch.symmetries.tolist()) == set(range(8)) - {known}


def test_a_symmetric_position_keeps_its_orientation():
    cache = Cache(1, 5)
    for black in ([12], [2], [10]):  # the last two are turns of each other
        games = new_games(1, 5, black=black)
        assert first_read(cache, games)[1] == 64
        assert first_read(cache, games)[1] == 0


# The key -----------------------------------------------------------------------------------------------------------


def played(games, *moves):
    for move in moves:
        assert games.play([move]).tolist() == [0]
    return games


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (lambda: new_games(1, 5, black=[3]), lambda: new_games(1, 5, black=[3]), True),
        (lambda: new_games(1, 5, black=[3]), lambda: new_games(1, 5, white=[3]), False),
        (lambda: new_games(1, 5, black=[3]), lambda: new_games(1, 5, black=[3], to_move=-1), False),
        (lambda: played(new_games(1, 5), 3, 11, 7), lambda: played(new_games(1, 5), 7, 11, 3), True),
        (lambda: new_games(1, 5, black=[3]), lambda: played(new_games(1, 5, black=[3], to_move=-1), 25), False),
    ],
    ids=["same", "colour", "side", "earlier boards", "pass"],
)
def test_keys(one, other, same):
    cache = Cache(1, 5)
    first_read(cache, one())
    assert first_read(cache, one())[1] == 0
    assert first_read(cache, other())[1] == (0 if same else 64)


KO = """
    . X O . .
    X O . O .
    . X O . .
    . . . . .
    . . . . ."""
SEND_TWO = """
    . . . O .
    X X O O .
    . X O . .
    . X O . .
    . X O . ."""


@pytest.mark.parametrize(
    ("diagram", "to_move", "moves"), [(KO, "B", [7]), (SEND_TWO, "W", [1, 25, 0, 2])], ids=["ko", "superko"]
)
def test_points_that_are_illegal_are_part_of_the_key(diagram, to_move, moves):
    games = played(game_of(diagram, to_move), *moves)
    stones = games.stones()[0].flatten()
    black, white = ((stones == colour).nonzero()[:, 0].tolist() for colour in (1, -1))
    fresh = new_games(1, 5, black=black, white=white, to_move=-1)
    assert torch.equal(fresh.stones(), games.stones())
    assert not torch.equal(fresh.legal(), games.legal())
    cache = Cache(1, 5)
    first_read(cache, games)
    assert first_read(cache, fresh)[1] == 64


# Its memory --------------------------------------------------------------------------------------------------------


def random_games(n, size, moves, seed=0):
    games, draw = new_games(n, size, max_stones=2 * moves), torch.Generator().manual_seed(seed)
    for _ in range(moves):
        games.play(torch.multinomial(games.legal()[:, :-1].float() + 1e-9, 1, generator=draw)[:, 0])
    return games


def test_what_was_used_least_recently_makes_room():
    cache = Cache(1, 19)
    games = random_games(1500, 19, 6)
    used = games[:100]
    for first in range(0, 1500, 50):
        first_read(cache, games[first : first + 50], copies=1)
        if first >= 50:
            assert len(at_roots(cache, used)[1]) == 0, "what is used stays"
    hits, misses, entries, taken = cache.counts()
    assert misses == 1500
    assert hits == 100 * 29
    assert 550 < entries < (1 << 20) / (362 * 4)
    assert (1 << 20) * 0.9 < taken <= 1 << 20
    assert len(at_roots(cache, games[1300:])[1]) == 0, "the newest are there"
    assert len(at_roots(cache, games[100:600])[1]) == 500, "the oldest aren't"
    cache.clear()
    assert cache.counts()[:3] == (0, 0, 0)
    assert len(at_roots(cache, used)[1]) == 100


# Searches ----------------------------------------------------------------------------------------------------------


def equal_in_all_symmetries(planes):
    """A network of the present stones alone, in whole numbers, so that turning a board turns its answer bit for bit.

    Values are 64ths: sums of them are exact, with or without the virtual losses of leaves that wait."""
    own, enemy = (np.pad(planes[i].astype(np.int64), 2) for i in (0, 1))
    n = planes.shape[-1]

    def ring(board, squared):
        steps = [(r, c) for r in range(-2, 3) for c in range(-2, 3) if r * r + c * c == squared]
        return sum(board[2 + r : 2 + r + n, 2 + c : 2 + c + n] for r, c in steps)

    score = 7 + 5 * ring(own, 1) + 3 * ring(enemy, 1) + 11 * ring(own, 2) * ring(enemy, 4) + ring(enemy, 5)
    score = score**2 * (1 + int(planes[8, 0, 0]))
    policy = np.append(score.flatten(), score.min())
    value = int(score.sum()) % 129 / 64 - 1
    return (policy / policy.sum()).astype(np.float32), np.float32(value)


def selfplay(cache, *, moves=12, seed=1, evaluate=equal_in_all_symmetries, n=8, size=5, leaves=1):
    """(roots of all moves and the rows in the end, leaves that were asked for)"""
    options = Options(komi=0.5, leaves=leaves, soft_moves=4, value_init_penalty=0.25)
    search = Search(new_games(n, size), options, seed=seed, cache=cache)
    found, asked = [], 0
    for _ in range(moves):
        full = search.draw_full(0.5)
        search.start(torch.where(full, 24, 12), full)
        while len(batch := search.leaves()):
            asked += len(batch)
            answer(search, batch, evaluate)
        found += search.roots()
        search.play(search.choose(prune=full).moves)
    return [*found, search.games.rows], asked


def test_a_search_reads_with_a_cache_what_it_reads_without():
    """A leaf at a time: a batch would be filled with other leaves where some need no answer."""
    plain, all_leaves = selfplay(None)
    cache = Cache(4, 5)
    with_it, asked = selfplay(cache)
    assert all(map(torch.equal, with_it, plain))
    hits, misses, entries, _ = cache.counts()
    assert misses == asked < 0.9 * all_leaves
    assert hits + misses == all_leaves
    assert entries < misses
    again, asked = selfplay(cache)
    assert asked == 0, "all was read before"
    assert all(map(torch.equal, again, plain))


def test_noise_comes_to_roots_that_the_cache_knows():
    cache = Cache(1, 5)
    games = game_of(CORNER)
    first_read(cache, games)
    search = Search(games.copy(), Options(leaves=1), cache=cache)
    read(search, 2, full=True)
    plain = first_read(cache, games, copies=1)[0].roots().P
    assert float((search.roots().P - plain).abs().max()) > 0.01


def test_threads_change_nothing_also_where_positions_make_room():
    def played_with(count):
        with threads(count):
            cache = Cache(1, 9)
            found = selfplay(cache, moves=4, evaluate=fake, n=48, size=9, leaves=4)
        return found, cache.counts()

    (alone, asked), counts = played_with(1)
    (together, also_asked), also_counts = played_with(3)
    assert all(map(torch.equal, together, alone))
    assert (also_asked, also_counts) == (asked, counts)
    assert counts.misses > 1.1 * counts.entries > 2000
    assert counts.hits > 0


def test_searches_in_threads_of_their_own_share_it():
    plain = [selfplay(None, seed=seed, moves=6)[0] for seed in range(2)]
    cache, found = Cache(1, 5), {}

    def work(seed):
        found[seed] = selfplay(cache, seed=seed, moves=6)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for seed in range(2):
        assert all(map(torch.equal, found[seed][0], plain[seed]))
    assert cache.counts().misses == sum(asked for _, asked in found.values())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Cache(0, 9), "megabytes is 0; expected 1 to 1048576"),
        (lambda: Cache(1, 4), "board's size is 4; expected 5 to 19"),
        (lambda: Search(new_games(1, 9), cache=Cache(1, 19)), "size of the cache's boards is 19; expected 9 to 9"),
        (lambda: Search(new_games(1, 9), cache=Cache(1, 9)).play_out(), "the search has a cache; expected none"),
    ],
)
def test_errors(wrong, message):
    with pytest.raises(UserError, match=message):
        wrong()
