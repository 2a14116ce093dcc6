"""What the benchmarks of updates of many tensors share: sets of parameters, the row, competitors' optimizers.

A set of inputs is a list of gradients; each competitor has parameters and state of its own for each set.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mlperf_fast.ops.lists import Kept

from . import ceilings, command, machine, shapes
from .competitors import best
from .measure import Candidate, Row, compare, rotation

Grads = list[list[Tensor]]
Call = Callable[[int], object]


@dataclass(frozen=True)
class Update:
    """An op; the bytes that it must move and the flops that it must do for an element, as its header says; the bytes
    that an element takes, parameter, gradient and state together."""

    op: str
    bytes: int
    flops: int
    resident: int


def measure(
    chosen: Namespace,
    update: Update,
    candidates: Callable[[Namespace, Grads], Mapping[str, Candidate | str]],
    sets: Mapping[str, Sequence[tuple[int, ...]]] | None = None,
) -> Iterator[Row]:
    """A row for each of `sets`, by default those of shapes.py."""
    for label, sizes in (sets or shapes.parameter_sets(chosen.quick)).items():
        elements = sum(torch.Size(size).numel() for size in sizes)
        copies = rotation(update.resident * elements, machine.cache_bytes(chosen.device), most=16)
        grads = [[torch.randn(size, device=chosen.device) for size in sizes] for _ in range(copies)]
        results = compare(candidates(chosen, grads), command.effort(chosen))
        work, limit = (update.bytes * elements, update.flops * elements), ceilings.stream(chosen.device)
        yield Row(update.op, label, "fp32", chosen.threads, *work, limit, results, best(update.op, chosen.device))


def each_set(grads: Grads, build: Callable[[list[Tensor], list[Tensor]], Callable[[], object]]) -> Call:
    """`build(parameters, gradients)` gives one set's update; the call runs them in turn."""
    updates = [build([torch.randn_like(grad) for grad in one], one) for one in grads]
    return lambda number: updates[number % len(updates)]()


def optimizers(grads: Grads, build: Callable[[list[Tensor]], torch.optim.Optimizer]) -> Call:
    """The steps of an optimizer for each set, so that no call has to hand gradients over."""

    def one_set(params: list[Tensor], grads: list[Tensor]) -> Callable[[], object]:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        return build(params).step

    return each_set(grads, one_set)


def zeros_like(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(tensor) for tensor in tensors]


def state_like(tensors: Sequence[Tensor]) -> Kept:
    """What our optimizers keep for each parameter, as they keep it."""
    return Kept(zeros_like(tensors))


def scalar(value: float, like: Sequence[Tensor]) -> Tensor:
    """One float32 where the tensors are."""
    return torch.full((), value, dtype=torch.float32, device=like[0].device)


def advancing(update: Callable[[Tensor], object], like: Sequence[Tensor]) -> Callable[[], object]:
    """`update(step)` with the step counted on the device, as an optimizer does."""
    step = scalar(0, like)
    return lambda: update(step.add_(1))
