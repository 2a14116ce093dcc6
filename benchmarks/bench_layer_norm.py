"""layer_norm: residual + dropout(x + bias), normalised, forward + backward, against PyTorch's ops in turn.

cpp, triton, ref  ops.layer_norm by each backend
eager         x + bias, F.dropout, + residual, F.layer_norm: as users write it
torch compile torch.compile of it
apex          its fused layer norm (apex.normalization) in place of F.layer_norm
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mlperf_fast.ops.dropout import dropout_state
from mlperf_fast.ops.layer_norm import layer_norm

from . import ceilings, command, machine
from .competitors import backends, best, compiled, library
from .measure import Local, Row, compare, rotation

DEVICES = ("cpu", "cuda")
EPS = 1e-12


@dataclass(frozen=True)
class Case:
    rows: int
    cols: int
    p: float
    dtype: torch.dtype = torch.float32

    def shape(self) -> str:
        return f"{self.rows}×{self.cols}, dropout {self.p:g}"


# BERT-large's rows, as many as 16 full sequences of 512 have; BERT-base's.
CASES = [
    *(Case(8192, 1024, p) for p in (0.1, 0.0)),
    Case(8192, 1024, 0.1, torch.bfloat16),
    Case(2048, 768, 0.1),
]
QUICK_CASES = [Case(64, 96, p) for p in (0.1, 0.0)]


def work(case: Case) -> tuple[int, int]:
    """Bytes and flops of forward and backward together, by the formula in csrc/layer_norm.h."""
    elements = case.rows * case.cols
    return (8 if case.p else 7) * elements * torch.finfo(case.dtype).bits // 8, 30 * elements


def measure(chosen: Namespace, cases: Sequence[Case] | None = None) -> Iterator[Row]:
    for case in cases or (QUICK_CASES if chosen.quick else CASES):
        moved, flops = work(case)
        inputs = [
            draw(case, chosen.device) for _ in range(rotation(3 * moved // 8, machine.cache_bytes(chosen.device)))
        ]
        parameters = [torch.rand(case.cols, device=chosen.device, requires_grad=True) for _ in range(3)]
        candidates = backends(
            "layer_norm",
            chosen.device,
            case.dtype,
            lambda name, c=case, i=inputs, p=parameters: both_ways(ours(c, name, i[0][0].device), i, p),
        )
        others = [p.detach().to(case.dtype).requires_grad_() for p in parameters]
        candidates["eager"] = Local(both_ways(eager(case), inputs, others))
        candidates["torch compile"] = compiled(
            chosen, lambda c=case, i=inputs, p=others: both_ways(torch.compile(eager(c)), i, p)
        )
        candidates["apex"] = library(
            "apex", chosen.device, lambda c=case, i=inputs, p=others: both_ways(eager(c, apex()), i, p)
        )
        results = compare(candidates, command.effort(chosen))
        dtype = "bf16" if case.dtype is torch.bfloat16 else "fp32"
        name, limit = best("layer_norm", chosen.device, case.dtype), ceilings.stream(chosen.device)
        yield Row("layer_norm fwd+bwd", case.shape(), dtype, chosen.threads, moved, flops, limit, results, name)


def draw(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """x, the residual and the output's gradient."""
    x, residual, dy = (torch.randn(case.rows, case.cols, dtype=case.dtype, device=device) for _ in range(3))
    return x.requires_grad_(), residual.requires_grad_(), dy


def ours(case: Case, backend: str, device: torch.device) -> Callable[..., Tensor]:
    state = dropout_state(1, device)

    def call(x, residual, gamma, beta, bias):
        return layer_norm(x, gamma, beta, bias=bias, residual=residual, p=case.p, state=state, eps=EPS, backend=backend)

    return call


def eager(case: Case, normalize: Callable[..., Tensor] = F.layer_norm) -> Callable[..., Tensor]:
    def call(x, residual, gamma, beta, bias):
        h = x + bias
        h = F.dropout(h, case.p) if case.p else h
        return normalize(residual + h, (case.cols,), gamma, beta, EPS)

    return call


def apex() -> Callable[..., Tensor]:
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine

    return lambda x, shape, gamma, beta, eps: fused_layer_norm_affine(x, gamma, beta, shape, eps)


def both_ways(
    function: Callable[..., Tensor], inputs: Sequence[tuple], parameters: Sequence[Tensor]
) -> Callable[[int], object]:
    """Forward, then backward without adding to earlier gradients."""

    def call(number: int) -> object:
        x, residual, dy = inputs[number % len(inputs)]
        return torch.autograd.grad(function(x, residual, *parameters), (x, residual, *parameters), dy)

    return call


if __name__ == "__main__":
    sys.exit(command.main("layer_norm"))
