"""Several optimizers as one: parameters with schedules of their own, or an average behind an optimizer."""

from typing import Any

from torch import Tensor

from mlperf_fast.optim.optimizer import load_tensors


class Together:
    """Together(weights=SGD(…), biases=SGD(…), average=EMA(…)): each does its part of every step, in this order."""

    def __init__(self, **parts: Any) -> None:
        self.parts = parts

    def begin(self, step: int) -> None:
        for part in self.parts.values():
            part.begin(step)

    def gradients(self) -> list[Tensor]:
        return [gradient for part in self.parts.values() for gradient in part.gradients()]

    def apply(self, found_inf: Tensor) -> None:
        for part in self.parts.values():
            part.apply(found_inf)

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_tensors("the optimizers' state", self.state_dict(), state)
