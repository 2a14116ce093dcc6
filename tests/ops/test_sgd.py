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
    random,
    torch_optimizer,
)
from numerics import EXAMPLES, LAYOUTS, backends, device

from mlperf_fast.errors import UserError
from mlperf_fast.ops import sgd_

OP = "sgd"
ALL = [*backends(OP), pytest.param("ref")]


def make(sizes, seed=0, layout="contiguous"):
    return {"params": random(sizes, seed, layout), "grads": random(sizes, seed + 100, layout)}


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
@EXAMPLES
@given(
    sizes=SIZES,
    seed=st.integers(100, 999),
    layout=st.sampled_from(LAYOUTS),
    scale=st.sampled_from([None, 1.0, 2.0**-10]),
)
def test_matches_reference(backend, sizes, seed, layout, scale):
    run = calling(sgd_, {"lr": 0.3, "grad_scale": scale})
    check_against_reference(OP, backend, run, make(sizes, seed, layout))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_tensors_of_many_chunks(backend):
    check_against_reference(OP, backend, calling(sgd_, {"lr": 0.3}), make(MANY_CHUNKS))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_tables_of_addresses_follow_the_tensors(backend):
    """Other tensors, other sizes at the same addresses, and the same tensors again with other values."""
    memory, grads, where = torch.zeros(64), torch.ones(64), device(backend)
    memory, grads, lr = memory.to(where), grads.to(where), torch.ones((), device=where)
    sgd_([memory[:32]], [grads[:32]], lr, backend=backend)
    sgd_([memory[:48]], [grads[:48]], lr, backend=backend)
    sgd_([memory[:32], memory[32:]], [grads[:32], grads[32:]], 2 * lr, backend=backend)
    sgd_([memory[:32]], [grads[:32]], lr, backend=backend)
    assert memory.tolist() == [-5] * 32 + [-3] * 16 + [-2] * 16


@pytest.mark.parametrize("backend", ALL, indirect=True)
def test_hundreds_of_steps_under_loss_scaling_are_torch_optims(backend):
    def ours(params):
        def update(grads, step, **scalars):
            sgd_(params, grads, **scalars, backend=backend)

        return update

    check_loss_scaling(OP, backend, ours, torch_optimizer(torch.optim.SGD))


def test_reference_is_torch_optim_sgd():
    params, grads = make([(4, 5), (1,)]).values()
    expected = [torch.nn.Parameter(p.clone()) for p in params]
    for p, g in zip(expected, grads, strict=True):
        p.grad = g.clone()
    torch.optim.SGD(expected, lr=0.25).step()
    sgd_(params, grads, torch.tensor(0.25), backend="ref")
    for got, p in zip(params, expected, strict=True):
        assert torch.equal(got, p.detach())


@pytest.mark.parametrize(
    ("params", "grads", "message"),
    [
        ([torch.ones(2)] * 2, [torch.ones(2), torch.ones(3)], r"grads\[1\] has shape \[3\], expected \[2\]"),
        ([torch.ones(2)], [torch.ones(2).half()], r"grads\[0\] is float16, expected float32"),
        ([torch.ones(2)], [torch.ones(2, device="meta")], r"grads\[0\] is on meta, expected cpu"),
        ([torch.ones(4)[::2]], [torch.ones(2)], r"params\[0\] must be contiguous"),
        ([torch.ones(2)], [torch.ones(1).expand(2)], r"grads\[0\] must be contiguous"),
    ],
)
def test_wrong_arguments(params, grads, message):
    with pytest.raises(UserError, match=f"sgd_: {message}"):
        sgd_(params, grads, torch.ones(1), backend="cpp")
