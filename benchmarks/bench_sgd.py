"""sgd_: plain SGD over many tensors in one call, against torch.optim.SGD.

small    2,000 tensors, 4.1 million elements: call overhead decides
large    206 tensors, 110 million elements, the shapes of BERT-base: memory bandwidth decides
ours, and torch.optim.SGD with fused=True, with foreach=True, and as a plain loop. Each has parameters of its own; the
gradients are the same.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mlperf_fast.ops.sgd import sgd_

from . import command, machine
from .measure import Local, Row, compare, rotation

LR = 1e-3
SHAPES = {
    "2,000 small tensors, 4.1 M": [(2048,)] * 2000,
    "206 tensors of BERT-base, 110 M": (
        [(30522, 768), (512, 768), (2, 768), (768,), (768,)]
        + ([(768, 768), (768,)] * 4 + [(3072, 768), (3072,), (768, 3072), (768,)] + [(768,)] * 4) * 12
        + [(768, 768), (768,), (768, 768), (768,), (768,), (768,), (30522,), (2, 768), (2,)]
    ),
}
QUICK_SHAPES = {"40 small tensors": [(64,)] * 40}
TORCH = {"torch fused": {"fused": True}, "torch foreach": {"foreach": True}, "torch loop": {"foreach": False}}


def measure(chosen: Namespace, shapes: dict[str, Sequence[tuple[int, ...]]] | None = None) -> Iterator[Row]:
    for label, sizes in (shapes or (QUICK_SHAPES if chosen.quick else SHAPES)).items():
        elements = sum(torch.Size(size).numel() for size in sizes)
        sets = rotation(8 * elements, machine.cache_bytes(), most=16)
        grads = [[torch.randn(size) for size in sizes] for _ in range(sets)]
        candidates = {"ours": Local(ours(grads))}
        candidates |= {name: Local(torch_sgd(grads, kind)) for name, kind in TORCH.items()}
        results = compare(candidates, command.effort(chosen))
        # 12 bytes and 2 flops an element, as csrc/sgd.h says.
        yield Row("sgd", label, "fp32", chosen.threads, 12 * elements, 2 * elements, "triad", results)


def ours(grads: list[list[Tensor]]) -> Callable[[int], object]:
    params, lr = [[torch.randn_like(grad) for grad in one] for one in grads], torch.full((), LR)
    return lambda number: sgd_(params[number % len(grads)], grads[number % len(grads)], lr)


def torch_sgd(grads: list[list[Tensor]], kind: dict) -> Callable[[int], object]:
    """An optimizer for each set, so that no call has to hand gradients over."""
    optimizers = []
    for one in grads:
        params = [torch.nn.Parameter(torch.randn_like(grad)) for grad in one]
        for param, grad in zip(params, one, strict=True):
            param.grad = grad
        optimizers.append(torch.optim.SGD(params, LR, **kind))
    return lambda number: optimizers[number % len(grads)].step()


if __name__ == "__main__":
    sys.exit(command.main("sgd", command.parser(__doc__), measure))
