"""ema: exponential moving averages of many tensors in one call, against PyTorch.

cpp, cuda, triton, ref   ops.ema_ by each backend
torch foreach   torch._foreach_lerp_, as torch.optim.swa_utils does it
torch loop      lerp_ tensor by tensor
torch compile   torch.compile of the foreach form
"""

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mlperf_fast.ops.ema import ema_
from mlperf_fast.ops.lists import Kept

from . import command, multi_tensor
from .competitors import backends, compiled_lists
from .measure import Local, Row
from .multi_tensor import Call, Grads, Update, each_set, scalar

DEVICES = ("cpu", "cuda")
UPDATE = Update("ema", bytes=12, flops=3, resident=8)  # csrc/ema.h
DECAY = 0.999


def measure(chosen: Namespace, sets: Mapping[str, Sequence[tuple[int, ...]]] | None = None) -> Iterator[Row]:
    yield from multi_tensor.measure(chosen, UPDATE, candidates, sets)


def candidates(chosen: Namespace, params: Grads):
    """The sets of inputs are the parameters here, and each competitor has averages of its own."""
    return {
        **backends("ema", chosen.device, torch.float32, lambda name: ours(params, name)),
        "torch foreach": Local(by(params, foreach_update)),
        "torch loop": Local(by(params, loop_update)),
        "torch compile": compiled_lists(chosen, len(params[0]), lambda: by(params, torch.compile(foreach_update))),
    }


def ours(params: Grads, backend: str) -> Call:
    decay = scalar(DECAY, params[0])

    def one_set(averages: list[Tensor], params: list[Tensor]):
        kept = Kept(averages)
        return lambda: ema_(kept, params, decay, backend=backend)

    return each_set(params, one_set)


def by(params: Grads, update) -> Call:
    return each_set(params, lambda averages, params: lambda: update(averages, params))


def foreach_update(averages, params) -> None:
    torch._foreach_lerp_(averages, params, 1 - DECAY)


def loop_update(averages, params) -> None:
    for average, param in zip(averages, params, strict=True):
        average.lerp_(param, 1 - DECAY)


if __name__ == "__main__":
    sys.exit(command.main("ema"))
