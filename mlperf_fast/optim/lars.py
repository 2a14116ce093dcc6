"""LARS, with the rules by which ResNet's submissions leave tensors out of trust ratio and weight decay."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mlperf_fast.ops.lars import lars_
from mlperf_fast.optim.optimizer import ByName, Group, Optimizer, Parameters, none, split


class LARS(Optimizer):
    """LARS; `schedule(step)` gives the learning rate. See ops/lars.py.

    unadapted  names of parameters without a trust ratio: batch norms and biases in ResNet
    undecayed  names of parameters without weight decay; when absent, the unadapted ones: the reference's rule. NVIDIA's
               decays the last layer's bias, which it doesn't adapt
    lr_inside  True is the reference's momentum. False is NVIDIA's, which corrects the reference's by lr(t) / lr(t-1)
    """

    def __init__(
        self,
        parameters: Parameters,
        schedule: Callable[[int], float],
        device: torch.device,
        *,
        momentum: float = 0.9,
        eta: float = 0.001,
        eps: float = 0.0,
        weight_decay: float = 0.0,
        unadapted: ByName = none,
        undecayed: ByName | None = None,
        lr_inside: bool = False,
    ) -> None:
        self.options: dict[str, Any] = {"momentum": momentum, "eta": eta, "eps": eps, "lr_inside": lr_inside}
        no_decay = undecayed or unadapted
        groups = [
            Group(
                part,
                ("momentum_buffers",),
                weight_decay=[0.0 if no_decay(name) else weight_decay for name in part],
                adapted=[not unadapted(name) for name in part],
            )
            for _, part in split(parameters)
        ]
        super().__init__(groups, schedule, device)

    def update(self, group: Group, found_inf: Tensor) -> None:
        lars_(**group.lists(**group.rule), lr=self.lr, found_inf=found_inf, **self.options)
