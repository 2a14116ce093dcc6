"""The figures of the optimizers: each against the best of its competitors, on many small tensors and on BERT-base."""

from argparse import Namespace
from collections.abc import Iterator

from . import bench_adam, bench_lamb, bench_lars, bench_sgd_momentum
from .demands import Demand
from .measure import Row

TITLE = "Optimizers"
# op -> its competitors, the ratio demanded on the small tensors, and that on BERT-base's
FUSED, EAGER = ("torch fused",), ("eager", "foreach")
REQUIRED = {
    "lamb": (EAGER, 14, 3.8),
    "adam": (FUSED, 5.5, 1),
    "sgd_momentum": (FUSED, 3.5, 1),
    "lars": (("eager",), 30, 2.8),
}
BANDWIDTH = 80  # % of the triad on BERT-base


def demands(row: Row) -> Iterator[Demand]:
    """What is demanded of a row."""
    peers, small, large = REQUIRED[row.op]
    is_large = "BERT" in row.shape
    yield Demand(row, peers, large if is_large else small)
    if is_large:
        yield Demand(row, percent=BANDWIDTH)


def measure(chosen: Namespace) -> Iterator[Row]:
    for benchmark in (bench_lamb, bench_adam, bench_sgd_momentum, bench_lars):
        yield from benchmark.measure(chosen)
