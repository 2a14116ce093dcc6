"""adam: AdamW over many tensors in one call, against torch.optim.AdamW and apex.

cpp, cuda, triton, ref   ops.adam_ by each backend
torch fused …            torch.optim.AdamW with fused=True, with foreach=True, and as a plain loop
torch compile            torch.compile of the foreach form's update
apex                     NVIDIA's FusedAdam
"""

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from mlperf_fast.ops.adam import adam_

from . import command, multi_tensor
from .competitors import backends, compiled_lists, library
from .measure import Local, Row
from .multi_tensor import Call, Grads, Update, advancing, each_set, optimizers, scalar, state_like, zeros_like

DEVICES = ("cpu", "cuda")
UPDATE = Update("adam", bytes=28, flops=14, resident=16)  # csrc/adam.h
LR, BETAS, EPS, DECAY = 1e-3, (0.9, 0.999), 1e-8, 1e-2
TORCH = {"torch fused": {"fused": True}, "torch foreach": {"foreach": True}, "torch loop": {"foreach": False}}


def measure(chosen: Namespace, sets: Mapping[str, Sequence[tuple[int, ...]]] | None = None) -> Iterator[Row]:
    yield from multi_tensor.measure(chosen, UPDATE, candidates, sets)


def candidates(chosen: Namespace, grads: Grads):
    numbers = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY}
    return {
        **backends("adam", chosen.device, torch.float32, lambda name: ours(grads, name)),
        **{
            name: Local(optimizers(grads, partial(torch.optim.AdamW, **numbers, **kind)))
            for name, kind in TORCH.items()
        },
        "torch compile": compiled_lists(chosen, len(grads[0]), lambda: compiled(grads)),
        "apex": library("apex", chosen.device, lambda: apex(grads, numbers)),
    }


def ours(grads: Grads, backend: str) -> Call:
    lr = scalar(LR, grads[0])
    numbers = {"betas": BETAS, "eps": EPS, "weight_decay": DECAY, "decoupled": True, "backend": backend}

    def one_set(params: list[Tensor], grads: list[Tensor]):
        m, v = state_like(params), state_like(params)
        return advancing(lambda step: adam_(params, grads, m, v, lr, step, **numbers), params)

    return each_set(grads, one_set)


def foreach_update(params: list[Tensor], grads: list[Tensor], m: list[Tensor], v: list[Tensor], step: Tensor) -> None:
    torch._foreach_mul_(params, 1 - LR * DECAY)
    torch._foreach_lerp_(m, grads, 1 - BETAS[0])
    torch._foreach_mul_(v, BETAS[1])
    torch._foreach_addcmul_(v, grads, grads, 1 - BETAS[1])
    length = torch._foreach_div(v, 1 - BETAS[1] ** step)
    torch._foreach_sqrt_(length)
    torch._foreach_add_(length, EPS)
    direction = torch._foreach_div(m, length)
    torch._foreach_mul_(direction, -LR / (1 - BETAS[0] ** step))
    torch._foreach_add_(params, direction)


def compiled(grads: Grads) -> Call:
    update = torch.compile(foreach_update)

    def one_set(params: list[Tensor], grads: list[Tensor]):
        m, v = zeros_like(params), zeros_like(params)
        return advancing(lambda step: update(params, grads, m, v, step), params)

    return each_set(grads, one_set)


def apex(grads: Grads, numbers: dict) -> Call:
    from apex.optimizers import FusedAdam

    return optimizers(grads, partial(FusedAdam, adam_w_mode=True, **numbers))


if __name__ == "__main__":
    sys.exit(command.main("adam"))
