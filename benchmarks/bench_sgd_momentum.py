"""sgd_momentum: SGD with momentum and weight decay over many tensors in one call, against torch.optim.SGD and apex.

cpp, cuda, triton, ref   ops.sgd_momentum_ by each backend
torch fused …            torch.optim.SGD with fused=True, with foreach=True, and as a plain loop
torch compile            torch.compile of the foreach form's update
apex                     NVIDIA's FusedSGD
"""

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from mlperf_fast.ops.sgd_momentum import sgd_momentum_

from . import command, multi_tensor
from .competitors import backends, compiled_lists, library
from .measure import Local, Row
from .multi_tensor import Call, Grads, Update, advancing, each_set, optimizers, scalar, state_like, zeros_like

DEVICES = ("cpu", "cuda")
UPDATE = Update("sgd_momentum", bytes=20, flops=9, resident=12)  # csrc/sgd_momentum.h
LR, MOMENTUM, DECAY = 1e-3, 0.9, 1e-4
TORCH = {"torch fused": {"fused": True}, "torch foreach": {"foreach": True}, "torch loop": {"foreach": False}}


def measure(chosen: Namespace, sets: Mapping[str, Sequence[tuple[int, ...]]] | None = None) -> Iterator[Row]:
    yield from multi_tensor.measure(chosen, UPDATE, candidates, sets)


def candidates(chosen: Namespace, grads: Grads):
    numbers = {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY}
    return {
        **backends("sgd_momentum", chosen.device, torch.float32, lambda name: ours(grads, name)),
        **{name: Local(optimizers(grads, partial(torch.optim.SGD, **numbers, **kind))) for name, kind in TORCH.items()},
        "torch compile": compiled_lists(chosen, len(grads[0]), lambda: compiled(grads)),
        "apex": library("apex", chosen.device, lambda: apex(grads, numbers)),
    }


def ours(grads: Grads, backend: str) -> Call:
    lr = scalar(LR, grads[0])
    numbers = {"momentum": MOMENTUM, "weight_decay": DECAY, "backend": backend}

    def one_set(params: list[Tensor], grads: list[Tensor]):
        buffers = state_like(params)
        return advancing(lambda step: sgd_momentum_(params, grads, buffers, lr, step, **numbers), params)

    return each_set(grads, one_set)


def foreach_update(params: list[Tensor], grads: list[Tensor], buffers: list[Tensor]) -> None:
    torch._foreach_mul_(buffers, MOMENTUM)
    torch._foreach_add_(buffers, torch._foreach_add(grads, params, alpha=DECAY))
    torch._foreach_add_(params, buffers, alpha=-LR)


def compiled(grads: Grads) -> Call:
    update = torch.compile(foreach_update)
    return each_set(grads, lambda params, grads: partial(update, params, grads, zeros_like(params)))


def apex(grads: Grads, numbers: dict) -> Call:
    from apex.optimizers import FusedSGD

    return optimizers(grads, partial(FusedSGD, **numbers))


if __name__ == "__main__":
    sys.exit(command.main("sgd_momentum"))
