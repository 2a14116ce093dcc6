"""conv3x3: a convolution of 3x3 for inference with bias, residual and ReLU, against PyTorch's ops in turn.

cpp, ref       ops.conv3x3 by each backend, channels last
eager          F.conv2d, add_, relu_ on tensors as PyTorch makes them, channels first
torch compile  torch.compile of it
Flops are those of Winograd's F(2x2, 3x3), by the formula in csrc/conv3x3.h: 4/9 of a convolution's own, and so for
all that are compared.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mlperf_fast.ops.conv3x3 import conv3x3, conv3x3_ref

from . import command
from .competitors import backends, best, compiled
from .measure import Local, Row, compare

DEVICES = ("cpu", "cuda")
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    batch: int
    size: int
    width: int

    def shape(self) -> str:
        return f"{self.batch} of {self.size}×{self.size}, {self.width} channels"

    def flops(self) -> int:
        tiles = self.batch * ((self.size + 1) // 2) ** 2
        return 32 * tiles * self.width**2 + 56 * tiles * self.width

    def moved(self) -> int:
        return 4 * 3 * self.batch * self.size**2 * self.width


# Layers of Minigo's networks at the demo's size, at 9 and 19 lines; and of a ResNet.
CASES = [Case(256, 6, 32), Case(128, 9, 64), Case(64, 19, 64), Case(16, 28, 128)]
QUICK_CASES = [Case(4, 5, 8)]


def measure(chosen: Namespace) -> Iterator[Row]:
    for case in QUICK_CASES if chosen.quick else CASES:
        first = draw(case, chosen.device)
        last = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in first]
        candidates = backends(
            "conv3x3", chosen.device, torch.float32, lambda name, last=last: call(partial(conv3x3, backend=name), last)
        )
        candidates["eager"] = Local(call(conv3x3_ref, first))
        candidates["torch compile"] = compiled(chosen, lambda last=last: call(torch.compile(conv3x3_ref), last))
        results = compare(candidates, command.effort(chosen))
        name = best("conv3x3", chosen.device, torch.float32)
        yield Row("conv3x3", case.shape(), "fp32", chosen.threads, case.moved(), case.flops(), "gemm", results, name)


def draw(case: Case, device: torch.device) -> list[Tensor]:
    """x, weight, bias, residual."""
    image, width = (case.batch, case.width, case.size, case.size), case.width
    shapes = (image, (width, width, 3, 3), (width,), image)
    return [torch.randn(shape, device=device) for shape in shapes]


def call(function: Function, tensors: list[Tensor]) -> Callable[[int], object]:
    def run(number: int) -> object:
        with torch.no_grad():
            return function(*tensors, relu=True)

    return run


if __name__ == "__main__":
    sys.exit(command.main("conv3x3"))
