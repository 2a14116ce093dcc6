"""embedding_bag: all 26 tables, forward, and forward + backward + update, against PyTorch and FBGEMM.

ours            embedding_bag, then embedding_bag_sgd_ (or embedding_bag_rowwise_adagrad_) from the output's gradient
torch stacked   one nn.EmbeddingBag(sparse=True) over the stacked tables, then torch.optim.SGD
torch 26 bags   26 nn.EmbeddingBag(sparse=True), then torch.optim.SGD: what most users write
fbgemm          SplitTableBatchedEmbeddingBagsCodegen on the CPU, EXACT_SGD or EXACT_ROWWISE_ADAGRAD, own process
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
from .draw import draw_ids
from .measure import Local, Row, compare, rotation
from .peer import advise_huge_pages

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
    for case in cases or (QUICK_CASES if chosen.quick else CASES):
        rows = case.table_rows()
        output = 4 * case.batch * shapes.TABLES * case.dim
        sets = rotation(output + 4 * case.batch * shapes.TABLES * case.hot, machine.cache_bytes(), most=4)
        ids = [draw_ids(rows, case.batch, case.hot, case.spread, seed) for seed in range(sets)]
        douts = [torch.randn(case.batch, shapes.TABLES, case.dim) for _ in range(sets)] if case.update != "none" else []
        candidates = {"ours": Local(ours(case, rows, ids, douts))}
        if case.update != "adagrad":  # torch has no row-wise Adagrad
            candidates["torch stacked"] = Local(torch_stacked(case, rows, ids, douts))
            candidates["torch 26 bags"] = Local(torch_bags(case, rows, ids, douts))
        about = {"update": case.update, "batch": case.batch, "hot": case.hot, "rows": rows, "dim": case.dim}
        about |= {"spread": case.spread, "sets": sets, "lr": LR, "eps": EPS}
        with command.peer(chosen.fbgemm_python, "peer_fbgemm", command.FBGEMM, **about) as (fbgemm, version):
            results = compare({**candidates, "fbgemm": fbgemm}, command.effort(chosen))
        facts = {"fbgemm": version} if version else {}
        moved, flops = work(case, rows, ids[0])
        yield Row(case.op, case.shape(), "fp32", chosen.threads, moved, flops, "gather", results, facts=facts)


def ours(case: Case, rows: Sequence[int], ids: list[np.ndarray], douts: list[torch.Tensor]) -> Callable[[int], object]:
    weight = table(sum(rows), case.dim)
    state = torch.zeros(len(weight))
    row_offsets = torch.tensor([0, *rows]).cumsum(0)
    lr = torch.full((), LR)
    offsets = torch.arange(case.batch * shapes.TABLES + 1) * case.hot if case.hot > 1 else None
    inputs = [torch.from_numpy(one[:, :, 0].copy() if offsets is None else one.reshape(-1)) for one in ids]

    def call(number: int) -> object:
        i = number % len(inputs)
        out = embedding_bag(weight, row_offsets, inputs[i], offsets)
        if case.update == "sgd":
            embedding_bag_sgd_(weight, row_offsets, inputs[i], douts[i], lr, bag_offsets=offsets)
        elif case.update == "adagrad":
            embedding_bag_rowwise_adagrad_(
                weight, state, row_offsets, inputs[i], douts[i], lr, eps=EPS, bag_offsets=offsets
            )
        return out

    return call


def torch_stacked(case, rows, ids, douts) -> Callable[[int], object]:
    bag = torch.nn.EmbeddingBag(1, case.dim, mode="sum", sparse=True)
    bag.weight = torch.nn.Parameter(table(sum(rows), case.dim))
    starts = np.cumsum([0, *rows[:-1]])[None, :, None]
    inputs = [torch.from_numpy((one.astype(np.int64) + starts).reshape(-1, case.hot)) for one in ids]
    optimizer = torch.optim.SGD(bag.parameters(), LR)

    def call(number: int) -> object:
        i = number % len(inputs)
        if case.update == "none":
            with torch.no_grad():
                return bag(inputs[i])
        out = bag(inputs[i]).view(case.batch, shapes.TABLES, case.dim)
        out.backward(douts[i])
        optimizer.step()
        optimizer.zero_grad()
        return None

    return call


def torch_bags(case, rows, ids, douts) -> Callable[[int], object]:
    bags = torch.nn.ModuleList(torch.nn.EmbeddingBag(1, case.dim, mode="sum", sparse=True) for _ in rows)
    for bag, count in zip(bags, rows, strict=True):
        bag.weight = torch.nn.Parameter(table(count, case.dim))
    inputs = [[torch.from_numpy(one[:, t].astype(np.int64)) for t in range(len(rows))] for one in ids]
    optimizer = torch.optim.SGD(bags.parameters(), LR)
    split = [dout.unbind(1) for dout in douts]

    def call(number: int) -> object:
        i = number % len(inputs)
        if case.update == "none":
            with torch.no_grad():
                return [bag(column) for bag, column in zip(bags, inputs[i], strict=True)]
        outs = [bag(column) for bag, column in zip(bags, inputs[i], strict=True)]
        torch.autograd.backward(outs, split[i])
        optimizer.step()
        optimizer.zero_grad()
        return None

    return call


def table(rows: int, dim: int) -> torch.Tensor:
    """Random weights in huge pages, asked for before the first touch, where the size is worth it."""
    weight = torch.empty(rows, dim)
    advise_huge_pages(weight.data_ptr(), weight.nbytes)
    return weight.uniform_(-0.01, 0.01)


def arguments():
    options = command.parser(__doc__)
    command.add_fbgemm(options)
    return options


if __name__ == "__main__":
    sys.exit(command.main("embedding_bag", arguments(), measure))
