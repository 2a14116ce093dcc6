"""The figures of BERT: its ops, and its whole step against Hugging Face's."""

from argparse import Namespace
from collections.abc import Iterator
from types import ModuleType

import torch

from . import (
    bench_attention,
    bench_bias_gelu,
    bench_embedding_layer_norm,
    bench_layer_norm,
    bench_softmax_cross_entropy,
    steps_bert,
)
from .demands import Demand
from .measure import Row

TITLE = "BERT and its ops"
OPS = (bench_attention, bench_layer_norm, bench_softmax_cross_entropy, bench_bias_gelu, bench_embedding_layer_norm)


def demands(row: Row) -> Iterator[Demand]:
    """What is demanded of a row, or reported from it."""
    if row.op.startswith("attention"):
        is_ragged = "up to 512" in row.shape
        yield Demand(row, ("sdpa mask",), 3.2 if is_ragged else 1 if "×512" in row.shape else None)
        yield Demand(row, ("sdpa each",), 1.7 if is_ragged else None)
    elif row.op.startswith("layer_norm"):
        is_demanded = row.shape == "8192×1024, dropout 0.1"
        yield Demand(row, ("eager",), 6 if is_demanded else None)
        yield Demand(row, ("torch compile",), 10 if is_demanded else None)
    elif row.op.startswith("softmax_cross_entropy"):
        yield Demand(row, ("eager",), 4.2 if row.shape.startswith("608×30522") else None)
        yield Demand(row, ("torch compile",))
    elif row.op.startswith("bias_gelu"):
        yield Demand(row, ("eager",), 1.9)
    elif row.op == "BERT step":
        yield Demand(row, ("transformers padded",), 1.8)
        yield Demand(row, ("transformers cropped",), 1.2)
        yield Demand(row, ("torch compile",))
    else:
        yield Demand(row, ("eager",))


def measure(chosen: Namespace) -> Iterator[Row]:
    for benchmark in OPS:
        yield from benchmark.measure(chosen, None if chosen.quick else in_fp32(benchmark))
    yield from steps_bert.measure(chosen)


def in_fp32(benchmark: ModuleType) -> list:
    return [case for case in benchmark.CASES if case.dtype == torch.float32]
