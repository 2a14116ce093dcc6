"""embedding_layer_norm: BERT's three embeddings, the norm of their sum, dropout, forward + backward, against PyTorch.

cpp, triton, ref  ops.embedding_layer_norm by each backend
eager         F.embedding of each table, two additions, F.layer_norm, F.dropout: as users write it
torch compile torch.compile of it

The gradients of the tables are dense on all sides: of 30,522 words they are most of the bytes.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mlperf_fast.ops.dropout import dropout_state
from mlperf_fast.ops.embedding_layer_norm import embedding_layer_norm

from . import ceilings, command, machine
from .competitors import backends, best, compiled
from .measure import Local, Row, compare, rotation

DEVICES = ("cpu", "cuda")
EPS = 1e-12
POSITIONS, SEGMENTS = 512, 2


@dataclass(frozen=True)
class Case:
    tokens: int
    hidden: int
    p: float
    words: int = 30522
    dtype: torch.dtype = torch.float32

    def shape(self) -> str:
        return f"{self.tokens}×{self.hidden}, {self.words} words, dropout {self.p:g}"


# BERT-large on 16 full sequences of 512, and in evaluation; the demo's size, where the tables' gradients are small.
CASES = [
    Case(8192, 1024, 0.1),
    Case(8192, 1024, 0.0),
    Case(8192, 1024, 0.1, dtype=torch.bfloat16),
    Case(2048, 128, 0.1, words=512),
]
QUICK_CASES = [Case(64, 96, 0.1, words=100)]


def work(case: Case) -> tuple[int, int]:
    """Bytes and flops of forward and backward together, by the formula in csrc/embedding_layer_norm.h."""
    elements = case.tokens * case.hidden
    rows = case.words + POSITIONS + SEGMENTS
    return 4 * elements * torch.finfo(case.dtype).bits // 8 + 4 * rows * case.hidden, 30 * elements


def measure(chosen: Namespace, cases: Sequence[Case] | None = None) -> Iterator[Row]:
    for case in cases or (QUICK_CASES if chosen.quick else CASES):
        moved, flops = work(case)
        sets = rotation(moved // 2, machine.cache_bytes(chosen.device))
        inputs = [draw(case, chosen.device) for _ in range(sets)]
        candidates = backends(
            "embedding_layer_norm",
            chosen.device,
            case.dtype,
            lambda name, c=case, i=inputs: both_ways(ours(c, name, i[0][0].device), i),
        )
        candidates["eager"] = Local(both_ways(eager(case), inputs))
        candidates["torch compile"] = compiled(
            chosen, lambda c=case, i=inputs: both_ways(torch.compile(eager(c), fullgraph=True), i)
        )
        results = compare(candidates, command.effort(chosen))
        dtype = "bf16" if case.dtype is torch.bfloat16 else "fp32"
        name, limit = best("embedding_layer_norm", chosen.device, case.dtype), ceilings.stream(chosen.device)
        yield Row(
            "embedding_layer_norm fwd+bwd", case.shape(), dtype, chosen.threads, moved, flops, limit, results, name
        )


def draw(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """ids as often as words come, positions, segments; word, position, segment, gamma, beta; the output's gradient."""
    rank = torch.rand(case.tokens, device=device, dtype=torch.float64)
    ids = (case.words**rank - 1).int().clamp_max(case.words - 1)
    token = torch.arange(case.tokens, device=device, dtype=torch.int32)
    like = {"dtype": case.dtype, "device": device}
    tables = [torch.randn(rows, case.hidden, **like) for rows in (case.words, POSITIONS, SEGMENTS)]
    parameters = [torch.rand(case.hidden, device=device) for _ in range(2)]
    leaves = [t.requires_grad_() for t in (*tables, *(p.to(case.dtype) for p in parameters))]
    dy = torch.randn(case.tokens, case.hidden, **like)
    return ids, token % POSITIONS, token % POSITIONS * SEGMENTS // POSITIONS, *leaves, dy


def ours(case: Case, backend: str, device: torch.device) -> Callable[..., Tensor]:
    state = dropout_state(1, device)
    errors = torch.zeros(3, dtype=torch.int64, device=device)

    def call(*tensors: Tensor) -> Tensor:
        return embedding_layer_norm(*tensors, p=case.p, state=state, eps=EPS, errors=errors, backend=backend)

    return call


def eager(case: Case) -> Callable[..., Tensor]:
    def call(ids, positions, segments, word, position, segment, gamma, beta):
        h = F.embedding(ids, word) + F.embedding(positions, position) + F.embedding(segments, segment)
        y = F.layer_norm(h, (case.hidden,), gamma, beta, EPS)
        return F.dropout(y, case.p) if case.p else y

    return call


def both_ways(function: Callable[..., Tensor], inputs: Sequence[tuple]) -> Callable[[int], object]:
    """Forward, then backward without adding to earlier gradients."""

    def call(number: int) -> object:
        *tensors, dy = inputs[number % len(inputs)]
        return torch.autograd.grad(function(*tensors), tensors[3:], dy)

    return call


if __name__ == "__main__":
    sys.exit(command.main("embedding_layer_norm"))
