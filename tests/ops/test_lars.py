import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from multi_tensor import (
    MANY_CHUNKS,
    SIZES,
    calling,
    check_against_reference,
    check_loss_scaling,
    copied,
    random,
    zeros,
)
from numerics import EXAMPLES, LAYOUTS, backends, device

from mlperf_fast.errors import UserError
from mlperf_fast.ops import lars_

OP = "lars"
ALL = [*backends(OP), pytest.param("ref")]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def make(sizes, seed=0, layout="contiguous", dtype=torch.float32, copy_dtype=None):
    lists = {
        "params": random(sizes, seed, layout),
        "grads": random(sizes, seed + 100, layout, dtype),
        "momentum_buffers": random(sizes, seed + 200, layout),
    }
    return lists | ({"copies": random(sizes, seed + 300, layout, copy_dtype)} if copy_dtype else {})


def call(lr=0.3, grad_scale=None, **options):
    return calling(lars_, {"lr": lr, "grad_scale": grad_scale}, **options)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
@EXAMPLES
@given(
    sizes=SIZES,
    seed=st.integers(1000, 9999),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    copy_dtype=st.sampled_from([None, torch.bfloat16, torch.float16]),
    scale=st.sampled_from([None, 1.0, -(2.0**-10)]),
    eps=st.sampled_from([0.0, 0.1]),
    lr_inside=st.booleans(),
    data=st.data(),
)
def test_matches_reference(backend, sizes, seed, layout, dtype, copy_dtype, scale, eps, lr_inside, data):
    def each(values):
        return data.draw(st.lists(st.sampled_from(values), min_size=len(sizes), max_size=len(sizes)))

    options = {"momentum": 0.8, "eta": 0.02, "eps": eps, "lr_inside": lr_inside}
    run = call(grad_scale=scale, weight_decay=each([0.0, 0.1]), adapted=each([True, False]), **options)
    check_against_reference(OP, backend, run, make(sizes, seed, layout, dtype, copy_dtype))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_tensors_of_many_chunks(backend):
    check_against_reference(OP, backend, call(weight_decay=0.1), make(MANY_CHUNKS, copy_dtype=torch.bfloat16))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_norms_neither_overflow_nor_vanish(backend, scale):
    """The squares do in float32. The ratio is eta, whatever the scale, where weight and gradient are equal."""
    for size in (3, 70_000):
        weight = torch.full((size,), scale, device=device(backend))
        lists = {"params": [weight], "grads": [weight.clone()], "momentum_buffers": [torch.zeros_like(weight)]}
        call(lr=1.0, eta=0.5)(lists, backend)
        torch.testing.assert_close(weight, torch.full_like(weight, scale / 2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", ALL, indirect=True)
def test_the_ratio_is_one_where_a_norm_is_zero(backend):
    lists = {
        "params": [torch.zeros(3), torch.ones(3), torch.zeros(3)],
        "grads": [torch.ones(3), torch.zeros(3), torch.zeros(3)],
        "momentum_buffers": [torch.zeros(3) for _ in range(3)],
    }
    lists = copied(lists, device(backend))
    call(lr=0.5, weight_decay=0.25)(lists, backend)
    assert [x.tolist() for x in lists["params"]] == [[-0.5] * 3, [0.875] * 3, [0.0] * 3]


def by_hand(lr_inside, decays, adapted, corrected=False):
    """The optimizer as ResNet's facts state it. `corrected`: with momentum times lr(t) / lr(t-1)."""

    def make(params):
        velocities, before = zeros(params), None

        def update(grads, lr):
            nonlocal before
            momentum = 0.9 * lr / before if corrected and before else 0.9
            before = lr
            for w, v, g, decay, adapt in zip(params, velocities, grads, decays, adapted, strict=True):
                weight, gradient = float(w.double().norm()), float(g.double().norm())
                r = 0.02 * weight / (gradient + decay * weight) if adapt and weight and gradient else 1.0
                rate = lr if lr_inside else 1.0
                v.copy_(momentum * v - rate * r * (g + decay * w))
                w += v if lr_inside else lr * v

        return update

    return make


@pytest.mark.parametrize("backend", ALL, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("convention", ["lr inside", "lr outside", "corrected"])
def test_hundreds_of_steps_under_loss_scaling(backend, convention, dtype):
    """The corrected momentum with lr inside is what lr outside does."""
    inside, decays, adapted = convention == "lr inside", [0.1, 0.2, 0.0], [True, True, False]

    def ours(params):
        buffers = zeros(params)
        options = {"eta": 0.02, "weight_decay": decays, "adapted": adapted, "lr_inside": inside, "backend": backend}
        return lambda grads, step, **scalars: lars_(params, grads, buffers, **scalars, **options)

    oracle = by_hand(convention != "lr outside", decays, adapted, convention == "corrected")
    check_loss_scaling(OP, backend, ours, oracle, dtype)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": -0.9}, "momentum is -0.9, expected a number of 0 or more"),
        ({"eta": None}, "eta is None, expected a number"),
        ({"weight_decay": [0.1]}, "1 values of weight_decay, expected one or one for each of 2 params"),
        ({"adapted": [True] * 3}, "3 values of adapted, expected one or one for each of 2 params"),
    ],
)
def test_numbers_are_checked(options, message):
    with pytest.raises(UserError, match=f"lars_: {message}"):
        call(**options)(make([(2,), (3,)]), "cpp")
