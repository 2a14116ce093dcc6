"""sgd: plain SGD over many tensors in one call, against torch.optim.SGD and apex.

cpp, cuda, triton, ref   ops.sgd_ by each backend
torch fused …            torch.optim.SGD with fused=True, with foreach=True, and as a plain loop
torch compile            torch.compile of the foreach form's update
apex                     NVIDIA's FusedSGD
Each has parameters of its own; the gradients are the same. The sets of parameters are in shapes.py.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mlperf_fast.ops.sgd import sgd_

from . import ceilings, command, machine, shapes
from .competitors import backends, best, compiled_lists, library
from .measure import Local, Row, compare, rotation

DEVICES = ("cpu", "cuda")
LR = 1e-3
TORCH = {"torch fused": {"fused": True}, "torch foreach": {"foreach": True}, "torch loop": {"foreach": False}}


def measure(chosen: Namespace, sets: Mapping[str, Sequence[tuple[int, ...]]] | None = None) -> Iterator[Row]:
    for label, sizes in (sets or shapes.parameter_sets(chosen.quick)).items():
        elements = sum(torch.Size(size).numel() for size in sizes)
        copies = rotation(8 * elements, machine.cache_bytes(chosen.device), most=16)
        grads = [[torch.randn(size, device=chosen.device) for size in sizes] for _ in range(copies)]
        results = compare(candidates(chosen, grads), command.effort(chosen))
        # 12 bytes and 2 flops an element, as csrc/sgd.h says.
        limit, ours = ceilings.stream(chosen.device), best("sgd", chosen.device)
        yield Row("sgd", label, "fp32", chosen.threads, 12 * elements, 2 * elements, limit, results, ours)


def candidates(chosen: Namespace, grads: list[list[Tensor]]):
    return {
        **backends("sgd", chosen.device, torch.float32, lambda name: our_sgd(grads, name)),
        **{name: Local(torch_sgd(grads, torch.optim.SGD, kind)) for name, kind in TORCH.items()},
        "torch compile": compiled_lists(chosen, len(grads[0]), lambda: compiled_sgd(grads)),
        "apex": library("apex", chosen.device, lambda: apex_sgd(grads)),
    }


def our_sgd(grads: list[list[Tensor]], backend: str) -> Callable[[int], object]:
    params, lr = random_like(grads), torch.full((), LR, device=grads[0][0].device)
    return lambda number: sgd_(params[number % len(grads)], grads[number % len(grads)], lr, backend=backend)


def torch_sgd(grads: list[list[Tensor]], optimizer: type[torch.optim.Optimizer], kind: dict) -> Callable[[int], object]:
    """An optimizer for each set, so that no call has to hand gradients over."""
    optimizers = []
    for params, one in zip(random_like(grads), grads, strict=True):
        for param, grad in zip(params, one, strict=True):
            param.grad = grad
        optimizers.append(optimizer(params, lr=LR, **kind))  # type: ignore[arg-type]
    return lambda number: optimizers[number % len(grads)].step()


def apex_sgd(grads: list[list[Tensor]]) -> Callable[[int], object]:
    from apex.optimizers import FusedSGD

    return torch_sgd(grads, FusedSGD, {})


def compiled_sgd(grads: list[list[Tensor]]) -> Callable[[int], object]:
    params = random_like(grads)
    update = torch.compile(lambda params, grads: torch._foreach_add_(params, grads, alpha=-LR))
    return lambda number: update(params[number % len(grads)], grads[number % len(grads)])


def random_like(grads: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[torch.randn_like(grad) for grad in one] for one in grads]


if __name__ == "__main__":
    sys.exit(command.main("sgd"))
