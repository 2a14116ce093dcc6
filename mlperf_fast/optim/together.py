"""Several optimizers as one: parameters with schedules of their own, or an average behind an optimizer."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from mlperf_fast.errors import UserError
from mlperf_fast.optim.optimizer import load_tensors


class Together:
    """Together(weights=SGD(…), biases=SGD(…), average=EMA(…)): each does its part of every step, in this order."""

    def __init__(self, **parts: Any) -> None:
        self.parts = parts

    def begin(self, step: int) -> None:
        for part in self.parts.values():
            part.begin(step)

    @property
    def exchange(self) -> Callable[[Tensor | None], None] | None:
        """Of the part that exchanges gradients itself (ShardedLAMB); it must be the only one that has any."""
        exchanging = [part for part in self.parts.values() if getattr(part, "exchange", None)]
        if not exchanging:
            return None
        others = [part for part in self.parts.values() if part is not exchanging[0] and part.gradients()]
        if others:
            raise UserError(
                f"{type(exchanging[0]).__name__} exchanges the gradients of its own parameters only, but there are "
                f"those of {type(others[0]).__name__} too; shard all of them or none"
            )
        return exchanging[0].exchange

    def gradients(self) -> list[Tensor]:
        return [gradient for part in self.parts.values() for gradient in part.gradients()]

    def apply(self, found_inf: Tensor) -> None:
        for part in self.parts.values():
            part.apply(found_inf)

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_tensors("the optimizers' state", self.state_dict(), state)
