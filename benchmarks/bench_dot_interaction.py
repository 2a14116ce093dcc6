"""dot_interaction: DLRM's pairwise products of 27 vectors, forward + backward, against PyTorch.

cpp, cuda, triton, ref   ops.dot_interaction by each backend
eager gather  bmm, gram[:, i, j] with index tensors made beforehand, cat: the reference's form (facebookresearch/dlrm
              rebuilds its index lists each time, which is slower)
eager select  the same with one index_select on the flattened products: the fastest eager form that we found
torch compile torch.compile of `eager gather`
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mlperf_fast.ops.dot_interaction import dot_interaction

from . import command, machine, shapes
from .competitors import backends, best, compiled
from .measure import Local, Row, compare, rotation

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Case:
    batch: int
    dim: int = shapes.DIM
    dtype: torch.dtype = torch.float32

    def shape(self) -> str:
        return f"B {self.batch}, 27×{self.dim}"


CASES = [
    Case(2048),
    Case(16384),
    Case(2048, dtype=torch.bfloat16),
    Case(shapes.demo_batch(), dim=shapes.demo_model().dim),
    Case(shapes.closed_batch_a_gpu(), dtype=torch.bfloat16),
]
QUICK_CASES = [Case(32, dim=16), Case(32, dim=16, dtype=torch.bfloat16)]


def work(case: Case) -> tuple[int, int]:
    """Bytes and flops of forward and backward together, by the formula in csrc/dot_interaction.h."""
    rows = shapes.TABLES + 1
    pairs = rows * (rows - 1) // 2
    element = torch.finfo(case.dtype).bits // 8
    moved = element * case.batch * (3 * rows * case.dim + 2 * (case.dim + pairs))
    return moved, 6 * case.batch * pairs * case.dim


def eager_gather(dense: Tensor, sparse: Tensor, i: Tensor, j: Tensor) -> Tensor:
    features = torch.cat([dense.unsqueeze(1), sparse], dim=1)
    return torch.cat([dense, torch.bmm(features, features.transpose(1, 2))[:, i, j]], dim=1)


def eager_select(dense: Tensor, sparse: Tensor, flat: Tensor) -> Tensor:
    features = torch.cat([dense.unsqueeze(1), sparse], dim=1)
    gram = torch.bmm(features, features.transpose(1, 2)).flatten(1)
    return torch.cat([dense, gram.index_select(1, flat)], dim=1)


def measure(chosen: Namespace, cases: Sequence[Case] | None = None) -> Iterator[Row]:
    i, j = torch.tril_indices(shapes.TABLES + 1, shapes.TABLES + 1, offset=-1, device=chosen.device)
    flat = i * (shapes.TABLES + 1) + j
    for case in cases or (QUICK_CASES if chosen.quick else CASES):
        moved, flops = work(case)
        sets = rotation(moved // 2, machine.cache_bytes(chosen.device), memory=2 << 30)
        inputs = [draw(case, flat.numel(), chosen.device) for _ in range(sets)]
        candidates = backends(
            "dot_interaction",
            chosen.device,
            case.dtype,
            lambda name, inputs=inputs: both_ways(partial(dot_interaction, backend=name), inputs),
        )
        candidates["eager gather"] = Local(both_ways(partial(eager_gather, i=i, j=j), inputs))
        candidates["eager select"] = Local(both_ways(partial(eager_select, flat=flat), inputs))
        candidates["torch compile"] = compiled(
            chosen, lambda inputs=inputs: both_ways(partial(torch.compile(eager_gather), i=i, j=j), inputs)
        )
        results = compare(candidates, command.effort(chosen))
        dtype, limit = ("bf16", "bf16-gemm") if case.dtype is torch.bfloat16 else ("fp32", "gemm")
        ours = best("dot_interaction", chosen.device, case.dtype)
        yield Row("dot_interaction fwd+bwd", case.shape(), dtype, chosen.threads, moved, flops, limit, results, ours)


def draw(case: Case, pairs: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    like = {"dtype": case.dtype, "device": device}
    dense = torch.randn(case.batch, case.dim, requires_grad=True, **like)
    sparse = torch.randn(case.batch, shapes.TABLES, case.dim, requires_grad=True, **like)
    return dense, sparse, torch.randn(case.batch, case.dim + pairs, **like)


def both_ways(function: Callable[[Tensor, Tensor], Tensor], inputs: Sequence[tuple]) -> Callable[[int], object]:
    """Forward, then backward without adding to earlier gradients."""

    def call(number: int) -> object:
        dense, sparse, dout = inputs[number % len(inputs)]
        return torch.autograd.grad(function(dense, sparse), (dense, sparse), dout)

    return call


if __name__ == "__main__":
    sys.exit(command.main("dot_interaction"))
