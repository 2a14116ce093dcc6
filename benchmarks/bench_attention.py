"""attention: self-attention of sequences of any lengths, forward + backward, against PyTorch's on padded batches.

cpp, triton, varlen_attn, flash_attn, ref  ops.attention by each backend
sdpa mask     F.scaled_dot_product_attention on the padded batch with a mask of its keys: as BERT's models call it
sdpa each     the same on one sequence after the other, without padding
torch compile torch.compile of "sdpa mask"
flash-attn    flash_attn_varlen_qkvpacked_func as it is, its dropout by torch's generator
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mlperf_fast.ops.attention import ATTENTION, attention
from mlperf_fast.ops.dropout import dropout_state

from . import command, machine
from .competitors import backends, best, compiled, library
from .measure import ABSENT, Local, Row, compare, rotation

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Case:
    lengths: tuple[int, ...]
    heads: int
    D: int
    p: float
    name: str
    dtype: torch.dtype = torch.float32

    @property
    def longest(self) -> int:
        return max(self.lengths)

    def shape(self) -> str:
        return f"{len(self.lengths)}×{self.name}, {self.heads}×{self.D}, dropout {self.p:g}"


def uniform(b: int, longest: int) -> tuple[int, ...]:
    return tuple(longest * (i + 1) // b for i in range(b))


# BERT-base's heads with lengths from short to full, then all full; BERT's demo.
CASES = [
    *(Case(uniform(16, 512), 12, 64, p, "up to 512") for p in (0.0, 0.1)),
    Case((512,) * 8, 12, 64, 0.0, "512"),
    Case(uniform(16, 512), 12, 64, 0.1, "up to 512", torch.bfloat16),
    Case(tuple(range(33, 65)), 2, 64, 0.1, "33 to 64"),
]
QUICK_CASES = [Case((9, 30), 2, 16, p, "up to 30") for p in (0.0, 0.1)]


def work(case: Case) -> tuple[int, int]:
    """Bytes and flops of forward and backward together, by the formula in csrc/attention.h."""
    width = case.heads * case.D
    pairs = sum(length * length for length in case.lengths)
    return 12 * sum(case.lengths) * width * torch.finfo(case.dtype).bits // 8, 14 * pairs * width


def measure(chosen: Namespace, cases: Sequence[Case] | None = None) -> Iterator[Row]:
    for case in cases or (QUICK_CASES if chosen.quick else CASES):
        moved, flops = work(case)
        sets = rotation(moved // 2, machine.cache_bytes(chosen.device))
        packed = [draw(case, (sum(case.lengths),), chosen.device) for _ in range(sets)]
        padded = [draw(case, (len(case.lengths), case.longest), chosen.device) for _ in range(sets)]
        candidates = backends(
            "attention", chosen.device, case.dtype, lambda name, c=case, i=packed: both_ways(ours(c, name, i[0][0]), i)
        )
        for name, line in ATTENTION.table.items():
            why = line.asks and isinstance(candidates[name], Local) and line.asks(packed[0][0], dropout=case.p > 0)
            candidates |= {name: ABSENT + why} if why else {}
        candidates["sdpa mask"] = Local(both_ways(sdpa_mask(case, chosen.device), padded))
        candidates["sdpa each"] = Local(both_ways(sdpa_each(case), packed))
        candidates["torch compile"] = compiled(
            chosen, lambda c=case, i=padded: both_ways(torch.compile(sdpa_mask(c, i[0][0].device)), i)
        )
        if case.dtype is not torch.float32:  # which it doesn't take
            candidates["flash-attn"] = library(
                "flash-attn", chosen.device, lambda c=case, i=packed: both_ways(flash_attn(c, i[0][0]), i)
            )
        results = compare(candidates, command.effort(chosen))
        half = case.dtype is not torch.float32
        name, limit = best("attention", chosen.device, case.dtype), "bf16-gemm" if half else "gemm"
        dtype = "bf16" if half else "fp32"
        yield Row("attention fwd+bwd", case.shape(), dtype, chosen.threads, moved, flops, limit, results, name)


def draw(case: Case, tokens: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """qkv and the output's gradient; leading dimensions `tokens`."""
    like = {"dtype": case.dtype, "device": device}
    qkv = torch.randn(*tokens, 3, case.heads, case.D, **like)
    return qkv.requires_grad_(), torch.randn(*tokens, case.heads, case.D, **like)


def cu_seqlens_of(case: Case, device: torch.device) -> Tensor:
    return torch.tensor([0, *case.lengths], device=device).cumsum(0).to(torch.int32)


def ours(case: Case, backend: str, like: Tensor) -> Callable[[Tensor], Tensor]:
    state, cu_seqlens = dropout_state(1, like.device), cu_seqlens_of(case, like.device)
    return lambda qkv: attention(qkv, cu_seqlens, case.longest, p=case.p, state=state, backend=backend)


def sdpa_mask(case: Case, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The mask is added, as BERT's is: -10,000 for what is padding."""
    lengths = torch.tensor(case.lengths, device=device)
    padding = torch.arange(case.longest, device=device) >= lengths[:, None]
    mask = torch.zeros(padding.shape, dtype=case.dtype, device=device).masked_fill(padding, -10000.0)[:, None, None]

    def call(qkv: Tensor) -> Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=case.p).transpose(1, 2)

    return call


def sdpa_each(case: Case) -> Callable[[Tensor], Tensor]:
    def call(qkv: Tensor) -> Tensor:
        outs = []
        for tokens in qkv.split(case.lengths):
            q, k, v = tokens.permute(1, 2, 0, 3).unsqueeze(1)
            outs.append(F.scaled_dot_product_attention(q, k, v, dropout_p=case.p).squeeze(0).transpose(0, 1))
        return torch.cat(outs)

    return call


def flash_attn(case: Case, like: Tensor) -> Callable[[Tensor], Tensor]:
    from flash_attn import flash_attn_varlen_qkvpacked_func

    cu_seqlens = cu_seqlens_of(case, like.device)
    return lambda qkv: flash_attn_varlen_qkvpacked_func(qkv, cu_seqlens, case.longest, dropout_p=case.p)


def both_ways(function: Callable[[Tensor], Tensor], inputs: Sequence[tuple]) -> Callable[[int], object]:
    """Forward, then backward without adding to earlier gradients."""

    def call(number: int) -> object:
        qkv, dout = inputs[number % len(inputs)]
        return torch.autograd.grad(function(qkv), qkv, dout)

    return call


if __name__ == "__main__":
    sys.exit(command.main("attention"))
