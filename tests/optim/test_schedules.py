"""Schedules against the values that the references' formulas give by hand."""

import pytest

from mlperf_fast.optim.schedules import warmup_hold_exponential, warmup_poly, warmup_then_poly, warmup_then_steps


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


def test_resnet_as_nvidia_has_it():
    """Batch 3264: two epochs of warm-up, 37 in all, 393 steps each."""
    numbers = {"base": 10.5, "warmup": 786, "total": 14541}
    rate = {step: warmup_then_poly(step, **numbers) for step in (1, 786, 787, 7663, 14541, 15000)}
    assert rate[1] == pytest.approx(10.5 / 786)
    assert rate[786] == 10.5
    assert rate[787] == pytest.approx(1e-4 + (10.5 - 1e-4) * (1 - 1 / 13755) ** 2)
    assert rate[7663] == pytest.approx(1e-4 + (10.5 - 1e-4) * (1 - 6877 / 13755) ** 2)
    assert rate[14541] == rate[15000] == 1e-4


def test_resnet_as_the_reference_has_it():
    """Its step t counts from 0: the first rate is 0, and the decay has T - W + 1 steps."""
    base, W, T, end = 7.4, 5, 20, 1e-4
    for t in range(21):
        expected = base * t / W if t <= W else end + (base - end) * (1 - (t - W) / (T - W + 1)) ** 2
        assert warmup_then_poly(t, base=base, warmup=W, total=T + 1) == pytest.approx(expected)


def test_resnet_without_warm_up():
    assert warmup_then_poly(1, base=1.0, warmup=0, total=10, end=0.0) == pytest.approx(0.81)


def test_mask_rcnn_warms_up_from_a_third_and_decays_twice():
    numbers = {"base": 0.02, "warmup": 500, "factor": 1 / 3, "decays": (60000, 80000)}
    rate = {it: warmup_then_steps(it, **numbers) for it in (0, 250, 500, 59999, 60000, 79999, 80000)}
    assert list(rate.values()) == pytest.approx([0.02 / 3, 0.02 * 2 / 3, 0.02, 0.02, 0.002, 0.002, 0.0002])


def test_retinanet_warms_up_and_stays():
    rates = [warmup_then_steps(i, base=1e-4, warmup=4571, factor=1e-3) for i in (0, 2285, 4571, 99999)]
    assert rates == pytest.approx([1e-7, 1e-4 * (1e-3 * (1 - 2285 / 4571) + 2285 / 4571), 1e-4, 1e-4])


def test_unet3d_warms_up_from_1e_4():
    """lr = 1e-4 + (base - 1e-4) e / W."""
    for e in (1, 100, 200, 300):
        rate = warmup_then_steps(e, base=0.8, warmup=200, factor=1e-4 / 0.8)
        assert rate == pytest.approx(1e-4 + (0.8 - 1e-4) * min(e, 200) / 200)
