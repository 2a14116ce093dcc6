"""Whole DLRM training steps, forward to update, on batches that lie ready in memory.

    python -m benchmarks.steps --dlrm-repo DIR

ours             workloads.dlrm: TrainStep, the model over ops, one SGD for all; on a GPU captured as a graph
ours eager       the same without the graph, on a GPU
plain sparse     the same model in plain PyTorch (dlrm_plain.py): one stacked nn.EmbeddingBag(sparse=True)
plain dense      the same with nn.EmbeddingBag as it is by default: the gradient is a tensor as large as the table
torch compile    torch.compile of `plain dense` (it can't trace sparse gradients)
facebookresearch facebookresearch/dlrm's own model and step, in its own process: 26 tables, sparse gradients
Loss, learning rate and initial distribution don't change the time; data loading is left out for all.
"""

import argparse
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch

from mlperf_fast.loop.dist import Ranks
from mlperf_fast.loop.step import TrainStep
from mlperf_fast.optim.sgd import SGD
from mlperf_fast.workloads.dlrm.data import Batch
from mlperf_fast.workloads.dlrm.model import DLRM, initialise
from mlperf_fast.workloads.dlrm.presets import Model
from mlperf_fast.workloads.dlrm.workload import loss

from . import command, machine, options, shapes
from .competitors import compiled
from .dlrm_plain import PlainDLRM, plain_step
from .measure import Candidate, Local, Row, compare, rotation
from .peer import advise_huge_pages

LR = 0.01


@dataclass(frozen=True)
class Case:
    name: str
    batch: int
    rows: tuple[int, ...]
    spread: str  # of the ids: uniform or zipf
    model: Model
    precision: str = "fp32"

    def shape(self) -> str:
        return f"{self.name}: B {self.batch}, 26×{self.model.dim}, {sum(self.rows):,} rows, {self.spread}"


def cases(quick: bool, bf16: bool) -> list[Case]:
    demo = partial(Case, "demo", 1024, tuple(shapes.demo_rows()), "zipf", shapes.demo_model())
    if quick:
        return [Case("demo", 64, tuple(shapes.demo_rows()), "zipf", shapes.demo_model())]
    closed = partial(Case, "closed", 2048, model=shapes.closed_model())
    uniform = {"rows": tuple(shapes.equal_rows(1_000_000)), "spread": "uniform"}
    criteo = {"rows": tuple(shapes.criteo_rows(1_000_000)), "spread": "zipf"}
    found = [demo(), closed(**uniform), closed(**criteo)]
    return found + ([demo(precision="bf16"), closed(**uniform, precision="bf16")] if bf16 else [])


def flops(case: Case) -> int:
    """Forward once and backward twice the MLPs' multiply-adds, less the first layer's input gradient; interaction."""
    vectors = len(case.rows) + 1
    pairs = vectors * (vectors - 1) // 2
    bottom, top = (shapes.DENSE_FEATURES, *case.model.bottom), (case.model.dim + pairs, *case.model.top)
    weights = sum(i * o for widths in (bottom, top) for i, o in pairwise(widths))
    return case.batch * (6 * weights - 2 * bottom[0] * bottom[1] + 6 * pairs * case.model.dim)


def measure(chosen: Namespace, only: Sequence[Case] | None = None) -> Iterator[Row]:
    for case in only or cases(chosen.quick, chosen.bf16):
        sets = rotation(
            4 * case.batch * (2 * len(case.rows) * case.model.dim), machine.cache_bytes(chosen.device), most=8
        )
        inputs = [
            tuple(x.to(chosen.device) for x in shapes.dlrm_inputs(case.rows, case.batch, case.spread, seed))
            for seed in range(sets)
        ]
        candidates: dict[str, Candidate | str] = {"ours": Local(ours(case, inputs))}
        if chosen.device.type == "cuda":
            candidates["ours eager"] = Local(ours(case, inputs, cuda_graph="off"))
        candidates |= {
            "plain sparse": Local(plain(case, inputs, sparse=True)),
            "plain dense": Local(plain(case, inputs, sparse=False)),
        }
        candidates["torch compile"] = compiled(
            chosen, lambda case=case, inputs=inputs: plain(case, inputs, sparse=False, compiled=True)
        )
        about = {"rows": case.rows, "dim": case.model.dim, "bottom": case.model.bottom, "top": case.model.top}
        about |= {"batch": case.batch, "spread": case.spread, "sets": sets, "lr": LR}
        about |= {"repository": str(chosen.dlrm_repo)}
        python, absent = (sys.executable, "") if chosen.dlrm_repo else (None, command.DLRM_REPO)
        if case.precision != "fp32" or chosen.device.type != "cpu":
            python, absent = None, "not run: it is measured in fp32 on the CPU only"
        with command.peer(python, "peer_dlrm", absent, **about) as (child, version):
            results = compare({**candidates, "facebookresearch": child}, command.effort(chosen))
        facts = {"facebookresearch": version} if version else {}
        limit = "gemm" if case.precision == "fp32" else "bf16-gemm"
        row = ("DLRM step", case.shape(), case.precision, chosen.threads, 0, flops(case), limit)
        yield Row(*row, results, "ours", facts)


def ours(case: Case, inputs: Sequence[tuple], cuda_graph: str = "auto") -> Callable[[int], object]:
    ranks = Ranks(0, 1, inputs[0][0].device)
    model = DLRM(case.rows, case.model.dim, case.model.bottom, case.model.top, ranks)
    initialise(model, 0)
    optimizer = SGD(model.parameters(), lambda step: LR, ranks.device, [model.emb_l])
    step = TrainStep(loss, model, optimizer, ranks, case.precision, cuda_graph)
    batches = [Batch(dense, ids, labels, torch.ones_like(labels)) for dense, ids, labels in inputs]
    step.warm_up(batches[0])
    return lambda number: step(batches[number % len(batches)])


def plain(case: Case, inputs: Sequence[tuple], *, sparse: bool, compiled: bool = False) -> Callable[[int], object]:
    model = PlainDLRM(case.rows, case.model.dim, case.model.bottom, case.model.top, sparse=sparse)
    model.to(inputs[0][0].device)
    if model.table.weight.is_cpu:
        advise_huge_pages(model.table.weight.data_ptr(), model.table.weight.nbytes)
    torch.nn.init.uniform_(model.table.weight, -0.01, 0.01)
    step = plain_step(model, LR, case.precision, compiled=compiled)
    return lambda number: step(*inputs[number % len(inputs)])


def run(chosen: Namespace) -> int:
    command.settle(chosen)
    return command.measure_all(chosen, [("steps", measure)])


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_to(parser)
    options.add_dlrm_repo(parser)
    parser.add_argument("--bf16", action="store_true", help="the steps in bf16 autocast too")
    return parser


if __name__ == "__main__":
    sys.exit(command.guarded(run, arguments().parse_args()))
