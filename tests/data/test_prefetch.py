import gc
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import pytest
import torch

from mlperf_fast.data.prefetch import Prefetcher


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    gc.collect()
    assert prefetch_threads() == []


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_items_come_in_order(depth):
    assert list(Prefetcher(range(50), depth=depth)) == list(range(50))


def test_works_ahead_but_no_further_than_depth():
    made = []
    source = (made.append(i) or i for i in range(100))
    with Prefetcher(source, depth=3) as items:
        deadline = time.monotonic() + 5
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert made == [0, 1, 2, 3]  # three wait in the queue, one in the thread's hand
        assert next(items) == 0


def test_an_error_comes_where_its_item_would_have_come():
    def source():
        yield 1
        yield 2
        raise ValueError("item 3 is bad")

    items = Prefetcher(source())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="item 3 is bad"):
        next(items)
    assert list(items) == []


def test_closing_early_ends_the_thread_and_the_source():
    ended = threading.Event()

    def source():
        try:
            yield from range(10**9)
        finally:
            ended.set()

    with Prefetcher(source()) as items:
        assert next(items) == 0
    assert ended.wait(5)
    items.close()
    assert list(items) == []


def test_a_dropped_one_ends_its_thread():
    items = Prefetcher(iter(int, 1))
    next(items)
    del items
    gc.collect()
    assert prefetch_threads() == []


def test_length():
    assert len(Prefetcher(range(3), length=3)) == 3
    with pytest.raises(TypeError, match="without a length"):
        len(Prefetcher(range(3)))


def test_the_interpreter_can_end_while_one_is_at_work():
    program = (
        "from mlperf_fast.data.prefetch import Prefetcher\n"
        "items = Prefetcher(iter(int, 1))\n"
        "next(items)\n"
        "print('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_items_arrive_whole_on_the_device():
    def source():
        for i in range(40):
            yield Pair(torch.full((1 << 20,), i).pin_memory(), torch.tensor([i]).pin_memory()), i

    for i, (pair, number) in enumerate(Prefetcher(source(), device="cuda")):
        assert pair.left.is_cuda
        assert number == i
        assert (int(pair.left.min()), int(pair.left.max()), int(pair.right)) == (i, i, i)
