"""The search's random numbers: noise at the root, moves drawn by visits, resignation thresholds."""

import numpy as np
import pytest
import torch
from simple_search import fake, read

from mlperf_fast.workloads.minigo.board import new_games, transform_policies
from mlperf_fast.workloads.minigo.search import Options, Search


def test_noise_is_dirichlets_and_only_at_the_root_of_full_moves():
    n, options = 400, Options(noise_alpha=0.4)
    search = Search(new_games(n, 5), options, seed=2)
    prior = fake(new_games(1, 5).planes()[0].numpy())[0]
    read(search, 1, full=True)
    np.testing.assert_allclose(search.roots().P, np.tile(prior, (n, 1)), rtol=1e-5)  # not before it is asked for moves
    noisy = Search(new_games(n, 5), options, seed=2)
    read(noisy, 2, full=True)
    noise = (noisy.roots().P - 0.7 * torch.from_numpy(prior)) / 0.3
    assert noise.min() > -1e-6
    np.testing.assert_allclose(noise.sum(1), 1, atol=1e-5)
    a, all_a = 0.4, 0.4 * 26
    np.testing.assert_allclose(noise.mean(0), 1 / 26, atol=0.025)
    assert float((noise**2).mean()) == pytest.approx(a * (a + 1) / (all_a * (all_a + 1)), rel=0.05)
    plain = Search(new_games(2, 5), options, seed=2)
    read(plain, 6, full=False)
    np.testing.assert_allclose(plain.roots().P, np.tile(prior, (2, 1)), rtol=1e-5)
    small = Search(new_games(50, 5), Options(noise_alpha=0.001), seed=2)
    read(small, 2, full=True)
    np.testing.assert_allclose(small.roots().P.sum(1), 1, atol=1e-5)


def test_random_numbers_come_from_the_seed_the_id_and_the_move():
    def noise(seed, ids):
        search = Search(new_games(len(ids), 5), seed=seed)
        search.reset(ids=ids)
        read(search, 2, full=True)
        return search.roots().P, search.draws(7, by_move=True)

    first, draws = noise(1, [4, 9, 4])
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])
    assert torch.equal(noise(1, [9])[0][0], first[1])
    assert not torch.equal(noise(2, [9])[0][0], first[1])
    assert draws[0] == draws[2] != draws[1]
    search = Search(new_games(3000, 5), seed=1)
    by_move, by_game = search.draws(7, by_move=True), search.draws(7, by_move=False)
    assert 0.47 < float(by_move.mean()) < 0.53
    assert search.draw_full(0.75).all(), "the first move"
    search.play([0] * 3000)
    assert 0.2 < float(search.draw_full(0.75).float().mean()) < 0.3
    assert torch.equal(by_game, search.draws(7, by_move=False))
    assert not torch.equal(by_move, search.draws(7, by_move=True))
    thresholds = search.draw_thresholds(0.9, 1.0)
    assert 0.9 <= thresholds.min() < 0.91
    assert 0.99 < thresholds.max() <= 1
    assert not search.resigns(torch.full((3000,), -0.99), thresholds).any(), "Black loses, White is to move"
    assert 0.8 < float(search.resigns(torch.full((3000,), 0.99), thresholds).float().mean()) < 1


def test_soft_picks_are_as_frequent_as_their_visits():
    n = 4000
    search = Search(new_games(n, 5), Options(soft_moves=2, soft_power=0.5), seed=1)
    search.start([40] * n, [False] * n)
    policy = torch.arange(26.0) ** 2  # the pass most of all
    while len(batch := search.leaves()):
        policies = transform_policies((policy / policy.sum()).repeat(len(batch), 1), 5, batch.symmetries)
        search.take(policies, torch.zeros(len(batch)))
    visits = search.roots().visits
    assert torch.equal(visits[:1].expand_as(visits), visits)
    found = search.choose()
    counts = torch.bincount(found.moves, minlength=26) / n
    weights = visits[0].double() ** 0.5
    assert weights[25] > 0
    np.testing.assert_allclose(found.pi[0], weights / weights.sum(), rtol=1e-5)
    expected = torch.where(torch.arange(26) < 25, weights, 0) / weights[:25].sum()
    assert ((counts - expected).abs() <= 4.5 * (expected * (1 - expected) / n).sqrt()).all()
    assert (visits[0] > 0).sum() >= 8
