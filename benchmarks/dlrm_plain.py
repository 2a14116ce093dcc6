"""The peer of the whole-step benchmark: DLRM as a PyTorch user writes it well, with nothing of this package.

One stacked table for all categorical columns (a single `nn.EmbeddingBag` with row offsets added to the ids), the
pairwise products by `bmm`, the triangle by one `index_select`, `torch.optim.SGD`. The per-table form, which is
slower, is what facebookresearch/dlrm does and is measured on that repository itself (peer_dlrm.py).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DENSE_FEATURES = 13


class PlainDLRM(nn.Module):
    """dense [B, 13], ids [B, T] (table-local, int32 or int64) -> logits [B]."""

    def __init__(
        self, table_rows: Sequence[int], dim: int, bottom: Sequence[int], top: Sequence[int], *, sparse: bool
    ) -> None:
        super().__init__()
        vectors = len(table_rows) + 1
        starts = torch.tensor([0, *table_rows]).cumsum(0)
        self.table = nn.EmbeddingBag(int(starts[-1]), dim, mode="sum", sparse=sparse)
        self.bottom = mlp([DENSE_FEATURES, *bottom], last_relu=True)
        self.top = mlp([dim + vectors * (vectors - 1) // 2, *top], last_relu=False)
        self.register_buffer("starts", starts[:-1], persistent=False)
        row, column = torch.tril_indices(vectors, vectors, offset=-1)
        self.register_buffer("triangle", row * vectors + column, persistent=False)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        x = self.bottom(dense)
        batch, tables = ids.shape
        pooled = self.table((ids + self.starts).view(-1, 1)).view(batch, tables, -1)
        features = torch.cat([x.unsqueeze(1), pooled.to(x.dtype)], dim=1)
        gram = torch.bmm(features, features.transpose(1, 2)).flatten(1)
        return self.top(torch.cat([x, gram.index_select(1, self.triangle)], dim=1)).squeeze(1).float()


def mlp(widths: Sequence[int], *, last_relu: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*(layers if last_relu else layers[:-1]))


def plain_step(
    model: PlainDLRM, lr: float, precision: str = "fp32", *, compiled: bool = False
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """One training step: step(dense, ids, labels) -> loss.

    torch's fused SGD takes no sparse gradient, so the table has an optimizer of its own: each part gets the fastest
    that torch offers for it.
    """
    table = [model.table.weight]
    rest = [*model.bottom.parameters(), *model.top.parameters()]
    optimizers = [torch.optim.SGD(rest, lr, fused=True), torch.optim.SGD(table, lr, fused=not model.table.sparse)]
    forward = torch.compile(model) if compiled else model

    def step(dense: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(dense.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = forward(dense, ids)
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return loss.detach()

    return step
