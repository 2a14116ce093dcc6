"""DLRM v1: bottom MLP, 26 embedding tables, pairwise dot interaction, top MLP.

    x  = bottom(dense)                    [B, 13]  -> [B, D]      ReLU after every layer, the last too
    e  = tables(ids)                      [B, 26]  -> [B, 26, D]
    r  = dot_interaction(x, e)                     -> [B, D + 351]
    p  = sigmoid(top(r))                           -> [B]         the model returns the logit

Parameters are called as in facebookresearch/dlrm: `emb_l.{t}.weight`, `bot_l.{0,2,4}`, `top_l.{0,2,4,6,8}`.

Over several processes the tables are sharded and the MLPs replicated. Each process looks its own tables up for the
whole global batch; one all-to-all then gives each process all tables for its own samples, and backward the way back.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from mlperf_fast.loop.dist import Ranks
from mlperf_fast.nn.embedding import EmbeddingTables
from mlperf_fast.nn.mlp import MLP
from mlperf_fast.ops.dot_interaction import dot_interaction

DENSE_FEATURES = 13


class DLRM(nn.Module):
    """`table_rows`: rows of each of the tables; `bottom` ends with the tables' dimension; `top` ends with 1."""

    def __init__(
        self,
        table_rows: Sequence[int],
        dim: int,
        bottom: Sequence[int],
        top: Sequence[int],
        ranks: Ranks,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if bottom[-1] != dim:
            raise ValueError(f"the bottom MLP must end with the tables' dimension {dim}, not {bottom[-1]}")
        device = device or ranks.device
        vectors = len(table_rows) + 1
        self.ranks = ranks
        self.owners = shard_tables(table_rows, ranks.world)
        self.emb_l = EmbeddingTables(self.owners[ranks.rank], table_rows, dim, device)
        self.bot_l = MLP([DENSE_FEATURES, *bottom], device)
        self.top_l = MLP([dim + vectors * (vectors - 1) // 2, *top], device, relu_last=False)
        # On the device from the start, or each step would send it. Real under device="meta" too, as other integers are.
        place = "cpu" if torch.device(device).type == "meta" else device
        self.register_buffer("layout", exchange_layout(self.owners).to(place), persistent=False)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """dense [b, 13] of this process's samples, ids [B, own tables] of all samples -> logits [b], float32."""
        x = self.bot_l(dense)
        pooled = self.emb_l(ids)
        if self.ranks.world > 1:
            pooled = ExchangeTables.apply(pooled, self.layout, self.owners, self.ranks)
        return self.top_l(dot_interaction(x, pooled.to(x.dtype))).squeeze(1).float()


@torch.no_grad()
def initialise(model: DLRM, seed: int) -> None:
    """The reference's distributions. Biases are random too, as there.

    Every tensor has a generator of its own, so that its values don't depend on how the tables are sharded.
    Linear [out, in]: weight Normal(0, sqrt(2/(in+out))), bias Normal(0, sqrt(1/out)). Table of n rows:
    Uniform(-sqrt(1/n), sqrt(1/n)).
    """

    def generator(number: int) -> torch.Generator:
        return torch.Generator(model.ranks.device).manual_seed((seed + number * 1_000_003) % 2**63)

    for table, view in zip(model.emb_l.tables, model.emb_l.views(), strict=True):
        bound = math.sqrt(1 / view.shape[0])
        view.uniform_(-bound, bound, generator=generator(table))
    for number, layer in enumerate([*model.bot_l.layers, *model.top_l.layers], start=1_000):
        own = generator(number)
        layer.weight.normal_(0, math.sqrt(2 / (layer.in_features + layer.out_features)), generator=own)
        layer.bias.normal_(0, math.sqrt(1 / layer.out_features), generator=own)


def shard_tables(table_rows: Sequence[int], world: int) -> list[tuple[int, ...]]:
    """Which tables each process owns: the largest first, each to the process with the fewest rows so far."""
    owners: list[list[int]] = [[] for _ in range(world)]
    for table in sorted(range(len(table_rows)), key=lambda t: -table_rows[t]):
        least = min(owners, key=lambda own: (sum(table_rows[t] for t in own), len(own)))
        least.append(table)
    return [tuple(sorted(own)) for own in owners]


def exchange_layout(owners: list[tuple[int, ...]]) -> Tensor:
    """[3, tables]: of each table how many tables earlier processes own, its place among its owner's, and how many."""
    layout = torch.empty(3, sum(map(len, owners)), dtype=torch.int64)
    before = 0
    for tables in owners:
        for place, table in enumerate(tables):
            layout[:, table] = torch.tensor([before, place, len(tables)])
        before += len(tables)
    return layout


class ExchangeTables(torch.autograd.Function):
    """[B, own tables, D] on each process -> [B/world, all tables, D], in table order; backward the way back.

    The backward result is divided by the number of processes: each one's loss is a mean over its own samples, and the
    tables' gradient is that of the mean over all of them.
    """

    @staticmethod
    def forward(ctx, pooled: Tensor, layout: Tensor, owners: list[tuple[int, ...]], ranks: Ranks) -> Tensor:
        batch, own, dim = pooled.shape
        local = batch // ranks.world
        counts = [local * len(tables) * dim for tables in owners]
        received = pooled.new_empty(sum(counts))
        torch_dist.all_to_all_single(received, pooled.reshape(-1), counts, [local * own * dim] * ranks.world)
        # Each owner's block is [local, its tables, D]: the row of every (sample, table) in all blocks together.
        before, place, count = layout
        samples = torch.arange(local, device=layout.device).unsqueeze(1)
        ctx.rows = (local * before + place + samples * count).view(-1)
        ctx.ranks, ctx.own, ctx.counts = ranks, own, counts
        return received.view(-1, dim)[ctx.rows].view(local, -1, dim)

    @staticmethod
    def backward(ctx, dout: Tensor):
        local, _, dim = dout.shape
        world = ctx.ranks.world
        sent = dout.new_empty(len(ctx.rows), dim)
        sent[ctx.rows] = dout.reshape(-1, dim) / world
        dpooled = dout.new_empty(local * world, ctx.own, dim)
        torch_dist.all_to_all_single(dpooled.view(-1), sent.view(-1), [local * ctx.own * dim] * world, ctx.counts)
        return dpooled, None, None, None
