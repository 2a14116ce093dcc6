"""lamb: LAMB over many tensors with the gradients' norm and its clipping, against PyTorch and apex.

cpp, cuda, triton, ref   ops.grad_norm, then ops.lamb_, by each backend
eager           tensor by tensor, as users write it, without waiting for the device
foreach         by torch's multi-tensor functions, the fastest form of them that we found
torch compile   torch.compile of `foreach`
apex            NVIDIA's FusedLAMB
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mlperf_fast.ops.grad_norm import grad_norm
from mlperf_fast.ops.lamb import lamb_

from . import command, multi_tensor
from .competitors import backends, compiled_lists, library
from .measure import Local, Row
from .multi_tensor import Call, Grads, Update, advancing, each_set, optimizers, scalar, state_like, zeros_like

DEVICES = ("cpu", "cuda")
# csrc/lamb.h where a tensor stays in the cache between the passes, and csrc/grad_norm.h.
UPDATE = Update("lamb", bytes=28 + 4, flops=21 + 2, resident=16)
LR, BETAS, EPS, DECAY, MOST = 1e-3, (0.9, 0.999), 1e-6, 0.01, 1.0  # MOST: to which the gradients' norm is clipped


def measure(chosen: Namespace, sets: Mapping[str, Sequence[tuple[int, ...]]] | None = None) -> Iterator[Row]:
    yield from multi_tensor.measure(chosen, UPDATE, candidates, sets)


def candidates(chosen: Namespace, grads: Grads):
    return {
        **backends("lamb", chosen.device, torch.float32, lambda name: ours(grads, name)),
        "eager": Local(with_state(grads, eager_update)),
        "foreach": Local(with_state(grads, foreach_update)),
        "torch compile": compiled_lists(
            chosen, len(grads[0]), lambda: with_state(grads, torch.compile(foreach_update))
        ),
        "apex": library("apex", chosen.device, lambda: apex(grads)),
    }


def ours(grads: Grads, backend: str) -> Call:
    lr = scalar(LR, grads[0])
    numbers = {"betas": BETAS, "eps": EPS, "weight_decay": DECAY, "max_grad_norm": MOST, "backend": backend}

    def update(params, grads, m, v, step):
        lamb_(params, grads, m, v, lr, step, grad_norm=grad_norm(grads, backend=backend), **numbers)

    return with_state(grads, update, state_like)


def with_state(grads: Grads, update: Callable[..., object], make: Callable[..., Any] = zeros_like) -> Call:
    """`update(params, grads, m, v, step)` on state of each set's own, by make(params)."""

    def one_set(params: list[Tensor], grads: list[Tensor]):
        m, v = make(params), make(params)
        return advancing(lambda step: update(params, grads, m, v, step), params)

    return each_set(grads, one_set)


def clip_factor(grads: list[Tensor]) -> Tensor:
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    return (MOST / norm).clamp(max=1)


def trust_ratio(weight: Tensor, length: Tensor) -> Tensor:
    return torch.where((weight > 0) & (length > 0), weight / length, 1)


@torch.no_grad()
def eager_update(params: list[Tensor], grads: list[Tensor], m: list[Tensor], v: list[Tensor], step: Tensor) -> None:
    clip, first, second = clip_factor(grads), 1 - BETAS[0] ** step, 1 - BETAS[1] ** step
    for i, param in enumerate(params):
        grad = grads[i] * clip
        m[i].lerp_(grad, 1 - BETAS[0])
        v[i].mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
        update = (m[i] / first).div_((v[i] / second).sqrt_().add_(EPS)).add_(param, alpha=DECAY)
        param.sub_(update.mul_(LR * trust_ratio(param.norm(), update.norm())))


@torch.no_grad()
def foreach_update(params: list[Tensor], grads: list[Tensor], m: list[Tensor], v: list[Tensor], step: Tensor) -> None:
    grads = torch._foreach_mul(grads, clip_factor(grads))
    torch._foreach_lerp_(m, grads, 1 - BETAS[0])
    torch._foreach_mul_(v, BETAS[1])
    torch._foreach_addcmul_(v, grads, grads, 1 - BETAS[1])
    length = torch._foreach_div(v, 1 - BETAS[1] ** step)
    torch._foreach_sqrt_(length)
    torch._foreach_add_(length, EPS)
    update = torch._foreach_div(m, 1 - BETAS[0] ** step)
    torch._foreach_div_(update, length)
    torch._foreach_add_(update, params, alpha=DECAY)
    weights, lengths = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(update))
    torch._foreach_mul_(update, list((-LR * trust_ratio(weights, lengths)).unbind()))
    torch._foreach_add_(params, update)


def apex(grads: Grads) -> Call:
    from apex.optimizers import FusedLAMB

    numbers = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY, "max_grad_norm": MOST}
    return optimizers(grads, lambda params: FusedLAMB(params, **numbers))


if __name__ == "__main__":
    sys.exit(command.main("lamb"))
