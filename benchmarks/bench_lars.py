"""lars: LARS over many tensors in one call, all of them decayed and adapted, against PyTorch and apex.

cpp, cuda, triton, ref   ops.lars_ by each backend
eager           tensor by tensor, as users write it, without waiting for the device
foreach         by torch's multi-tensor functions, the fastest form of them that we found
torch compile   torch.compile of `foreach`
apex            NVIDIA's LARC around torch.optim.SGD(foreach=True)
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mlperf_fast.ops.lars import lars_

from . import command, multi_tensor
from .competitors import backends, compiled_lists, library
from .measure import Local, Row
from .multi_tensor import Call, Grads, Update, each_set, optimizers, scalar, state_like, zeros_like

DEVICES = ("cpu", "cuda")
UPDATE = Update("lars", bytes=20, flops=11, resident=12)  # csrc/lars.h where a tensor stays in the cache
LR, MOMENTUM, ETA, DECAY = 1e-1, 0.9, 1e-3, 5e-5


def measure(chosen: Namespace, sets: Mapping[str, Sequence[tuple[int, ...]]] | None = None) -> Iterator[Row]:
    yield from multi_tensor.measure(chosen, UPDATE, candidates, sets)


def candidates(chosen: Namespace, grads: Grads):
    return {
        **backends("lars", chosen.device, torch.float32, lambda name: ours(grads, name)),
        "eager": Local(with_buffers(grads, eager_update)),
        "foreach": Local(with_buffers(grads, foreach_update)),
        "torch compile": compiled_lists(
            chosen, len(grads[0]), lambda: with_buffers(grads, torch.compile(foreach_update))
        ),
        "apex": library("apex", chosen.device, lambda: apex(grads)),
    }


def ours(grads: Grads, backend: str) -> Call:
    lr = scalar(LR, grads[0])
    numbers = {"momentum": MOMENTUM, "eta": ETA, "weight_decay": DECAY, "backend": backend}
    return with_buffers(grads, lambda params, grads, buffers: lars_(params, grads, buffers, lr, **numbers), state_like)


def with_buffers(grads: Grads, update: Callable[..., object], make: Callable[..., Any] = zeros_like) -> Call:
    """`update(params, grads, buffers)` with buffers of each set's own, by make(params)."""

    def one_set(params: list[Tensor], grads: list[Tensor]):
        buffers = make(params)
        return lambda: update(params, grads, buffers)

    return each_set(grads, one_set)


def trust_ratio(weight: Tensor, gradient: Tensor) -> Tensor:
    return torch.where((weight > 0) & (gradient > 0), ETA * weight / (gradient + DECAY * weight), 1)


@torch.no_grad()
def eager_update(params: list[Tensor], grads: list[Tensor], buffers: list[Tensor]) -> None:
    for param, grad, buffer in zip(params, grads, buffers, strict=True):
        ratio = trust_ratio(param.norm(), grad.norm())
        buffer.mul_(MOMENTUM).add_(grad.add(param, alpha=DECAY).mul_(ratio))
        param.add_(buffer, alpha=-LR)


@torch.no_grad()
def foreach_update(params: list[Tensor], grads: list[Tensor], buffers: list[Tensor]) -> None:
    weights, lengths = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(grads))
    change = torch._foreach_add(grads, params, alpha=DECAY)
    torch._foreach_mul_(change, list(trust_ratio(weights, lengths).unbind()))
    torch._foreach_mul_(buffers, MOMENTUM)
    torch._foreach_add_(buffers, change)
    torch._foreach_add_(params, buffers, alpha=-LR)


def apex(grads: Grads) -> Call:
    from apex.parallel.LARC import LARC

    def build(params: list[Tensor]):
        sgd = torch.optim.SGD(params, LR, momentum=MOMENTUM, weight_decay=DECAY, foreach=True)
        return LARC(sgd, trust_coefficient=ETA, clip=False, eps=0.0)

    own = [[grad.clone() for grad in one] for one in grads]  # it writes its ratio into the gradients
    return optimizers(own, build)


if __name__ == "__main__":
    sys.exit(command.main("lars"))
