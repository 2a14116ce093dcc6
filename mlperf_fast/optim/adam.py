"""Adam and AdamW."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mlperf_fast.ops.adam import adam_
from mlperf_fast.optim.optimizer import ByName, Group, Optimizer, Parameters, none, split


class Adam(Optimizer):
    """torch.optim.Adam, or AdamW with `decoupled`; `schedule(step)` gives the learning rate. See ops/adam.py.

    weight_decay  for all parameters but those whose name `undecayed` says: undecayed=lambda name: "bias" in name

    One count of steps holds for all parameters, where torch counts for each the steps in which it had a gradient.
    """

    def __init__(
        self,
        parameters: Parameters,
        schedule: Callable[[int], float],
        device: torch.device,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        undecayed: ByName = none,
        decoupled: bool = False,
    ) -> None:
        self.options: dict[str, Any] = {"betas": betas, "eps": eps, "decoupled": decoupled}
        parts = split(parameters, lambda name: 0.0 if undecayed(name) else weight_decay)
        groups = [Group(part, ("exp_avgs", "exp_avg_sqs"), weight_decay=decay) for decay, part in parts]
        super().__init__(groups, schedule, device)

    def update(self, group: Group, found_inf: Tensor) -> None:
        adam_(**group.lists(), lr=self.lr, step=self.step, found_inf=found_inf, **self.options, **group.rule)
