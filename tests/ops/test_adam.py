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
from mlperf_fast.ops import adam_

OP = "adam"
ALL = [*backends(OP), pytest.param("ref")]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def make(sizes, seed=0, layout="contiguous", dtype=torch.float32, copy_dtype=None):
    lists = {
        "params": random(sizes, seed, layout),
        "grads": random(sizes, seed + 100, layout, dtype),
        "exp_avgs": random(sizes, seed + 200, layout),
        "exp_avg_sqs": [x.square() for x in random(sizes, seed + 300, layout)],
    }
    return lists | ({"copies": random(sizes, seed + 400, layout, copy_dtype)} if copy_dtype else {})


def call(lr=0.03, step=7.0, grad_scale=None, **options):
    return calling(adam_, {"lr": lr, "step": step, "grad_scale": grad_scale}, **options)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
@EXAMPLES
@given(
    sizes=SIZES,
    seed=st.integers(1000, 9999),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    copy_dtype=st.sampled_from([None, torch.bfloat16, torch.float16]),
    scale=st.sampled_from([None, 1.0, 2.0**-10]),
    step=st.sampled_from([1.0, 2.0, 1000.0]),
    decoupled=st.booleans(),
)
def test_matches_reference(backend, sizes, seed, layout, dtype, copy_dtype, scale, step, decoupled):
    run = call(step=step, grad_scale=scale, betas=(0.85, 0.99), eps=1e-6, weight_decay=0.1, decoupled=decoupled)
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


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1 << 16, 13], ids=["whole registers", "remainders"])
def test_every_16_bit_number_is_read_and_rounded_to(backend, dtype, size):
    """Gradients of every bit pattern; weights at, between and beside all 16-bit numbers, and beyond the largest."""
    patterns = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    exact = patterns.float()
    finite = exact[exact.isfinite()].double().sort().values
    middle = (finite[1:] + finite[:-1]) / 2
    too_large = finite[-1:] + (finite[-1] - finite[-2]) / 2  # the smallest number that is rounded to infinity
    near = torch.cat([finite, middle, too_large, -too_large]).float()
    weights = torch.cat([near, *(torch.nextafter(near, torch.tensor(end)) for end in (torch.inf, -torch.inf))])
    lists = {
        "params": [*torch.zeros(len(patterns)).split(size), *weights.split(size)],
        "grads": [*patterns.split(size), *torch.zeros(len(weights), dtype=dtype).split(size)],
    }
    lists = copied(lists | {"exp_avgs": zeros(lists["params"]), "exp_avg_sqs": zeros(lists["params"])}, device(backend))
    lists["copies"] = [torch.ones_like(g) for g in lists["grads"]]
    call(betas=(0.0, 0.0), lr=0.0)(lists, backend)
    read, rounded = torch.cat(lists["exp_avgs"]).cpu(), torch.cat(lists["copies"]).cpu()
    exactly = {"rtol": 0, "atol": 0, "equal_nan": True}
    torch.testing.assert_close(read[: len(patterns)], exact, **exactly)
    torch.testing.assert_close(rounded[len(patterns) :], weights.to(dtype), **exactly)


@pytest.mark.parametrize("backend", ALL, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "weight_decay"), [(torch.optim.Adam, 0.0), (torch.optim.Adam, 0.1), (torch.optim.AdamW, 0.1)]
)
def test_hundreds_of_steps_under_loss_scaling_are_torch_optims(backend, kind, weight_decay, dtype):
    def ours(params):
        moments = zeros(params), zeros(params)
        options = {"weight_decay": weight_decay, "decoupled": kind is torch.optim.AdamW, "backend": backend}
        return lambda grads, **scalars: adam_(params, grads, *moments, **scalars, **options)

    check_loss_scaling(OP, backend, ours, torch_optimizer(kind, weight_decay=weight_decay), dtype)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"betas": (0.9, 1.0)}, r"betas\[1\] is 1.0, expected a number of 0 or more and less than 1"),
        ({"eps": -1e-8}, "eps is -1e-08, expected a number of 0 or more"),
        ({"weight_decay": torch.ones(())}, "weight_decay is tensor"),
    ],
)
def test_numbers_are_checked(options, message):
    with pytest.raises(UserError, match=f"adam_: {message}"):
        call(**options)(make([(2,)]), "cpp")
