"""batch_norm: training forward + backward of relu(BN(x) + residual), channels last, against PyTorch's ops in turn.

cpp, triton, ref  ops.batch_norm by each backend
eager         F.batch_norm, then + residual and ReLU in place where autograd allows it: the best form of plain PyTorch
torch compile torch.compile of the form that isn't in place
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mlperf_fast.ops.batch_norm import batch_norm

from . import ceilings, command, machine
from .competitors import backends, best, compiled
from .measure import Local, Row, compare, rotation

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Case:
    batch: int
    size: int  # height and width
    channels: int
    residual: bool
    dtype: torch.dtype = torch.float32

    def shape(self) -> str:
        return f"{self.batch}×{self.size}×{self.size}×{self.channels}, {'add + ReLU' if self.residual else 'ReLU'}"


# The ends of ResNet-50's stages, and its stem.
CASES = [
    Case(32, 56, 256, True),
    Case(32, 56, 256, True, torch.bfloat16),
    Case(32, 112, 64, False),
    Case(32, 7, 2048, True),
]
QUICK_CASES = [Case(2, 6, 32, residual) for residual in (True, False)]


def work(case: Case) -> tuple[int, int]:
    """Bytes and flops of forward and backward together, by the formula in csrc/batch_norm.h."""
    elements = case.batch * case.size**2 * case.channels
    return (10 if case.residual else 8) * elements * torch.finfo(case.dtype).bits // 8, 19 * elements


def measure(chosen: Namespace, cases: Sequence[Case] | None = None) -> Iterator[Row]:
    for case in cases or (QUICK_CASES if chosen.quick else CASES):
        moved, flops = work(case)
        inputs = [
            draw(case, chosen.device) for _ in range(rotation(3 * moved // 10, machine.cache_bytes(chosen.device)))
        ]
        weight, bias = (torch.rand(case.channels, device=chosen.device, requires_grad=True) for _ in range(2))
        parameters = [weight, bias]
        statistics = [torch.zeros(case.channels, device=chosen.device), torch.ones(case.channels, device=chosen.device)]
        candidates = backends(
            "batch_norm",
            chosen.device,
            case.dtype,
            lambda name, i=inputs, p=parameters, s=statistics: both_ways(ours(name, s), i, p),
        )
        candidates["eager"] = Local(both_ways(eager(statistics, in_place=True), inputs, parameters))
        candidates["torch compile"] = compiled(
            chosen,
            lambda i=inputs, p=parameters, s=statistics: both_ways(torch.compile(eager(s, in_place=False)), i, p),
        )
        results = compare(candidates, command.effort(chosen))
        dtype = "bf16" if case.dtype is torch.bfloat16 else "fp32"
        name, limit = best("batch_norm", chosen.device, case.dtype), ceilings.stream(chosen.device)
        yield Row("batch_norm fwd+bwd", case.shape(), dtype, chosen.threads, moved, flops, limit, results, name)


def draw(case: Case, device: torch.device) -> tuple[Tensor, Tensor | None, Tensor]:
    """x, the residual and the output's gradient."""
    shape = (case.batch, case.channels, case.size, case.size)
    x, residual, dy = (
        torch.randn(shape, dtype=case.dtype, device=device).to(memory_format=torch.channels_last) for _ in range(3)
    )
    return x.requires_grad_(), residual.requires_grad_() if case.residual else None, dy


def ours(backend: str, statistics: Sequence[Tensor]) -> Callable[..., Tensor]:
    def call(x, residual, weight, bias):
        return batch_norm(x, weight, bias, *statistics, residual=residual, relu=True, backend=backend)

    return call


def eager(statistics: Sequence[Tensor], in_place: bool) -> Callable[..., Tensor]:
    def call(x, residual, weight, bias):
        y = F.batch_norm(x, *statistics, weight, bias, training=True)
        if residual is not None:
            y = y.add_(residual) if in_place else y + residual
        return F.relu(y, inplace=in_place)

    return call


def both_ways(
    function: Callable[..., Tensor], inputs: Sequence[tuple], parameters: Sequence[Tensor]
) -> Callable[[int], object]:
    """Forward, then backward without adding to earlier gradients."""

    def call(number: int) -> object:
        x, residual, dy = inputs[number % len(inputs)]
        wanted = [t for t in (x, residual, *parameters) if t is not None]
        return torch.autograd.grad(function(x, residual, *parameters), wanted, dy)

    return call


if __name__ == "__main__":
    sys.exit(command.main("batch_norm"))
