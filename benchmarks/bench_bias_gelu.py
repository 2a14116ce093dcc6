"""bias_gelu: gelu(x + bias) in the form with tanh, forward + backward, against PyTorch's ops in turn.

cpp, triton, ref  ops.bias_gelu by each backend
eager         x + bias, F.gelu(approximate="tanh")
torch compile torch.compile of it
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mlperf_fast.ops.bias_gelu import bias_gelu, bias_gelu_ref

from . import ceilings, command, machine
from .competitors import backends, best, compiled
from .measure import Local, Row, compare, rotation

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Case:
    rows: int
    cols: int
    dtype: torch.dtype = torch.float32

    def shape(self) -> str:
        return f"{self.rows}×{self.cols}"


# BERT-large's feed-forward layer on eight full sequences of 512; BERT-base's on four.
CASES = [Case(4096, 4096), Case(4096, 4096, torch.bfloat16), Case(2048, 3072)]
QUICK_CASES = [Case(64, 96)]


def work(case: Case) -> tuple[int, int]:
    """Bytes and flops of forward and backward together, by the formula in csrc/bias_gelu.h."""
    elements = case.rows * case.cols
    return 5 * elements * torch.finfo(case.dtype).bits // 8, 60 * elements


def measure(chosen: Namespace, cases: Sequence[Case] | None = None) -> Iterator[Row]:
    for case in cases or (QUICK_CASES if chosen.quick else CASES):
        moved, flops = work(case)
        sets = rotation(2 * moved // 5, machine.cache_bytes(chosen.device))
        inputs = [draw(case, chosen.device) for _ in range(sets)]
        candidates = backends(
            "bias_gelu",
            chosen.device,
            case.dtype,
            lambda name, inputs=inputs: both_ways(partial(bias_gelu, backend=name), inputs),
        )
        candidates["eager"] = Local(both_ways(bias_gelu_ref, inputs))
        candidates["torch compile"] = compiled(
            chosen, lambda inputs=inputs: both_ways(torch.compile(bias_gelu_ref), inputs)
        )
        results = compare(candidates, command.effort(chosen))
        dtype = "bf16" if case.dtype is torch.bfloat16 else "fp32"
        name, limit = best("bias_gelu", chosen.device, case.dtype), ceilings.stream(chosen.device)
        yield Row("bias_gelu fwd+bwd", case.shape(), dtype, chosen.threads, moved, flops, limit, results, name)


def draw(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """x, bias and the output's gradient."""
    like = {"dtype": case.dtype, "device": device}
    x, dy = (torch.randn(case.rows, case.cols, **like) for _ in range(2))
    return x.requires_grad_(), torch.randn(case.cols, requires_grad=True, **like), dy


def both_ways(function: Callable[[Tensor, Tensor], Tensor], inputs: Sequence[tuple]) -> Callable[[int], object]:
    """Forward, then backward without adding to earlier gradients."""

    def call(number: int) -> object:
        x, bias, dy = inputs[number % len(inputs)]
        return torch.autograd.grad(function(x, bias), (x, bias), dy)

    return call


if __name__ == "__main__":
    sys.exit(command.main("bias_gelu"))
