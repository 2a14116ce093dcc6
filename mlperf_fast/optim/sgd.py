"""SGD over dense parameters, with or without momentum, and plain SGD over embedding tables; one learning rate."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mlperf_fast.ops.embedding_bag import embedding_bag_sgd_
from mlperf_fast.ops.sgd import sgd_
from mlperf_fast.ops.sgd_momentum import sgd_momentum_
from mlperf_fast.optim.optimizer import ByName, Group, Optimizer, Parameters, none, split


class SGD(Optimizer):
    """torch.optim.SGD, or Keras's with `lr_inside`; `schedule(step)` gives the learning rate. See ops/sgd_momentum.py.

    weight_decay  for all parameters but those whose name `undecayed` says: undecayed=lambda name: "bias" in name
    tables        `nn.embedding.EmbeddingTables`: their update, w -= lr · gradient, needs no gradient of a table and
                  knows no momentum
    """

    def __init__(
        self,
        parameters: Parameters,
        schedule: Callable[[int], float],
        device: torch.device,
        tables: Iterable[Any] = (),
        deterministic: bool = False,
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        undecayed: ByName = none,
        lr_inside: bool = False,
    ) -> None:
        self.tables = list(tables)
        self.deterministic = deterministic
        self.options: dict[str, Any] = {
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "lr_inside": lr_inside,
        }
        groups = []
        for decay, part in split(parameters, lambda name: 0.0 if undecayed(name) else weight_decay):
            plain = momentum == decay == 0 and all(x.dtype is torch.float32 for x in part.values())
            groups.append(Group(part, ()) if plain else Group(part, ("momentum_buffers",), weight_decay=decay))
        super().__init__(groups, schedule, device)
        self.counts = any(group.state for group in groups)  # counting takes as long as a call of plain SGD

    def gradients(self) -> list[Tensor]:
        of_tables = [table.pooled.grad for table in self.tables if table.pooled.grad is not None]
        return [*super().gradients(), *of_tables]

    def apply(self, found_inf: Tensor) -> None:
        super().apply(found_inf)
        for table in self.tables:
            embedding_bag_sgd_(
                table.weight,
                table.row_offsets,
                table.ids,
                table.pooled.grad,
                self.lr,
                found_inf=found_inf,
                errors=table.id_errors,
                deterministic=self.deterministic,
            )
            table.forget()

    def update(self, group: Group, found_inf: Tensor) -> None:
        scalars: dict[str, Any] = {"lr": self.lr, "found_inf": found_inf}
        if group.state:
            sgd_momentum_(**group.lists(), **scalars, step=self.step, **self.options, **group.rule)
        else:
            sgd_(**group.lists(), **scalars)
