"""Plain SGD over dense parameters and embedding tables, one learning rate for both."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mlperf_fast.ops.embedding_bag import embedding_bag_sgd_
from mlperf_fast.ops.sgd import sgd_


class SGD:
    """w -= lr · gradient. `tables` are `nn.embedding.EmbeddingTables`, whose update needs no gradient of a table.

    `schedule(step)` gives the learning rate; it is written to the device before the step, so that the step itself
    is the same work each time and can be captured.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        schedule: Callable[[int], float],
        device: torch.device,
        tables: Iterable[Any] = (),
        deterministic: bool = False,
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.tables = list(tables)
        self.schedule = schedule
        self.deterministic = deterministic
        self.lr = torch.zeros((), device=device)

    def begin(self, step: int) -> None:
        self.lr.fill_(self.schedule(step))

    def gradients(self) -> list[Tensor]:
        written = [*self.parameters, *(table.pooled for table in self.tables)]
        return [tensor.grad for tensor in written if tensor.grad is not None]

    def apply(self, found_inf: Tensor) -> None:
        pairs = [(parameter, parameter.grad) for parameter in self.parameters if parameter.grad is not None]
        sgd_([parameter for parameter, _ in pairs], [grad for _, grad in pairs], self.lr, found_inf=found_inf)
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

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the learning rate is a function of the step, and plain SGD keeps no moments."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(f"plain SGD has no state, but the checkpoint holds {sorted(state)}")
