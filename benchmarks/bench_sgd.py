"""sgd: plain SGD over many tensors in one call, against torch.optim.SGD and apex.

cpp, cuda, triton, ref   ops.sgd_ by each backend
torch fused …            torch.optim.SGD with fused=True, with foreach=True, and as a plain loop
torch compile            torch.compile of the foreach form's update
apex                     NVIDIA's FusedSGD
"""

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence

import torch

from mlperf_fast.ops.sgd import sgd_

from . import command, multi_tensor
from .competitors import backends, compiled_lists, library
from .measure import Local, Row
from .multi_tensor import Call, Grads, Update, each_set, optimizers, scalar

DEVICES = ("cpu", "cuda")
UPDATE = Update("sgd", bytes=12, flops=2, resident=8)  # csrc/sgd.h
LR = 1e-3
TORCH = {"torch fused": {"fused": True}, "torch foreach": {"foreach": True}, "torch loop": {"foreach": False}}


def measure(chosen: Namespace, sets: Mapping[str, Sequence[tuple[int, ...]]] | None = None) -> Iterator[Row]:
    yield from multi_tensor.measure(chosen, UPDATE, candidates, sets)


def candidates(chosen: Namespace, grads: Grads):
    return {
        **backends("sgd", chosen.device, torch.float32, lambda name: ours(grads, name)),
        **{
            name: Local(optimizers(grads, lambda params, kind=kind: torch.optim.SGD(params, LR, **kind)))
            for name, kind in TORCH.items()
        },
        "torch compile": compiled_lists(chosen, len(grads[0]), lambda: compiled(grads)),
        "apex": library("apex", chosen.device, lambda: apex(grads)),
    }


def ours(grads: Grads, backend: str) -> Call:
    lr = scalar(LR, grads[0])
    return each_set(grads, lambda params, grads: lambda: sgd_(params, grads, lr, backend=backend))


def compiled(grads: Grads) -> Call:
    update = torch.compile(lambda params, grads: torch._foreach_add_(params, grads, alpha=-LR))
    return each_set(grads, lambda params, grads: lambda: update(params, grads))


def apex(grads: Grads) -> Call:
    from apex.optimizers import FusedSGD

    return optimizers(grads, lambda params: FusedSGD(params, LR))


if __name__ == "__main__":
    sys.exit(command.main("sgd"))
