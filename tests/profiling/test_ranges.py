"""Named ranges: nothing while off, torch's and NVTX's names while on."""

import timeit

import pytest
import torch

from mlperf_fast.profiling import ranges
from mlperf_fast.profiling.ranges import named


@pytest.fixture(autouse=True)
def off_again():
    yield
    ranges.show(None)


def test_a_range_that_nobody_watches_costs_next_to_nothing():
    def opened():
        with named("forward"):
            pass

    per_call = min(timeit.repeat(opened, number=10_000, repeat=5)) / 10_000
    print(f"{per_call * 1e9:.0f} ns")
    assert per_call < 2e-6, "0.2 us where it was measured"


def test_torch_s_profiler_shows_them_nested():
    ranges.show("torch")
    with torch.profiler.profile() as profiler, named("step"), named("forward"):
        torch.ones(3) + 1
    found = {event.name: event.time_range for event in profiler.events()}
    assert found["step"].start <= found["forward"].start <= found["aten::add"].start
    assert found["aten::add"].end <= found["forward"].end <= found["step"].end


def test_nvtx_ranges_are_closed_in_order_also_when_the_step_fails(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", calls.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: calls.append("pop"))
    ranges.show("nvtx")
    with pytest.raises(ValueError, match="broken"), named("step"), named("forward"):
        raise ValueError("broken")
    assert calls == ["step", "forward", "pop", "pop"]
    ranges.show(None)
    with named("step"):
        assert len(calls) == 4
