import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from multi_tensor import (
    MANY_CHUNKS,
    SIZES,
    check_against_reference,
    check_any_number_of_threads,
    check_compiles,
    check_loss_scaling,
    check_skips,
    copied,
    random,
    torch_optimizer,
    zeros,
)
from numerics import EXAMPLES, LAYOUTS, backends, device

from mlperf_fast.errors import UserError
from mlperf_fast.ops import adam_
from mlperf_fast.ops.lists import Kept

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


def call(lr=0.03, step=7.0, grad_scale=None, found_inf=None, **options):
    scalars = {"lr": lr, "step": step, "grad_scale": grad_scale, "found_inf": found_inf}

    def run(lists, backend):
        given = {name: torch.tensor(x, device=device(backend)) for name, x in scalars.items() if x is not None}
        adam_(**lists, **given, **options, backend=backend)

    return run


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


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_same_bits_for_any_number_of_threads(backend):
    check_any_number_of_threads(backend, call(), make([(100,)] * 50 + [(150_001,)], copy_dtype=torch.float16))


@pytest.mark.parametrize("backend", ALL, indirect=True)
def test_found_inf_leaves_everything_as_it_is(backend):
    lists = make([(4, 5), (1,)], copy_dtype=torch.bfloat16)
    lists["grads"][0][1, 1] = torch.inf
    check_skips(backend, call(found_inf=1.0), lists)


@pytest.mark.parametrize("backend", ALL, indirect=True)
def test_updates_parameters_that_require_a_gradient(backend):
    lists = copied(make([(3,)], copy_dtype=torch.float16), device(backend))
    lists["params"] = [torch.nn.Parameter(p) for p in lists["params"]]
    versions = [lists[name][0]._version for name in ("params", "copies")]
    call()(lists, backend)
    assert lists["params"][0].requires_grad
    assert all(lists[name][0]._version > v for name, v in zip(("params", "copies"), versions, strict=True))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_kept_moments_are_read_once(backend):
    lists = copied(make([(5,), (6,)]), device(backend))
    expected = copied(lists, device(backend))
    lists |= {name: Kept(lists[name]) for name in ("exp_avgs", "exp_avg_sqs")}
    for _ in range(3):
        call()(lists, backend)
        call()(expected, backend)
    assert lists["exp_avgs"].found is not None
    for name in lists:
        assert all(map(torch.equal, lists[name], expected[name]))


@pytest.mark.parametrize("backend", ALL, indirect=True)
def test_nothing_to_do(backend):
    call()({"params": [], "grads": [], "exp_avgs": [], "exp_avg_sqs": []}, backend)
    call()(copied(make([(0,), (0, 3)], copy_dtype=torch.bfloat16), device(backend)), backend)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grads": []}, "0 grads, expected one for each of 1 params"),
        ({"copies": [torch.ones(2).half()] * 2}, "2 copies, expected one for each of 1 params"),
        ({"exp_avgs": [torch.ones(3)]}, r"exp_avgs\[0\] has shape \[3\], expected \[2\]"),
        ({"exp_avgs": [torch.ones(2).half()]}, r"exp_avgs\[0\] is float16, expected float32"),
        ({"exp_avg_sqs": [torch.ones(4)[::2]]}, r"exp_avg_sqs\[0\] must be contiguous"),
        ({"grads": [torch.ones(2).double()]}, r"grads\[0\] is float64, expected float32 or bfloat16 or float16"),
        ({"copies": [torch.ones(2).int()]}, r"copies\[0\] is int32, expected float32 or bfloat16 or float16"),
        ({"params": [torch.ones(2).double()]}, "cpp takes float32, found float64"),
        ({"lr": 0.1}, "lr is a float, expected a float32 tensor"),
        ({"step": torch.ones((), dtype=torch.int64)}, "step has .* expected a float32 tensor"),
        ({"found_inf": torch.ones(2)}, "found_inf has shape"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] is 1.0, expected a number of 0 or more and less than 1"),
        ({"eps": -1e-8}, "eps is -1e-08, expected a number of 0 or more"),
        ({"weight_decay": torch.ones(())}, "weight_decay is tensor"),
    ],
)
def test_wrong_arguments(changes, message):
    lists = {name: [torch.ones(2)] for name in ("params", "grads", "exp_avgs", "exp_avg_sqs")}
    with pytest.raises(UserError, match=f"adam_?: .*{message}"):
        adam_(**(lists | {"lr": torch.ones(()), "step": torch.ones(())} | changes), backend="cpp")


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_torch_op_contract(backend):
    lists = copied(make([(4, 5), (1,)], copy_dtype=torch.bfloat16), device(backend))
    one = torch.ones(1, device=lists["params"][0].device)
    numbers = (0.9, 0.999, 1e-8, 0.1, True)
    torch.library.opcheck(torch.ops.mlperf_fast.adam_, (*lists.values(), one, one, None, one, *numbers, backend))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_compiles_without_graph_break(backend):
    check_compiles(backend, call(weight_decay=0.1), make([(4, 5), (1,)], copy_dtype=torch.bfloat16))
