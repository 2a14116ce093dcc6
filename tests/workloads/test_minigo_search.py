"""The native tree search against a simple one over whole games, and what each of its parts promises."""

import numpy as np
import pytest
import torch
from numerics import threads
from simple_go import SimpleGo, game_of, games_of
from simple_search import SimpleSearch, answer, fake, read, uniform

from mlperf_fast import _C
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.minigo import search as native_search
from mlperf_fast.workloads.minigo.board import LEGAL, WHITE, new_games, transform_planes, transform_policies
from mlperf_fast.workloads.minigo.search import Options, Search

every_level = pytest.mark.parametrize("level", _C.supported_levels())


@pytest.fixture
def native(level, monkeypatch):
    """Searches are those of one instruction set."""
    monkeypatch.setattr(native_search, "_C", _C.load(level))


def simple_fake(nodes):
    return [fake(node.go.planes()) for node in nodes]


def same_roots(search, simple):
    roots, root = search.roots(), simple.root
    assert roots.visits[0].tolist() == root.N.tolist()
    assert int(roots.own_visits[0]) == root.visits
    np.testing.assert_allclose(roots.W[0].numpy(), root.W, rtol=0, atol=2e-6)
    np.testing.assert_allclose(float(roots.own_W[0]), root.own_W, rtol=0, atol=2e-6)
    np.testing.assert_allclose(roots.P[0].numpy(), root.P, rtol=1e-6)


# Whole games -----------------------------------------------------------------------------------------------------


@every_level
@pytest.mark.parametrize(
    ("seed", "leaves", "readouts", "prune", "restrict"),
    [(1, 4, 30, True, 4), (2, 1, 24, False, 0), (3, 8, 40, True, 1)],
)
def test_whole_games_go_as_in_the_simple_search(native, seed, leaves, readouts, prune, restrict):
    """Fast and full moves in turns, from an opening that differs by seed."""
    options = Options(leaves=leaves, komi=0.5, soft_moves=6, restrict_passes=restrict, noise_mix=0)
    games, go = new_games(1, 5), SimpleGo(5)
    for move in np.random.default_rng(seed).permutation(25)[:4].tolist():
        games.play([move])
        go.play(divmod(move, 5))
    search = Search(games, options, seed=seed)
    simple = SimpleSearch(go, simple_fake, leaves=leaves, komi=0.5, soft_moves=6, passes=restrict)
    for number in range(24):
        if simple.root.go.passes >= 2:
            break
        full = number % 3 == 0
        read(search, readouts, full)
        simple.read(readouts, full)
        same_roots(search, simple)
        pruned = prune and full
        found = search.choose(prune=[pruned])
        move = int(found.moves[0])
        if not simple.soft():
            assert simple.choose() == move
        assert simple.root.N[move] > 0 or simple.restricted
        assert float(found.q[0]) == pytest.approx(float(simple.q()), abs=1e-6)
        if pruned:
            simple.prune()
            assert search.roots().visits[0].tolist() == simple.root.N.tolist()
        np.testing.assert_allclose(found.pi[0].numpy(), simple.pi(), atol=1e-6)
        assert search.play([move]).tolist() == [LEGAL]
        simple.play(move)
        assert int(search.roots().own_visits[0]) == simple.root.visits
    assert number > 5
    assert simple.twice > 0 or leaves == 1


def test_the_line_that_both_sides_are_expected_to_play():
    search, simple = Search(new_games(2, 5), Options(komi=0.5)), SimpleSearch(SimpleGo(5), simple_fake, komi=0.5)
    assert search.line(0) == []
    read(search, 300)
    simple.read(300, False)
    for first in (None, int(simple.root.N.argmax()), int(simple.root.N.argmin())):
        node, expected = simple.root, []
        while node and node.N.any():
            move = first if first is not None and not expected else int(node.N.argmax())
            if node.N[move] == 0:
                break
            expected.append(move)
            node = node.children.get(move)
        assert search.line(0, first) == expected[:20]
        assert search.line(0, first, 2) == expected[:2]
    assert len(search.line(0)) > 2
    with pytest.raises(UserError, match="game is 2"):
        search.line(2)


def test_the_games_of_one_search_go_as_alone():
    """Of games that share their calls and are at different moves, each reads what it would read alone."""
    options = Options(komi=0.5)
    games = new_games(6, 7)
    games.play([-1, 8, 9, 10, 11, 12])
    together = Search(games.copy(), options)
    together.start([10, 20, 0, 40, 50, 60], [True, False] * 3)
    while len(batch := together.leaves()):
        answer(together, batch)
    for number, readouts in enumerate([10, 20, 0, 40, 50, 60]):
        alone = Search(games[[number]], options)
        alone.reset(ids=[number])
        if readouts:
            read(alone, readouts, number % 2 == 0)
        for one, all_games in zip(alone.roots(), together.roots(), strict=True):
            assert torch.equal(one[0], all_games[number])


def test_threads_change_nothing():
    def played():
        search = Search(new_games(48, 9), Options(own_eyes=False), seed=5)
        roots = []
        for _ in range(4):
            full = search.draw_full(0.5)
            search.start(torch.where(full, 24, 12), full)
            while len(batch := search.leaves()):
                answer(search, batch)
            roots.append(search.roots())
            assert not search.play(search.choose(prune=full).moves).any()
        return [x for root in roots for x in root] + [search.games.rows]

    with threads(1):
        alone = played()
    with threads(3):
        assert all(map(torch.equal, played(), alone))
    assert len({row.numpy().tobytes() for row in alone[-1]}) > 40


# Reading ---------------------------------------------------------------------------------------------------------


def test_virtual_loss_moves_w_and_is_undone():
    search = Search(new_games(1, 5), Options(leaves=4))
    read(search, 20)
    before = search.roots()
    search.start([8], [False])
    batch = search.leaves()
    waiting = search.roots()
    assert torch.equal(waiting.visits, before.visits)
    assert float(waiting.own_W - before.own_W) == pytest.approx(4, abs=1e-5)  # Black is to move at the root
    moved = waiting.W - before.W
    assert float(moved.sum()) <= -2, "White is to move after it: to Black these moves look worse"
    values = [fake(planes)[1] for planes in transform_planes(batch.planes, batch.symmetries, back=True).numpy()]
    answer(search, batch)
    after = search.roots()
    assert float(after.own_W) == pytest.approx(float(before.own_W) + sum(values), abs=1e-5)
    assert int(after.own_visits - before.own_visits) == len(values)
    assert int(after.visits.sum()) == int(after.own_visits) - 1


def test_a_leaf_that_is_chosen_twice_is_asked_for_and_expanded_once():
    def one_move(planes):
        policy = np.zeros(26, np.float32)
        policy[12] = 1
        return policy, np.float32(0.5)

    search = Search(new_games(1, 5), Options(leaves=8))
    read(search, 1, evaluate=one_move)
    search.start([20], [False])
    batch = search.leaves()
    assert len(batch) < 8
    answer(search, batch, one_move)
    roots = search.roots()
    assert int(roots.own_visits) == 1 + len(batch)
    assert int(roots.visits.sum()) == len(batch)


def test_a_root_without_children_is_a_batch_of_its_own():
    search = Search(new_games(3, 5), Options(leaves=8))
    search.start([8, 0, 8], [True, True, False])
    batch = search.leaves()
    assert batch.games.tolist() == [0, 2]
    answer(search, batch)
    assert search.roots().own_visits.tolist() == [1, 0, 1]


@pytest.mark.parametrize("black", [True, False])
def test_a_win_by_passing_is_found(black):
    stones = {"black" if black else "white": [12]}
    games = new_games(2, 5, **stones, to_move=-1 if black else 1)
    assert games.play([25, 25]).tolist() == [0, 0]
    search = Search(games[:1], Options(komi=0.5, soft_moves=0))
    read(search, 100, evaluate=uniform)
    found = search.choose()
    assert found.moves.tolist() == [25]
    assert float(found.pi[0, 25]) > 0.7
    assert float(found.q[0]) * (1 if black else -1) > 0.5
    assert search.play(found.moves).tolist() == [0]
    assert int(search.games.facts().passes) == 2
    read(search, 5)  # a game that is over asks for nothing
    lost = Search(games[1:2], Options(komi=30.5 if black else -30.5, soft_moves=0))
    read(lost, 100, evaluate=uniform)
    assert lost.choose().moves.tolist() != [25], "passing loses"


def test_the_target_of_a_full_move_counts_what_was_inherited():
    search = Search(new_games(1, 5), Options(leaves=1))
    read(search, 60)
    search.play(search.roots().visits.argmax(1))
    inherited = int(search.roots().own_visits)
    assert inherited > 1
    read(search, 30, full=True)
    roots = search.roots()
    assert int(roots.own_visits) == inherited + 30
    # All of them fresh: at the root their values are all that W is made of.
    assert int(roots.visits.sum()) == inherited + 29


def test_moves_are_legal_wherever_the_tree_goes():
    """Positions that were read before the game came there know the same legal moves, superko's too."""
    games = game_of("""
        . X O . .
        X O . O .
        . X O . X
        O X . X .
        . O X . X""")[[0] * 24]  # fmt: skip
    search = Search(games, Options(leaves=2, soft_moves=100, soft_power=0.5), seed=3)
    kept = 0
    for _ in range(30):
        read(search, 30, evaluate=uniform)
        assert torch.equal((search.roots().P > 0)[games.facts().passes < 2], games.legal()[games.facts().passes < 2])
        search.play(torch.where(games.facts().passes < 2, search.choose().moves, -1))
        roots = search.roots()
        ready = (roots.own_visits > 0) & (roots.P.sum(1) > 0)
        assert torch.equal((roots.P > 0)[ready], games.legal()[ready])
        kept += int(ready.sum())
    assert kept > 300


def test_a_board_on_the_way_from_the_root_may_not_come_back():
    """White sends two stones, Black takes them: all of it read before it is played, superko's answer too."""
    games = game_of("""
        . . . O .
        X X O O .
        . X O . .
        . X O . .
        . X O . .""", to_move="W")  # fmt: skip

    def line(planes):
        black = planes[8, 0, 0] == 1
        white_at = planes[1 if black else 0, 0]
        move = (2 if white_at[0] else 25) if black else (0 if white_at[1] else 1)
        policy = np.full(26, 0.001, np.float32)
        policy[move] = 1
        return policy, np.float32(0)

    search = Search(games, Options(leaves=1))
    read(search, 6, evaluate=line)
    for move in (1, 25, 0, 2):
        assert search.play([move]).tolist() == [LEGAL]
    roots = search.roots()
    assert int(roots.own_visits) >= 1
    assert float(roots.P[0, 1]) == 0
    assert torch.equal(roots.P > 0, games.legal())


def test_a_root_that_was_not_read_keeps_its_first_value():
    search = Search(new_games(1, 5), Options(leaves=1))
    read(search, 1, evaluate=uniform)
    search.play([3])
    roots = search.roots()
    assert float(roots.own_W) == pytest.approx(-0.2)
    assert int(roots.own_visits) == 0


@pytest.mark.parametrize(
    ("moves", "threshold", "barred"),
    [
        ([], 0, True),
        ([24, 25], 1, True),
        ([24, 25, 23, 25], 2, True),
        ([24, 25, 23, 25], 3, False),
        ([24, 25, 23, 2, 22, 25], 2, False),  # not in a row
        ([24, 25, 23, 25, 22, 2], 2, True),  # from then on
    ],
)
def test_pass_alive_area_is_barred_after_passes(moves, threshold, barred):
    def an_eye(planes):
        policy = np.full(26, 0.001, np.float32)
        policy[10] = 1
        return policy, np.float32(0)

    games = game_of("""
        . X . . .
        X X . . .
        . X . . .
        X X . . .
        . X . . .""")
    search = Search(games, Options(leaves=1, restrict_passes=threshold, soft_moves=0))
    for move in moves:
        assert search.play([move]).tolist() == [LEGAL]
    read(search, 30, evaluate=an_eye)
    assert int(search.roots().visits.argmax()) == 10
    found = search.choose(prune=[True])
    assert (int(found.moves) != 10) == barred
    assert (float(found.pi[0, 10]) == 0) == barred


def test_without_own_eyes():
    games = game_of("""
        . X . X .
        X X X X X
        O O O O O
        O O O O O
        . O . O .""")
    search = Search(games, Options(own_eyes=False))
    read(search, 30, evaluate=uniform)
    assert search.roots().P[0].nonzero()[:, 0].tolist() == [25], "eyes only: a pass"
    games = new_games(1, 5)
    search = Search(games, Options(own_eyes=False))
    read(search, 30, evaluate=uniform)
    assert float(search.roots().P[0, 25]) == 0


def test_a_full_game_reads_passes_only():
    search = Search(new_games(1, 5, max_stones=1), Options(komi=0.5))
    read(search, 200, evaluate=uniform)
    assert search.play([12]).tolist() == [0]
    read(search, 50, evaluate=uniform)
    assert search.roots().P[0].nonzero()[:, 0].tolist() == [25]


def test_a_policy_on_illegal_moves_alone():
    search = Search(game_of("X . . . .\n" + ". . . . .\n" * 4))
    search.start([2], [False])
    batch = search.leaves()
    policy = torch.zeros(1, 26)
    policy[0, int(transform_policies(torch.eye(26)[:1], 5, batch.symmetries).argmax())] = 1
    search.take(policy, torch.zeros(1))
    assert not search.roots().P.any()
    assert 1 <= len(search.leaves()) <= 4, "the values decide"


# The buffer and its errors ---------------------------------------------------------------------------------------


def test_much_is_read_and_kept():
    search = Search(new_games(2, 9), Options(leaves=16))
    read(search, 1500, evaluate=uniform)
    roots = search.roots()
    assert (roots.own_visits >= 1500).all()
    assert (roots.own_visits < 1516).all()
    assert torch.equal(roots.visits.sum(1), roots.own_visits - 1)
    read_all = search.bytes()
    assert read_all > 2 * 1500 * 75 * 22  # an edge's bytes, of at least so many
    moves = roots.visits.argmax(1)
    search.play(moves)
    assert torch.equal(search.roots().own_visits, roots.visits[[0, 1], moves].int())
    assert search.bytes() < read_all, "what wasn't played is gone"


def test_errors_of_answers_leave_the_search_as_it_was():
    search = Search(new_games(2, 5))
    search.start([4, 4], [False, False])
    batch = search.leaves()
    policies, values = torch.full((2, 26), 1 / 26), torch.zeros(2)

    def changed(x, at, value):
        x = x.clone()
        x[at] = value
        return x

    nan, inf = float("nan"), float("inf")
    for wrong, message in [
        ((changed(policies, (1, 25), nan), values), "row 1 of the policy has a number that isn't finite or is below 0"),
        ((changed(policies, (0, 3), inf), values), "row 0 of the policy"),
        ((changed(policies, (0, 3), -0.1), values), "row 0 of the policy"),
        ((policies, changed(values, 1, nan)), "row 1 has value nan; expected -1 to 1"),
        ((policies, changed(values, 0, 1.5)), "row 0 has value 1.5"),
        ((policies[:1], values[:1]), "1 rows; expected 2, as select wrote"),
        ((policies[:, :25], values), r"policies has shape \[2, 25\], expected \[2, 26\]"),
        ((policies, values[:1]), r"values has shape \[1\], expected \[2\]"),
        ((policies.double(), values), "policies is float64, expected float32"),
    ]:
        with pytest.raises(UserError, match=message):
            search.take(*wrong)
    assert search.roots().own_visits.tolist() == [0, 0]
    for wrong, message in [
        (search.leaves, "2 leaves wait for values"),
        (search.reset, "game 0 has leaves that wait"),
        (search.choose, "game 0 has leaves that wait"),
        (lambda: search.play([-1, 3]), "game 1 has leaves that wait"),
        (lambda: search.start([0, 3], [True, True]), "game 1 has leaves that wait"),
    ]:
        with pytest.raises(UserError, match=message):
            wrong()
    answer(search, batch)
    assert search.roots().own_visits.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda games: Search(games[:0]), "number of games is 0; expected 1 to"),
        (lambda games: Search(games, Options(leaves=0)), "leaves is 0; expected 1 to 1024"),
        (lambda games: Search(games, Options(noise_alpha=0.0)), "noise_alpha is 0.000000; expected"),
        (lambda games: Search(games, Options(noise_mix=1.5)), "noise_mix is 1.5"),
        (lambda games: Search(games, Options(komi=float("nan"))), "komi is nan"),
        (lambda games: Search(games, Options(soft_moves=-1)), "soft_moves is -1; expected at least 0"),
        (lambda games: Search(games, Options(restrict_passes=-1)), "restrict_passes is -1"),
        (lambda games: Search(games).start([1], [True]), r"readouts has shape \[1\], expected \[2\]"),
        (lambda games: Search(games).start([1, -1], [True, True]), "readouts is -1; expected 0 to"),
        (lambda games: Search(games).start([1, 1], [1, 0]), "full is int64, expected true or false"),
        (lambda games: Search(games).start([1.0, 1.0], [True, True]), "readouts is float32, expected whole numbers"),
        (lambda games: Search(games).choose(), "game 0 has read nothing; expected start and select first"),
        (lambda games: Search(games).reset(ids=[1]), r"ids has shape \[1\], expected \[2\]"),
        (lambda games: changed_outside(games), "game 1 isn't at the search's root any more"),
    ],
)
def test_errors(wrong, message):
    with pytest.raises(UserError, match=message):
        wrong(new_games(2, 5))


def changed_outside(games):
    search = Search(games)
    games.play([-1, 3])
    search.start([1, 1], [False, False])


def test_after_a_reset_the_search_reads_the_new_games():
    search = Search(new_games(2, 5))
    read(search, 10)
    search.games.rows[1] = games_of(SimpleGo(5, {(2, 2): "B"}, "W")).rows[0]
    search.reset([False, True], [0, 7])
    assert int(search.roots().own_visits[0]) >= 10
    assert int(search.roots().own_visits[1]) == 0
    read(search, 3)
    assert float(search.roots().P[1, 12]) == 0
    assert int(search.games.facts().to_move[1]) == WHITE
    assert search.play([25, 12]).tolist() == [0, 1]
