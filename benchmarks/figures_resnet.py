"""The figures of ResNet-50: batch normalisation, the whole step, and the images' way in."""

from argparse import Namespace
from collections.abc import Iterator

import torch

from . import bench_batch_norm, bench_data, steps_resnet
from .demands import Demand
from .measure import Row

TITLE = "ResNet-50, its op and its input"


def demands(row: Row) -> Iterator[Demand]:
    """What is demanded of a row, or reported from it."""
    if row.op.startswith("batch_norm"):
        is_demanded = row.shape == "32×56×56×256, add + ReLU"
        yield Demand(row, ("eager",), 1.65 if is_demanded else None)
        yield Demand(row, ("torch compile",), 6 if is_demanded else None)
    elif row.op == "ResNet step":
        is_demanded = row.shape.startswith("16×224×224×3")
        yield Demand(row, steps_resnet.PEERS, 1.1 if is_demanded else None)
        yield Demand(row, ("torch compile",), 1 if is_demanded else None)
    elif row.op == "data":
        yield Demand(row, ("DataLoader + Pillow",), 1.5)
    else:
        yield Demand(row, ("dali, cold", "workers, cold"))


def measure(chosen: Namespace) -> Iterator[Row]:
    cases = None if chosen.quick else [case for case in bench_batch_norm.CASES if case.dtype == torch.float32]
    yield from bench_batch_norm.measure(chosen, cases)
    yield from steps_resnet.measure(chosen)
    yield from bench_data.measure(chosen)
