"""When evaluations come, and what the log calls the blocks between them."""

from fractions import Fraction

import pytest

from mlperf_fast.workloads.base import Progress


def progress(**changes):
    counts = {"max_steps": 100, "train_samples": 1, "eval_samples": 1, "epoch_num": lambda step: step}
    return Progress(**{"eval_every": 10, **counts, **changes})


def due(one):
    return [step for step in range(1, one.max_steps + 1) if one.eval_due(step)]


def blocks(one):
    """(first_epoch_num, epoch_count) as block_start and block_stop hold them: the loop logs both at these steps."""
    ends = due(one)
    starts = [one.block(step) for step in [0, *ends[:-1]]]
    assert starts == [one.block(step - 1) for step in ends]
    return [tuple(start.values()) for start in starts]


def test_without_an_offset_the_first_comes_after_one_interval():
    one = progress(max_steps=35)
    assert due(one) == [10, 20, 30, 35]
    assert blocks(one) == [(0, 10), (10, 10), (20, 10), (30, 5)]


def test_an_interval_that_is_not_whole_steps():
    one = progress(eval_every=Fraction(10, 3), max_steps=12)
    assert due(one) == [4, 7, 10, 12]
    assert blocks(one) == [(0, 4), (4, 3), (7, 3), (10, 2)]


@pytest.mark.parametrize("first", [1, 3, 10, 25])
def test_an_offset_moves_them_all(first):
    one = progress(first_eval=first, max_steps=first + 20)
    assert due(one) == [first, first + 10, first + 20]
    assert blocks(one) == [(0, first), (first, 10), (first + 10, 10)]


def test_numbered_epochs_begin_with_1():
    """As NVIDIA's ResNet logs: epochs 1 to 3, then 4 to 7; an evaluation's epoch is the last of them."""
    one = progress(eval_every=20, first_eval=15, max_steps=55, epoch_num=lambda step: step // 5, numbered=True)
    assert blocks(one) == [(1, 3), (4, 4), (8, 4)]
    assert [one.epoch_num(step) for step in due(one)] == [3, 7, 11]
    assert all(type(value) is int for block in blocks(one) for value in block)
