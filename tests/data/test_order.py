from collections import Counter

import numpy as np
import pytest

from mlperf_fast.data.order import batch_count, batch_order, permutation, random_bits, sample_bits


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_each_number_comes_once(n):
    assert sorted(permutation(n, 7).tolist()) == list(range(n))


def test_the_order_is_the_same_for_ever():
    # These figures came from NumPy 2.4 and must never change: a run that resumes relies on them.
    assert permutation(8, 2022).tolist() == [3, 7, 2, 5, 6, 1, 0, 4]
    assert batch_order(70, 10, seed=3, epoch=1).tolist() == [5, 6, 3, 0, 1, 2, 4]


def test_seed_and_epoch_change_the_order():
    orders = {tuple(batch_order(5000, 10, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_all_orders_are_equally_likely():
    draws = 4800
    seen = Counter(tuple(permutation(4, seed)) for seed in range(draws))
    expected = draws / 24
    chi_square = sum((count - expected) ** 2 / expected for count in seen.values())
    assert len(seen) == 24
    assert chi_square < 50, f"chi-square {chi_square:.1f} of 23 degrees of freedom: not uniform"


def test_streams_of_different_keys_differ():
    assert not np.array_equal(random_bits(1, 2).random_raw(4), random_bits(2, 1).random_raw(4))


@pytest.mark.parametrize(("samples", "batch", "count"), [(1, 1, 1), (10, 5, 2), (11, 5, 3), (4195197692, 55296, 75869)])
def test_batch_count_includes_the_short_batch(samples, batch, count):
    assert batch_count(samples, batch) == count


def test_a_samples_bits_depend_on_its_number_and_the_key_alone():
    numbers = np.array([5, 0, 2**40, 5])
    bits = sample_bits(numbers, 7, 3, 1)
    assert np.array_equal(bits[0], bits[3])
    assert np.array_equal(sample_bits(numbers[1:2], 7, 3, 1)[0], bits[1])
    assert np.array_equal(sample_bits(numbers, 3, 3, 1), bits[:, :3])
    assert len(np.unique(np.concatenate([bits[:3], sample_bits(numbers[:3], 7, 3, 2)]))) == 42
    # These figures must never change: a run that resumes relies on them.
    assert sample_bits(np.arange(2), 2, 2022).tolist() == [
        [399986885208248985, 9828007616406951357],
        [14981338303803855447, 18265677740489272945],
    ]


def test_sample_bits_are_uniform_across_samples_draws_and_bits():
    bits = sample_bits(np.arange(20_000), 4, 1)
    for shift in (0, 31, 59):
        counts = np.bincount((bits >> np.uint64(shift)).reshape(-1).astype(np.int64) & 15, minlength=16)
        assert ((counts - 5000) ** 2 / 5000).sum() < 45, "chi-square of 15 degrees of freedom"
    unit = bits / 2.0**64
    assert np.abs(np.corrcoef(unit.T) - np.eye(4)).max() < 0.03
    assert abs(np.corrcoef(unit[:-1, 0], unit[1:, 0])[0, 1]) < 0.03
