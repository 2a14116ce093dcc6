"""Where the time went, from traces whose answer is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf_fast.profiling.summary import length, merge, overlap, own_times, summarise, table, without

LOOP, AUTOGRAD = 1, 2  # threads


def event(name, cat, start, dur, tid=LOOP, **args):
    return {"ph": "X", "name": name, "cat": cat, "ts": start, "dur": dur, "tid": tid, "args": args}


def mark(name, start, dur):
    return event(name, "user_annotation", start, dur)


def launched(number, at, start, dur, name="gemm", tid=LOOP, cat="kernel"):
    """A call on the host and the kernel that it launched."""
    call = event("cudaLaunchKernel", "cuda_runtime", at, 2, tid, correlation=number)
    return [call, event(name, cat, start, dur, tid=7, correlation=number)]


def lines(found):
    return {name: round(value["ms_per_step"] * 1000, 6) for name, value in found["lines"].items()}


def test_on_the_host_lines_follow_the_ranges_of_the_loop():
    """Two steps of 1,000 us; the second contains a collective inside its forward pass."""
    events = []
    for at in (0, 1000):
        events += [
            mark("data wait", at, 100), mark("step", at + 110, 880), mark("forward", at + 120, 200),
            mark("backward", at + 330, 300), mark("gradient exchange", at + 640, 50), mark("optimizer", at + 700, 280),
        ]  # fmt: skip
    events += [event("c10d::alltoall_base_", "cpu_op", 1150, 20), event("aten::mm", "cpu_op", 0, 2000, tid=9)]
    found = summarise(events, steps=2)
    assert found["follows"] == "host"
    expected = {"compute": 490, "optimizer": 280, "communication": 60, "data wait": 100, "idle": 65}
    assert lines(found) == expected
    assert found["ms_per_step"] == pytest.approx(0.995), "1,990 us: the second step ends 10 us early"


def test_on_a_gpu_lines_follow_the_device():
    """Computing 100-400, an exchange 350-450 half hidden, the optimizer 450-550; the host waits for data 600-800."""
    events = [
        mark("step", 0, 600), mark("forward", 0, 100), mark("backward", 100, 100), mark("optimizer", 300, 50),
        mark("data wait", 600, 200), mark("step", 800, 200),
        *launched(1, 10, 100, 200), *launched(2, 110, 300, 100, tid=AUTOGRAD),
        *launched(3, 250, 350, 100, name="ncclDevKernel_AllReduce_Sum_f32"), *launched(4, 310, 450, 100, name="sgd"),
        *launched(5, 810, 850, 50, name="Memcpy DtoD", cat="gpu_memcpy"),
        event("Memset", "gpu_memset", 960, 10, tid=7),
    ]  # fmt: skip
    found = summarise(events, steps=1)
    assert found["follows"] == "device"
    expected = {"compute": 360, "optimizer": 100, "communication": 50, "data wait": 200, "idle": 290}
    assert lines(found) == expected
    assert sum(value["share"] for value in found["lines"].values()) == pytest.approx(1)
    assert found["kernels_per_step"] == 4
    assert found["top_kernels"][0] == {"name": "gemm", "calls_per_step": 2, "ms_per_step": 0.3, "share": 0.3}
    assert found["optimizer_apart"]


def test_evaluations_are_left_out_and_told():
    events = [
        mark("step", 0, 100), mark("forward", 0, 80), mark("evaluate", 100, 900),
        event("aten::sort", "cpu_op", 200, 700), mark("step", 1000, 100), mark("forward", 1000, 60),
    ]  # fmt: skip
    found = summarise(events, steps=2)
    assert lines(found) == {"compute": 70, "optimizer": 0, "communication": 0, "data wait": 0, "idle": 30}
    assert found["evaluations_ms"] == 0.9
    assert "aten::sort" not in [row["name"] for row in found["top_ops"]]


def test_a_graph_hides_the_optimizer_and_the_table_says_so():
    events = [mark("step", 0, 100), mark("graph replay", 10, 20), event("sgd", "kernel", 20, 70, tid=7, correlation=1)]
    found = summarise(events, steps=1)
    assert not found["optimizer_apart"]
    assert lines(found)["compute"] == 70
    facts = {"workload": "dlrm", "preset": "demo", "first": 3, "last": 3, "device": "a GPU", "step_mode": "captured"}
    text = table({**facts, **found, "trace": "t.json.gz"})
    assert "--set cuda_graph=off shows it apart" in text
    assert "  compute                             0.070   70.0%  █████████████████████\n" in text
    assert "  step                                0.100  100.0%  10,000.0 steps/s\n" in text
    assert "1 kernels a step" in text


def test_own_time_leaves_out_what_is_inside():
    events = [
        event("outer", "cpu_op", 0, 100), event("inner", "cpu_op", 10, 30), event("innermost", "cpu_op", 15, 5),
        event("inner", "cpu_op", 50, 20), event("next", "cpu_op", 100, 10),
    ]  # fmt: skip
    totals = {}
    for name, own in own_times(events[::-1]):
        totals[name] = totals.get(name, 0) + own
    assert totals == {"outer": 50, "inner": 45, "innermost": 5, "next": 10}


pieces = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=6)


@given(pieces, pieces)
def test_spans_are_sets_of_moments(a, b):
    """Merging, overlap and difference against sets of whole moments."""
    moments = [{t for start, size in part for t in range(start, start + size)} for part in (a, b)]
    first, second = (merge((start, start + size) for start, size in part) for part in (a, b))
    for found, expected in (
        (first, moments[0]),
        (overlap(first, second), moments[0] & moments[1]),
        (without(first, second), moments[0] - moments[1]),
    ):
        assert {t for start, end in found for t in range(start, end)} == expected
        assert length(found) == len(expected)
