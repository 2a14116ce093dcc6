"""The figures of DLRM: its ops, its whole step, what a call and the allocator cost."""

from argparse import Namespace
from collections.abc import Iterator

import torch

from . import (
    bench_dot_interaction,
    bench_embedding_bag,
    bench_memory,
    bench_overhead,
    bench_roc_auc,
    bench_sgd,
    steps,
)
from .bench_embedding_bag import Case as Bags
from .demands import Demand
from .measure import Row

TITLE = "DLRM and its ops"
EMBEDDING = [
    *(Bags("sgd", batch, tables=tables) for tables in ("equal", "criteo") for batch in (2048, 32768)),
    Bags("sgd", 2048, hot=10),
    *(Bags("adagrad", batch) for batch in (2048, 32768)),
]
# FBGEMM's CPU kernels run on one thread however many it is given, so the ratio at equal cores is measured too.
ONE_THREAD = [Bags("sgd", 2048), Bags("sgd", 2048, hot=10), Bags("adagrad", 2048)]
TORCH_BAGS = ("torch stacked", "torch 26 bags")
PLAIN = ("plain sparse", "plain dense")


def demands(row: Row) -> Iterator[Demand]:
    """What is demanded of a row, or reported from it."""
    if row.op.endswith("bwd+SGD"):
        yield Demand(row, TORCH_BAGS, 3.5)
        yield Demand(row, ("fbgemm",), 2.5)
    elif row.op.endswith("Adagrad"):
        yield Demand(row, ("fbgemm",), 10)
    elif row.op.startswith("embedding_bag"):
        yield Demand(row, TORCH_BAGS)
    elif row.op.startswith("dot_interaction"):
        is_demanded = row.dtype == "fp32"
        yield Demand(row, ("eager gather",), 6 if is_demanded else None)
        yield Demand(row, ("eager select",))
    elif row.op == "sgd":
        yield Demand(row, ("torch fused",), 1 if "BERT" in row.shape else 2.5)
    elif row.op == "DLRM step":
        for name in PLAIN:
            yield Demand(row, (name,), 2 if row.dtype == "fp32" else None)
        yield Demand(row, ("facebookresearch",))
        yield Demand(row, ("torch compile",))
    elif row.op == "roc_auc":
        yield Demand(row, ("scikit-learn",))
    elif row.op == "call overhead":
        if row.shape.startswith("raw"):
            yield Demand(row, at_most=0.005)
    elif row.op.startswith("import"):
        yield Demand(row, at_most=200)
    else:  # the memory rows: what the default costs
        yield Demand(row, ("default",))


def measure(chosen: Namespace) -> Iterator[Row]:
    yield from bench_overhead.measure(chosen)
    yield from bench_dot_interaction.measure(chosen, None if chosen.quick else bench_dot_interaction.CASES[:3])
    yield from bench_sgd.measure(chosen)
    yield from bench_roc_auc.measure(chosen, None if chosen.quick else bench_roc_auc.CASES[1:2])
    yield from bench_embedding_bag.measure(chosen, None if chosen.quick else EMBEDDING)
    if not chosen.quick and chosen.threads > 1:
        yield from one_thread(chosen)
    yield from steps.measure(chosen)
    yield from bench_memory.measure(chosen)


def one_thread(chosen: Namespace) -> Iterator[Row]:
    torch.set_num_threads(1)
    try:
        yield from bench_embedding_bag.measure(Namespace(**{**vars(chosen), "threads": 1}), ONE_THREAD)
    finally:
        torch.set_num_threads(chosen.threads)
