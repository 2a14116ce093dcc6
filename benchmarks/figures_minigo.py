"""The figures of Minigo: its Go engine, its network, and both together."""

from argparse import Namespace
from collections.abc import Iterator

from . import bench_conv3x3, bench_go, bench_minigo
from .demands import Demand
from .measure import Row

TITLE = "Minigo: engine, search, network"


def demands(row: Row) -> Iterator[Demand]:
    """What is demanded of a row, or reported from it."""
    if row.op == "random games":
        yield Demand(row, ("open_spiel",), 3)
    elif row.op == "moves in batches":
        yield Demand(row, ("pgx",), 10)
    elif row.op == "network":
        yield Demand(row, ("eager",), 1.5)
        yield Demand(row, ("torch compile",))
    elif row.op == "conv3x3":
        yield Demand(row, ("eager",))
        yield Demand(row, ("torch compile",))
    elif row.op == "readouts":
        yield Demand(row, ("open_spiel",), 5)


def measure(chosen: Namespace) -> Iterator[Row]:
    yield from bench_go.measure(chosen)
    yield from bench_conv3x3.measure(chosen)
    yield from bench_minigo.measure(chosen)
