"""embedding_bag: all 26 tables, forward, and forward + backward + update, against PyTorch and FBGEMM.

cpp, cuda, triton, ref   embedding_bag, then embedding_bag_sgd_ (or _rowwise_adagrad_) from the output's gradient
torch stacked   one nn.EmbeddingBag(sparse=True) over the stacked tables, then torch.optim.SGD
torch 26 bags   26 nn.EmbeddingBag(sparse=True), then torch.optim.SGD: what most users write
torch compile   torch.compile of the stacked form's forward; it can't trace a sparse gradient
fbgemm          SplitTableBatchedEmbeddingBagsCodegen, EXACT_SGD or EXACT_ROWWISE_ADAGRAD, in a process of its own
The gradient of the output is given. Each gets ids in the form it likes best, made beforehand: ours int32, the others
int64. Table sizes: equal with uniform ids, or Criteo's with Zipf ids (many repeats); 1,000,000 rows in all.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mlperf_fast.ops.embedding_bag import embedding_bag, embedding_bag_rowwise_adagrad_, embedding_bag_sgd_

from . import command, machine, shapes
from .competitors import backends, best, compiled
from .draw import draw_ids
from .measure import Local, Row, compare, rotation
from .peer import advise_huge_pages

DEVICES = ("cpu", "cuda")
LR, EPS = 0.01, 1e-8


@dataclass(frozen=True)
class Case:
    """`update`: "none" measures the forward alone; "sgd" and "adagrad" the forward, the backward and the update."""

    update: str
    batch: int
    hot: int = 1  # ids a bag
    tables: str = "equal"  # or "criteo"
    rows: int = 1_000_000
    dim: int = shapes.DIM

    @property
    def op(self) -> str:
        return {
            "none": "embedding_bag fwd",
            "sgd": "embedding_bag fwd+bwd+SGD",
            "adagrad": "embedding_bag fwd+bwd+row-wise Adagrad",
        }[self.update]

    @property
    def spread(self) -> str:
        return "zipf" if self.tables == "criteo" else "uniform"

    def table_rows(self) -> list[int]:
        return shapes.criteo_rows(self.rows) if self.tables == "criteo" else shapes.equal_rows(self.rows)

    def shape(self) -> str:
        return f"B {self.batch}, 26×{self.dim}, {self.hot}-hot, {self.tables} tables, {self.spread}"


CASES = [
    *(Case("none", batch) for batch in (2048, 32768)),
    *(Case("sgd", batch, tables=tables) for tables in ("equal", "criteo") for batch in (2048, 32768)),
    Case("sgd", 2048, hot=10),
    *(Case("adagrad", batch) for batch in (2048, 32768)),
    Case("adagrad", 2048, hot=10),
]
# On a GPU too: the global batch of DLRM's closed division, which each table sees.
GPU_CASES = [*CASES, Case("sgd", shapes.closed_batch(), tables="criteo")]
QUICK_CASES = [Case(update, 64, rows=2600, dim=16) for update in ("none", "sgd", "adagrad")]


def work(case: Case, rows: Sequence[int], ids: np.ndarray) -> tuple[int, int]:
    """Bytes and flops by the formula in csrc/embedding_bag.h, with the ids' distinct rows counted."""
    samples, bags, dim = ids.size, case.batch * shapes.TABLES, case.dim
    distinct = sum(len(np.unique(ids[:, table])) for table in range(len(rows)))
    moved, flops = 4 * dim * (samples + bags) + 4 * samples, dim * samples
    if case.update != "none":
        moved += 4 * dim * (2 * distinct + bags) + 4 * samples
        moved += 8 * distinct if case.update == "adagrad" else 0
        flops += dim * (samples + (4 if case.update == "adagrad" else 2) * distinct)
    return moved, flops


def measure(chosen: Namespace, cases: Sequence[Case] | None = None) -> Iterator[Row]:
    device = chosen.device
    for case in cases or (QUICK_CASES if chosen.quick else GPU_CASES if device.type == "cuda" else CASES):
        rows = case.table_rows()
        output = 4 * case.batch * shapes.TABLES * case.dim
        sets = rotation(output + 4 * case.batch * shapes.TABLES * case.hot, machine.cache_bytes(device), most=4)
        ids = [draw_ids(rows, case.batch, case.hot, case.spread, seed) for seed in range(sets)]
        shape = (case.batch, shapes.TABLES, case.dim)
        douts = [torch.randn(shape, device=device) for _ in range(sets if case.update != "none" else 0)]
        inputs = Inputs(case, rows, ids, douts, device)
        candidates = backends("embedding_bag", device, torch.float32, lambda name, inputs=inputs: ours(inputs, name))
        if case.update != "adagrad":  # torch has no row-wise Adagrad
            candidates["torch stacked"] = Local(torch_stacked(inputs))
            candidates["torch 26 bags"] = Local(torch_bags(inputs))
        if case.update == "none":
            candidates["torch compile"] = compiled(chosen, lambda inputs=inputs: torch_stacked(inputs, torch.compile))
        about = {"update": case.update, "batch": case.batch, "hot": case.hot, "rows": rows, "dim": case.dim}
        about |= {"spread": case.spread, "sets": sets, "lr": LR, "eps": EPS, "device": device.type}
        python = command.fbgemm_python(chosen)
        with command.peer(python, "peer_fbgemm", command.FBGEMM, **about) as (fbgemm, version):
            results = compare({**candidates, "fbgemm": fbgemm}, command.effort(chosen))
        facts = {"fbgemm": version} if version else {}
        moved, flops = work(case, rows, ids[0])
        default = best("embedding_bag", device)
        yield Row(case.op, case.shape(), "fp32", chosen.threads, moved, flops, "gather", results, default, facts)


@dataclass(frozen=True)
class Inputs:
    """ids: int32 [B, T, hot] each, table-local; douts: the output's gradients, none where the forward is measured."""

    case: Case
    rows: Sequence[int]
    ids: list[np.ndarray]
    douts: list[torch.Tensor]
    device: torch.device


def ours(inputs: Inputs, backend: str) -> Callable[[int], object]:
    case, device = inputs.case, inputs.device
    weight = table(sum(inputs.rows), case.dim, device)
    state = torch.zeros(len(weight), device=device)
    row_offsets = torch.tensor([0, *inputs.rows], device=device).cumsum(0)
    lr = torch.full((), LR, device=device)
    offsets = torch.arange(case.batch * shapes.TABLES + 1, device=device) * case.hot if case.hot > 1 else None
    ids = [torch.from_numpy(one[:, :, 0].copy() if offsets is None else one.reshape(-1)) for one in inputs.ids]
    ids = [one.to(device) for one in ids]
    # As in training: bad ids are recorded on the device and read later, so that no call waits for it.
    errors = torch.zeros(3, dtype=torch.int64, device=device) if device.type == "cuda" else None
    options = {"errors": errors, "backend": backend}

    def call(number: int) -> object:
        i = number % len(ids)
        out = embedding_bag(weight, row_offsets, ids[i], offsets, **options)
        if case.update == "sgd":
            embedding_bag_sgd_(weight, row_offsets, ids[i], inputs.douts[i], lr, bag_offsets=offsets, **options)
        elif case.update == "adagrad":
            embedding_bag_rowwise_adagrad_(
                weight, state, row_offsets, ids[i], inputs.douts[i], lr, eps=EPS, bag_offsets=offsets, **options
            )
        return out

    return call


def torch_stacked(
    inputs: Inputs, transform: Callable[[torch.nn.Module], Callable] = lambda bag: bag
) -> Callable[[int], object]:
    case = inputs.case
    bag = torch.nn.EmbeddingBag(1, case.dim, mode="sum", sparse=True)
    bag.weight = torch.nn.Parameter(table(sum(inputs.rows), case.dim, inputs.device))
    starts = np.cumsum([0, *inputs.rows[:-1]])[None, :, None]
    ids = [torch.from_numpy((one.astype(np.int64) + starts).reshape(-1, case.hot)) for one in inputs.ids]
    ids = [one.to(inputs.device) for one in ids]
    optimizer, forward = torch.optim.SGD(bag.parameters(), LR), transform(bag)

    def call(number: int) -> object:
        i = number % len(ids)
        if case.update == "none":
            with torch.no_grad():
                return forward(ids[i])
        out = forward(ids[i]).view(case.batch, shapes.TABLES, case.dim)
        out.backward(inputs.douts[i])
        optimizer.step()
        optimizer.zero_grad()
        return None

    return call


def torch_bags(inputs: Inputs) -> Callable[[int], object]:
    case, rows, device = inputs.case, inputs.rows, inputs.device
    bags = torch.nn.ModuleList(torch.nn.EmbeddingBag(1, case.dim, mode="sum", sparse=True) for _ in rows)
    for bag, count in zip(bags, rows, strict=True):
        bag.weight = torch.nn.Parameter(table(count, case.dim, device))
    ids = [[torch.from_numpy(one[:, t].astype(np.int64)).to(device) for t in range(len(rows))] for one in inputs.ids]
    optimizer = torch.optim.SGD(bags.parameters(), LR)
    split = [dout.unbind(1) for dout in inputs.douts]

    def call(number: int) -> object:
        i = number % len(ids)
        if case.update == "none":
            with torch.no_grad():
                return [bag(column) for bag, column in zip(bags, ids[i], strict=True)]
        outs = [bag(column) for bag, column in zip(bags, ids[i], strict=True)]
        torch.autograd.backward(outs, split[i])
        optimizer.step()
        optimizer.zero_grad()
        return None

    return call


def table(rows: int, dim: int, device: torch.device) -> torch.Tensor:
    """Random weights; on a CPU in huge pages, asked for before the first touch, where the size is worth it."""
    weight = torch.empty(rows, dim, device=device)
    if device.type == "cpu":
        advise_huge_pages(weight.data_ptr(), weight.nbytes)
    return weight.uniform_(-0.01, 0.01)


if __name__ == "__main__":
    sys.exit(command.main("embedding_bag"))
