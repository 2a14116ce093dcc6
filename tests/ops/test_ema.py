import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from multi_tensor import MANY_CHUNKS, SIZES, calling, check_against_reference, compare_lists, copies, random
from numerics import EXAMPLES, LAYOUTS, backends, device, slow, wide

from mlperf_fast.ops import ema_

OP = "ema"
ALL = [*backends(OP), pytest.param("ref")]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def make(sizes, seed=0, layout="contiguous", dtype=torch.float32):
    return {"averages": random(sizes, seed, layout), "params": random(sizes, seed + 100, layout, dtype)}


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
@EXAMPLES
@given(
    sizes=SIZES,
    seed=st.integers(1000, 9999),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    decay=st.sampled_from([0.0, 0.5, 0.999, 1.0]),
)
def test_matches_reference(backend, sizes, seed, layout, dtype, decay):
    check_against_reference(OP, backend, calling(ema_, {"decay": decay}), make(sizes, seed, layout, dtype))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_tensors_of_many_chunks(backend):
    check_against_reference(OP, backend, calling(ema_, {"decay": 0.9}), make(MANY_CHUNKS, dtype=torch.float16))


@pytest.mark.parametrize("backend", ALL, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
def test_hundreds_of_steps_with_a_decay_that_grows(backend, dtype):
    """One step in fifty is skipped, with infinite weights, as after an overflow."""
    where, sizes = device(backend), [(400,), (30, 7), (110,)]
    averages = random(sizes, seed=0)
    plain, truth, averages = copies(averages, "cpu"), copies(averages, torch.float64), copies(averages, where)
    decay, found = torch.zeros(1, device=where), torch.zeros(1, device=where)
    for step in range(60 if slow(backend) else 400):
        params = [wide(1000 + 10 * step + i, *size, decades=2).to(dtype) for i, size in enumerate(sizes)]
        skipped = step % 50 == 20
        if skipped:
            params[1][1, 2] = torch.inf
        decay.fill_(min(0.98, (1 + step) / (10 + step)))
        found.fill_(float(skipped))
        ema_(averages, copies(params, where), decay, found_inf=found, backend=backend)
        if not skipped:
            for average, exact, w in zip(plain, truth, params, strict=True):
                average.mul_(decay.item()).add_(w.float(), alpha=1 - decay.item())
                exact.mul_(decay.item()).add_(w.double(), alpha=1 - decay.item())
    compare_lists("ema averages", backend, averages, plain, truth)
