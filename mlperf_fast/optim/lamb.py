"""LAMB, with the rules by which the references leave tensors out of weight decay and trust ratio."""

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mlperf_fast.errors import UserError
from mlperf_fast.ops.grad_norm import grad_norm
from mlperf_fast.ops.lamb import lamb_
from mlperf_fast.optim.optimizer import ByName, Group, Optimizer, Parameters, none, split

ADAPTATIONS = ("reference", "apex", "nvlamb")


def excluded_by_reference(name: str) -> bool:
    """The BERT reference's rule: no weight decay and no trust ratio for LayerNorm's tensors and for biases.

    That includes the output bias of the masked-word head. Embedding tables are decayed and adapted.
    Source: mlcommons/training, bert, optimization.py (exclude_from_weight_decay).
    """
    return re.search("LayerNorm|layer_norm|bias", name) is not None


class Rules:
    """LAMB's numbers, and which tensors it decays and adapts.

    weight_decay  for all parameters but those whose name `excluded` says
    adaptation    which parameters have a trust ratio:
                  reference  all that aren't excluded, whatever weight_decay is
                  apex       those with a weight decay other than 0 (FusedLAMB): weight_decay=0 makes LAMB an Adam
                  nvlamb     all (FusedLAMB with use_nvlamb)
    parts         how many tensors of the reference a parameter stands for, stacked in its first dimension: each has
                  norms of its own, so that a fused query-key-value weight (3) is updated as three weights are
    max_grad_norm infinity: no clipping

    The BERT reference: excluded=excluded_by_reference. RNN-T's reference, which is apex with one group for all tensors:
    eps=1e-9, weight_decay=1e-3, nothing excluded.
    """

    def __init__(
        self,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        excluded: ByName = none,
        adaptation: str = "reference",
        parts: Callable[[str], int] = lambda name: 1,
        max_grad_norm: float = 1.0,
        grad_averaging: bool = True,
        bias_correction: bool = True,
    ) -> None:
        if adaptation not in ADAPTATIONS:
            raise UserError(f"LAMB: adaptation is {adaptation!r}, expected one of {', '.join(ADAPTATIONS)}")
        self.weight_decay, self.excluded, self.adaptation, self._parts = weight_decay, excluded, adaptation, parts
        self.numbers: dict[str, Any] = {"betas": betas, "eps": eps, "bias_correction": bias_correction}
        self.gradient: dict[str, Any] = {"max_grad_norm": max_grad_norm, "grad_averaging": grad_averaging}

    @property
    def clips(self) -> bool:
        return self.gradient["max_grad_norm"] < math.inf

    def decay(self, name: str) -> float:
        return 0.0 if self.excluded(name) else self.weight_decay

    def adapted(self, name: str) -> bool:
        by_rule = {"reference": not self.excluded(name), "apex": self.decay(name) != 0, "nvlamb": True}
        return by_rule[self.adaptation]

    def parts(self, name: str, parameter: Tensor) -> int:
        parts = self._parts(name)
        if parts < 1 or (parts > 1 and (parameter.dim() == 0 or parameter.shape[0] % parts)):
            raise UserError(f"LAMB: {name!r} of shape {list(parameter.shape)} can't be {parts} tensors of equal size")
        return parts


class LAMB(Optimizer):
    """LAMB over parameters that this process holds whole; `schedule(step)` gives the learning rate. See ops/lamb.py.

    rules  as Rules takes them

    After `apply`, `grad_norm` is the norm over all gradients before clipping (float64), None without clipping.
    """

    def __init__(
        self,
        parameters: Parameters,
        schedule: Callable[[int], float],
        device: torch.device,
        **rules: Any,
    ) -> None:
        self.rules = Rules(**rules)
        self.grad_norm: Tensor | None = None
        groups = [
            Group(
                part,
                ("exp_avgs", "exp_avg_sqs"),
                weight_decay=[self.rules.decay(name) for name in part],
                adapted=[self.rules.adapted(name) for name in part],
                parts=[self.rules.parts(name, parameter) for name, parameter in part.items()],
            )
            for _, part in split(parameters)
        ]
        super().__init__(groups, schedule, device)

    def apply(self, found_inf: Tensor) -> None:
        gradients = self.gradients()
        self.grad_norm = grad_norm(gradients) if self.rules.clips and gradients else None
        super().apply(found_inf)

    def update(self, group: Group, found_inf: Tensor) -> None:
        lists = group.lists(**group.rule)
        parts = lists.pop("parts")
        if any(n > 1 for n in parts):
            lists = {name: _in_parts(values, parts) for name, values in lists.items()}
        lamb_(**lists, lr=self.lr, step=self.step, grad_norm=self.grad_norm, found_inf=found_inf,
              **self.rules.numbers, **self.rules.gradient)  # fmt: skip


def _in_parts(values: Any, parts: list[int]) -> list:
    """Tensors cut into their parts; other values repeated for each."""
    return [
        piece
        for value, n in zip(values, parts, strict=True)
        for piece in (value.detach().chunk(n) if isinstance(value, Tensor) else [value] * n)
    ]
