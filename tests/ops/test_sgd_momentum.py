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
    torch_optimizer,
    zeros,
)
from numerics import EXAMPLES, LAYOUTS, backends, device

from mlperf_fast.errors import UserError
from mlperf_fast.ops import sgd_momentum_

OP = "sgd_momentum"
ALL = [*backends(OP), pytest.param("ref")]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def make(sizes, seed=0, layout="contiguous", dtype=torch.float32, copy_dtype=None):
    lists = {
        "params": random(sizes, seed, layout),
        "grads": random(sizes, seed + 100, layout, dtype),
        "momentum_buffers": random(sizes, seed + 200, layout),
    }
    return lists | ({"copies": random(sizes, seed + 300, layout, copy_dtype)} if copy_dtype else {})


def call(lr=0.03, step=7.0, grad_scale=None, **options):
    return calling(sgd_momentum_, {"lr": lr, "step": step, "grad_scale": grad_scale}, **options)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
@EXAMPLES
@given(
    sizes=SIZES,
    seed=st.integers(1000, 9999),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    copy_dtype=st.sampled_from([None, torch.bfloat16, torch.float16]),
    scale=st.sampled_from([None, 1.0, 2.0**-10]),
    step=st.sampled_from([1.0, 2.0]),
    rule=st.sampled_from([{}, {"dampening": 0.3}, {"nesterov": True}]),
    lr_inside=st.booleans(),
)
def test_matches_reference(backend, sizes, seed, layout, dtype, copy_dtype, scale, step, rule, lr_inside):
    run = call(step=step, grad_scale=scale, momentum=0.8, weight_decay=0.1, lr_inside=lr_inside, **rule)
    check_against_reference(OP, backend, run, make(sizes, seed, layout, dtype, copy_dtype))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_tensors_of_many_chunks(backend):
    check_against_reference(OP, backend, call(), make(MANY_CHUNKS, copy_dtype=torch.bfloat16))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_are_the_rounded_params(backend, dtype):
    lists = copied(make([(5000,), (1,), (17,)], copy_dtype=dtype), device(backend))
    call()(lists, backend)
    assert all(torch.equal(c, p.to(dtype)) for c, p in zip(lists["copies"], lists["params"], strict=True))


@pytest.mark.parametrize("backend", ALL, indirect=True)
def test_buffers_hold_anything_before_the_first_step(backend):
    lists = copied(make([(40,)]), device(backend))
    lists["momentum_buffers"][0].fill_(torch.nan)
    call(step=1.0, dampening=0.5)(lists, backend)
    assert torch.equal(lists["momentum_buffers"][0], lists["grads"][0])


def ours(backend, **options):
    def make(params):
        buffers = zeros(params)
        return lambda grads, **scalars: sgd_momentum_(params, grads, buffers, **scalars, **options, backend=backend)

    return make


@pytest.mark.parametrize("backend", ALL, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.9},
        {"momentum": 0.9, "weight_decay": 0.1},
        {"momentum": 0.8, "dampening": 0.5, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        {"momentum": 0.0, "weight_decay": 0.1},
    ],
    ids=lambda options: " ".join(options),
)
def test_hundreds_of_steps_under_loss_scaling_are_torch_optims(backend, options, dtype):
    check_loss_scaling(OP, backend, ours(backend, **options), torch_optimizer(torch.optim.SGD, **options), dtype)


@pytest.mark.parametrize("backend", ALL, indirect=True)
@pytest.mark.parametrize("nesterov", [False, True])
def test_hundreds_of_steps_with_lr_inside_are_kerass(backend, nesterov):
    """v = m v - lr g; w += v, or with Nesterov's momentum w += m v - lr g."""

    def keras(params):
        velocities = zeros(params)

        def update(grads, lr):
            for w, v, g in zip(params, velocities, grads, strict=True):
                v.copy_(0.9 * v - lr * g)
                w += 0.9 * v - lr * g if nesterov else v

        return update

    check_loss_scaling(OP, backend, ours(backend, nesterov=nesterov, lr_inside=True), keras)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": -0.9}, "momentum is -0.9, expected a number of 0 or more"),
        ({"dampening": None}, "dampening is None, expected a number"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov needs a momentum and no dampening, found 0.0 and 0"),
        ({"nesterov": True, "dampening": 0.1}, "nesterov needs a momentum and no dampening, found 0.9 and 0.1"),
    ],
)
def test_numbers_are_checked(options, message):
    with pytest.raises(UserError, match=f"sgd_momentum_: {message}"):
        call(**options)(make([(2,)]), "cpp")
