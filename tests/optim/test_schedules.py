"""Schedules against the values that the references' formulas give by hand."""

import pytest

from mlperf_fast.optim.schedules import warmup_hold_exponential, warmup_poly


def test_bert_without_warm_up_decays_from_the_first_step():
    rates = [warmup_poly(step, base=4e-4, warmup=0, total=8103) for step in (1, 2, 4052, 8103, 8104, 9000)]
    assert rates == pytest.approx([4e-4, 4e-4 * 8102 / 8103, 4e-4 * 4052 / 8103, 4e-4 / 8103, 0, 0])


def test_bert_with_warm_up_drops_where_the_decay_takes_over():
    """NVIDIA's 8 nodes: 100 warm-up steps that began 25 steps before the first."""
    rate = {s: warmup_poly(s, base=1.5e-3, warmup=100, start_warmup=-25, total=1271) for s in (1, 2, 75, 76, 77)}
    assert rate[1] == pytest.approx(1.5e-3 * 25 / 100)
    assert rate[2] == pytest.approx(1.5e-3 * 26 / 100)
    assert rate[75] == pytest.approx(1.5e-3 * 99 / 100)
    assert rate[76] == pytest.approx(1.5e-3 * (1 - 75 / 1271))
    assert rate[77] == pytest.approx(1.5e-3 * (1 - 76 / 1271))


def test_bert_warm_up_that_is_over_before_it_starts():
    """RCP 6144: 0 warm-up steps, start_warmup_step -700."""
    assert warmup_poly(1, base=1.0, warmup=0, start_warmup=-700, total=700) == 1.0


def test_bert_warm_up_from_the_first_step_starts_at_zero():
    assert [warmup_poly(s, base=1.0, warmup=4, total=10) for s in (1, 2, 4, 5)] == pytest.approx([0, 0.25, 0.75, 0.6])


def test_bert_power():
    assert warmup_poly(6, base=2.0, warmup=0, total=10, power=2.0) == pytest.approx(2 * 0.25)


def test_rnnt_by_the_reference_s_formula():
    """Two epochs of warm-up and three of hold, ten steps each."""
    numbers = {"base": 0.007, "epoch_steps": 10, "warmup": 2, "hold": 3, "gamma": 0.5, "floor": 1e-5}
    rate = {step: warmup_hold_exponential(step, **numbers) for step in range(1, 200)}
    assert rate[1] == pytest.approx(0.007 * 2 / 21)
    assert rate[19] == pytest.approx(0.007 * 20 / 21)
    assert rate[20] == 0.007
    assert rate[49] == 0.007
    assert rate[50] == pytest.approx(0.007), "the last step of epoch 5: gamma to the 0"
    assert rate[51] == rate[60] == pytest.approx(0.0035), "epoch 6"
    assert rate[61] == pytest.approx(0.00175)
    assert rate[199] == 1e-5
