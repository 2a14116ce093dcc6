"""softmax_cross_entropy: loss and gradient of N rows of V logits, forward + backward, against PyTorch.

cpp, triton, ref  ops.softmax_cross_entropy by each backend; all but ref put the gradient in place of the logits,
              so that the next call on the same memory finds small numbers: the time doesn't depend on them
eager         F.cross_entropy, as users write it
torch compile torch.compile of it
apex          apex.contrib.xentropy
flash-attn    flash_attn's cross-entropy in Triton, its gradient in place
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mlperf_fast.ops.softmax_cross_entropy import softmax_cross_entropy

from . import ceilings, command, machine
from .competitors import backends, best, compiled, library
from .measure import Local, Row, compare, rotation

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Case:
    rows: int
    classes: int
    smoothing: float = 0.0
    dtype: torch.dtype = torch.float32

    def shape(self) -> str:
        return f"{self.rows}×{self.classes}" + (f", smoothing {self.smoothing:g}" if self.smoothing else "")


# The masked words of eight full sequences of BERT; ResNet's batch on each of eight GPUs.
CASES = [Case(608, 30522), Case(608, 30522, dtype=torch.bfloat16), Case(408, 1000, 0.1)]
QUICK_CASES = [Case(64, 1200, 0.1)]


def work(case: Case) -> tuple[int, int]:
    """Bytes and flops of forward and backward together, by the formula in csrc/softmax_cross_entropy.h."""
    elements = case.rows * case.classes
    return 2 * elements * torch.finfo(case.dtype).bits // 8, 20 * elements


def measure(chosen: Namespace, cases: Sequence[Case] | None = None) -> Iterator[Row]:
    for case in cases or (QUICK_CASES if chosen.quick else CASES):
        moved, flops = work(case)
        sets = rotation(moved // 2, machine.cache_bytes(chosen.device))
        inputs = [draw(case, chosen.device) for _ in range(sets)]
        candidates = backends(
            "softmax_cross_entropy",
            chosen.device,
            case.dtype,
            lambda name, c=case, i=inputs: both_ways(partial(ours, case=c, backend=name), i),
        )
        theirs = partial(eager, smoothing=case.smoothing)
        candidates["eager"] = Local(both_ways(theirs, inputs))
        candidates["torch compile"] = compiled(
            chosen, lambda t=theirs, i=inputs: both_ways(torch.compile(t, fullgraph=True), i)
        )
        for name, form in (("apex", apex), ("flash-attn", flash_attention)):
            candidates[name] = library(
                name, chosen.device, lambda f=form, c=case, i=inputs: both_ways(f(c.smoothing), i)
            )
        results = compare(candidates, command.effort(chosen))
        dtype = "bf16" if case.dtype is torch.bfloat16 else "fp32"
        name, limit = best("softmax_cross_entropy", chosen.device, case.dtype), ceilings.stream(chosen.device)
        yield Row(
            "softmax_cross_entropy fwd+bwd", case.shape(), dtype, chosen.threads, moved, flops, limit, results, name
        )


def draw(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels, and 1 / rows."""
    logits = torch.randn(case.rows, case.classes, dtype=case.dtype, device=device, requires_grad=True)
    return (
        logits,
        torch.randint(case.classes, (case.rows,), device=device),
        torch.full((), 1 / case.rows, device=device),
    )


class _Computed(torch.autograd.Function):
    """The logits as another op's result, without its work: ours refuses to overwrite a leaf."""

    @staticmethod
    def forward(ctx, logits: Tensor) -> Tensor:
        return logits.data

    @staticmethod
    def backward(ctx, dlogits: Tensor) -> Tensor:
        return dlogits


def ours(logits: Tensor, labels: Tensor, scale: Tensor, case: Case, backend: str) -> Tensor:
    computed = _Computed.apply(logits)
    losses, _ = softmax_cross_entropy(computed, labels, scale, label_smoothing=case.smoothing, backend=backend)
    return losses.sum()


def eager(logits: Tensor, labels: Tensor, scale: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def apex(smoothing: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from apex.contrib.xentropy import SoftmaxCrossEntropyLoss

    def call(logits: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
        widen = logits.dtype is not torch.float32
        return scale * SoftmaxCrossEntropyLoss.apply(logits, labels, smoothing, -1, widen).sum()

    return call


def flash_attention(smoothing: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

    def call(logits: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
        losses = cross_entropy_loss(
            _Computed.apply(logits), labels, label_smoothing=smoothing, ignore_index=-1, inplace_backward=True
        )
        return scale * losses[0].sum()

    return call


def both_ways(function: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: Sequence[tuple]) -> Callable[[int], object]:
    """Forward, then backward without adding to earlier gradients."""

    def call(number: int) -> object:
        logits, labels, scale = inputs[number % len(inputs)]
        return torch.autograd.grad(function(logits, labels, scale), logits)

    return call


if __name__ == "__main__":
    sys.exit(command.main("softmax_cross_entropy"))
