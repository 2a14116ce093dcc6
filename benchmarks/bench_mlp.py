"""mlp: DLRM's multilayer perceptrons, forward + backward, against PyTorch's layers and apex.

cpp, triton, ref  ops.mlp by each backend
nn.Sequential     nn.Linear and nn.ReLU(inplace=True) in turn, as users write it
torch compile     torch.compile of it
apex              NVIDIA's apex.mlp.MLP, for the perceptrons that end with a ReLU, as it does
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mlperf_fast.ops.mlp import mlp

from . import command, machine, shapes
from .competitors import backends, best, compiled, library
from .measure import Local, Row, compare, rotation

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Case:
    batch: int
    widths: tuple[int, ...]
    relu_last: bool
    dtype: torch.dtype = torch.float32

    def shape(self) -> str:
        return f"B {self.batch}, {'-'.join(map(str, self.widths))}"


def perceptrons(batch: int, model: Any, dtype: torch.dtype = torch.float32) -> list[Case]:
    """The bottom one, whose input needs no gradient but gets one here, and the top one."""
    vectors = shapes.TABLES + 1
    top = (model.dim + vectors * (vectors - 1) // 2, *model.top)
    return [
        Case(batch, (shapes.DENSE_FEATURES, *model.bottom), True, dtype),
        Case(batch, top, False, dtype),
    ]


CASES = [
    *perceptrons(shapes.demo_batch(), shapes.demo_model()),
    *perceptrons(2048, shapes.closed_model()),
    *perceptrons(shapes.closed_batch_a_gpu(), shapes.closed_model(), torch.bfloat16),
]
QUICK_CASES = [Case(16, (13, 32, 16), True), Case(16, (40, 32, 1), False)]


def work(case: Case) -> tuple[int, int]:
    """Bytes and flops of forward and backward: each product reads and writes its matrices once, the passes around
    them by the formula in csrc/mlp.h."""
    element = torch.finfo(case.dtype).bits // 8
    moved = flops = 0
    for layer, (inputs, outputs) in enumerate(pairwise(case.widths), start=2):
        relu = case.relu_last or layer < len(case.widths)
        moved += element * (3 * (case.batch * (inputs + outputs) + inputs * outputs))
        moved += element * case.batch * outputs * (5 if relu else 3)
        flops += 6 * case.batch * inputs * outputs + 4 * case.batch * outputs
    return moved, flops


def measure(chosen: Namespace, cases: Sequence[Case] | None = None) -> Iterator[Row]:
    for case in cases or (QUICK_CASES if chosen.quick else CASES):
        moved, flops = work(case)
        given = case.batch * (case.widths[0] + case.widths[-1]) * torch.finfo(case.dtype).bits // 8
        sets = rotation(given, machine.cache_bytes(chosen.device))
        inputs = [draw(case, chosen.device) for _ in range(sets)]
        candidates = backends(
            "mlp", chosen.device, case.dtype, lambda name, c=case, inputs=inputs: ours(c, inputs, name)
        )
        candidates["nn.Sequential"] = Local(both_ways(layers(case, chosen.device), inputs))
        candidates["torch compile"] = compiled(
            chosen, lambda c=case, inputs=inputs: both_ways(layers(c, chosen.device), inputs, torch.compile)
        )
        if case.relu_last:
            candidates["apex"] = library(
                "apex", chosen.device, lambda c=case, inputs=inputs: both_ways(apex(c), inputs)
            )
        results = compare(candidates, command.effort(chosen))
        dtype, limit = ("bf16", "bf16-gemm") if case.dtype is torch.bfloat16 else ("fp32", "gemm")
        name = best("mlp", chosen.device, case.dtype)
        yield Row("mlp fwd+bwd", case.shape(), dtype, chosen.threads, moved, flops, limit, results, name)


def draw(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    x, dout = (torch.randn(case.batch, case.widths[n], dtype=case.dtype, device=device) for n in (0, -1))
    return x.requires_grad_(), dout


def layers(case: Case, device: torch.device) -> nn.Sequential:
    found: list[nn.Module] = []
    for inputs, outputs in pairwise(case.widths):
        found += [nn.Linear(inputs, outputs, device=device, dtype=case.dtype), nn.ReLU(inplace=True)]
    return nn.Sequential(*(found if case.relu_last else found[:-1]))


def ours(case: Case, inputs: Sequence[tuple], backend: str) -> Callable[[int], object]:
    linears = [layer for layer in layers(case, inputs[0][0].device) if isinstance(layer, nn.Linear)]
    weights, biases = [layer.weight for layer in linears], [layer.bias for layer in linears]

    def call(number: int) -> object:
        x, dout = inputs[number % len(inputs)]
        out = mlp(x, weights, biases, relu_last=case.relu_last, backend=backend)
        return torch.autograd.grad(out, (x, *weights, *biases), dout)

    return call


def both_ways(
    module: nn.Module, inputs: Sequence[tuple], change: Callable[[Any], Any] = lambda module: module
) -> Callable[[int], object]:
    """Forward, then backward without adding to earlier gradients."""
    parameters, function = tuple(module.parameters()), change(module)

    def call(number: int) -> object:
        x, dout = inputs[number % len(inputs)]
        return torch.autograd.grad(function(x), (x, *parameters), dout)

    return call


def apex(case: Case) -> nn.Module:
    from apex.mlp import MLP

    return MLP(list(case.widths)).cuda().to(case.dtype)


if __name__ == "__main__":
    sys.exit(command.main("mlp"))
