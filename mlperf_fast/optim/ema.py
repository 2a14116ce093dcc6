"""An exponential moving average of a model's weights, to evaluate with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mlperf_fast.ops.ema import ema_
from mlperf_fast.ops.lists import Kept
from mlperf_fast.optim.optimizer import Parameters, load_tensors, split


class EMA:
    """average = decay · average + (1 - decay) · weight after each update, from the weights as they are now.

    It stands behind the optimizer in `together.Together`; `schedule(step)` gives the decay. Averages are float32,
    whatever the weights are.
    """

    def __init__(self, parameters: Parameters, schedule: Callable[[int], float], device: torch.device) -> None:
        self.schedule = schedule
        self.decay = torch.zeros((), device=device)
        self.parts = [part for _, part in split(parameters)]
        self.averages = [Kept(x.detach().to(torch.float32, copy=True) for x in part.values()) for part in self.parts]

    def begin(self, step: int) -> None:
        self.decay.fill_(self.schedule(step))

    def gradients(self) -> list[Tensor]:
        return []

    def apply(self, found_inf: Tensor) -> None:
        for part, averages in zip(self.parts, self.averages, strict=True):
            ema_(averages, list(part.values()), self.decay, found_inf=found_inf)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Within the block the model's weights are the averages, rounded to their dtype; then they are put back."""
        before = [[x.clone() for x in part.values()] for part in self.parts]
        self._write(self.averages)
        try:
            yield
        finally:
            self._write(before)

    def _write(self, values: list) -> None:
        for part, tensors in zip(self.parts, values, strict=True):
            torch._foreach_copy_(list(part.values()), list(tensors))

    def state_dict(self) -> dict[str, Any]:
        pairs = zip(self.parts, self.averages, strict=True)
        return {name: average for part, averages in pairs for name, average in zip(part, averages, strict=True)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_tensors("the averages", self.state_dict(), state)
