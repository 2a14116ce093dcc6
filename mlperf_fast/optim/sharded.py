"""LAMB whose state and work are spread over the processes (ZeRO stage 1)."""

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor

from mlperf_fast.ops.grad_norm import grad_norm
from mlperf_fast.ops.lamb import lamb_apply_, lamb_moments_
from mlperf_fast.ops.lists import Kept
from mlperf_fast.optim.flat import flatten_
from mlperf_fast.optim.lamb import Rules
from mlperf_fast.optim.optimizer import Optimizer, Parameters, split

# Under the names that torch 2.13 gave them, and those of before.
_reduce_scatter: Any = getattr(torch_dist, "reduce_scatter_single", None) or torch_dist.reduce_scatter_tensor
_all_gather: Any = getattr(torch_dist, "all_gather_single", None) or torch_dist.all_gather_into_tensor


class _Shard:
    """Parameters of one dtype, flat, and this process's share of everything else.

    flat_parameters  [world x share], where the model's tensors are views     flat_gradients  the same size and dtype
    masters          float32 [share]: the share of flat_parameters itself where that is float32
    rows             where the norms of each piece's tensor stand; `first` is this dtype's first row
    """

    def __init__(self, parameters: dict[str, Tensor], first: int, rules: Rules, rank: int, world: int) -> None:
        self.model = list(parameters.values())
        flat, self.flat_parameters = flatten_(parameters, world)
        self.flat_gradients = torch.zeros_like(self.flat_parameters)
        self.views = flat.views(self.flat_gradients)
        self.own = slice(rank * flat.share, (rank + 1) * flat.share)
        self.rounded = self.flat_parameters.dtype is not torch.float32
        mine = self.flat_parameters[self.own]
        masters = mine.float() if self.rounded else mine
        parts = [rules.parts(name, p) for name, p in parameters.items()]
        *rows, self.last = accumulate(parts, initial=first)  # of each tensor's first part, and past the last one's
        self.pieces = flat.pieces(rank, parts)
        self.rows = [rows[i] + part for i, part, _, _ in self.pieces]
        names = [flat.names[i] for i, _, _, _ in self.pieces]
        self.moments = {kind: self._cut(torch.zeros_like(masters)) for kind in ("exp_avgs", "exp_avg_sqs")}
        self.lists: dict[str, Any] = {
            "params": self._cut(masters),
            **self.moments,
            "grads": self._cut(self.flat_gradients[self.own]),
            "copies": self._cut(mine) if self.rounded else Kept(),
            "weight_decay": [rules.decay(name) for name in names],
            "adapted": [rules.adapted(name) for name in names],
        }
        self.names = [
            name if parts[i] == 1 else f"{name}[{part}]"
            for name, (i, part, _, _) in zip(names, self.pieces, strict=True)
        ]
        self._indices: dict[tuple[int, ...], Tensor] = {}

    def _cut(self, share: Tensor) -> Kept:
        return Kept(share[begin : begin + size] for _, _, begin, size in self.pieces)

    def collect_gradients(self) -> None:
        """Into the flat buffer; zeros for a parameter without one."""
        pairs = [(view, p.grad) for view, p in zip(self.views, self.model, strict=True) if p.grad is not None]
        if pairs:
            torch._foreach_copy_([view for view, _ in pairs], [grad for _, grad in pairs])
        if len(pairs) < len(self.model):
            torch._foreach_zero_([view for view, p in zip(self.views, self.model, strict=True) if p.grad is None])

    def given(self) -> tuple[dict[str, Any], Tensor]:
        """The lists without parameters that got no gradient, and the rows of their pieces' norms (int64)."""
        given = tuple(k for k, (i, *_) in enumerate(self.pieces) if self.model[i].grad is not None)
        if given not in self._indices:
            rows = [self.rows[k] for k in given]
            self._indices[given] = torch.tensor(rows, dtype=torch.int64, device=self.flat_parameters.device)
        lists = self.lists
        if len(given) < len(self.pieces):
            lists = {name: [values[k] for k in given] if values else values for name, values in lists.items()}
        return lists, self._indices[given]

    def kept(self) -> dict[str, dict[str, Tensor]]:
        """kind -> parameter's name -> what this process holds of it, one-dimensional."""
        kinds = self.moments | ({"masters": self.lists["params"]} if self.rounded else {})
        return {kind: dict(zip(self.names, tensors, strict=True)) for kind, tensors in kinds.items()}


class ShardedLAMB(Optimizer):
    """LAMB with the same results as optim/lamb.py's, for a model that every process of `group` holds whole.

    Each process keeps 1/world of the moments and masters, and does 1/world of the update:

        exchange   gradients are reduced and scattered: each process gets its share of their mean
        apply      norms are added up over the processes, each updates its share, and all gather the parameters

    Parameters become views of one buffer a dtype (flat.py), so make it before anything keeps their addresses. They
    start as rank 0 has them. Every call is collective. A checkpoint holds a process's own share and resumes with as
    many processes.

    clip_each_rank  clips each process's own gradient before the exchange, instead of the mean after it: what the BERT
                    reference does by default. Then `exchange` needs the loss scale
    rules           as lamb.Rules takes them

    Works over NCCL, and over gloo, whose reduce-scatter is an all-reduce (torch 2.9 to 2.13): right, not faster. The
    sums of the norms are float64; one process gives the same bits but for the order in which those are added.
    """

    def __init__(
        self,
        parameters: Parameters,
        schedule: Callable[[int], float],
        device: torch.device,
        *,
        group: torch_dist.ProcessGroup | None = None,
        clip_each_rank: bool = False,
        **rules: Any,
    ) -> None:
        self.rules, self.group, self.clip_each_rank = Rules(**rules), group, clip_each_rank
        together = torch_dist.is_initialized()
        self.world = torch_dist.get_world_size(group) if together else 1
        rank = torch_dist.get_rank(group) if together else 0
        self.shards: list[_Shard] = []
        rows = 0
        for _, part in split(parameters):
            self.shards.append(_Shard(part, rows, self.rules, rank, self.world))
            rows = self.shards[-1].last
        super().__init__(self.shards, schedule, device)
        self.squares = torch.zeros(rows, 2, dtype=torch.float64, device=device)  # |w|^2 and |u|^2 by tensor
        self.grad_norm: Tensor | None = None
        self._start_alike()

    def _start_alike(self) -> None:
        for shard in self.shards:
            if self.world > 1:
                torch_dist.broadcast(shard.flat_parameters, group=self.group, group_src=0)
            if shard.rounded:
                torch._foreach_copy_(list(shard.lists["params"]), list(shard.lists["copies"]))

    def exchange(self, loss_scale: Tensor | None = None) -> None:
        """After backward: this process's share of the mean gradient, in place of an all-reduce."""
        for shard in self.shards:
            shard.collect_gradients()
        if self.clip_each_rank and self.rules.clips:
            norm = grad_norm([shard.flat_gradients for shard in self.shards])
            most = self.rules.gradient["max_grad_norm"] * (1 if loss_scale is None else loss_scale.double())
            factor = torch.where(norm > most, most / norm, 1).float()
            torch._foreach_mul_([shard.flat_gradients for shard in self.shards], factor)
        if self.world == 1:
            return
        for shard in self.shards:
            share = shard.flat_gradients[shard.own]
            _reduce_scatter(share, shard.flat_gradients, group=self.group)
            share.div_(self.world)

    def gradients(self) -> list[Tensor]:
        """This process's share of the mean gradient, for the loss scaler; valid after `exchange`."""
        return [shard.flat_gradients[shard.own] for shard in self.shards]

    def apply(self, found_inf: Tensor) -> None:
        """Updates unless `found_inf` is set, which must be the same on all processes."""
        self.step.add_(found_inf == 0)
        clip = self.rules.gradient
        self.grad_norm = None
        if self.rules.clips and not self.clip_each_rank:
            self.grad_norm = self._sum(grad_norm(self.gradients()).square()).sqrt()
        else:
            clip = clip | {"max_grad_norm": math.inf}
        self.squares.zero_()
        given = [shard.given() for shard in self.shards]
        for lists, rows in given:
            moments = {name: lists[name] for name in ("params", "grads", "exp_avgs", "exp_avg_sqs", "weight_decay")}
            parts = lamb_moments_(
                **moments, step=self.step, grad_norm=self.grad_norm, found_inf=found_inf, **self.rules.numbers, **clip
            )
            self.squares.index_copy_(0, rows, parts)  # a share holds at most one piece of each
        self._sum(self.squares)
        for shard, (lists, rows) in zip(self.shards, given, strict=True):
            rest = {name: values for name, values in lists.items() if name != "grads"}
            lamb_apply_(
                **rest, squares=self.squares[rows], lr=self.lr, step=self.step, found_inf=found_inf,
                **self.rules.numbers,
            )  # fmt: skip
            if self.world > 1:
                own = shard.flat_parameters[shard.own]
                _all_gather(shard.flat_parameters, own, group=self.group)

    def _sum(self, value: Tensor) -> Tensor:
        """Over the processes, in place."""
        if self.world > 1:
            torch_dist.all_reduce(value, group=self.group)
        return value
