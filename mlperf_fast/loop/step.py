"""One training step: forward, backward, gradient exchange, update. Nothing in it waits for the device."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mlperf_fast.loop.dist import Ranks, average_gradients, mean_over_ranks, reduce_max
from mlperf_fast.ops.grad_norm import unscale_

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class LossScaler:
    """Dynamic loss scaling for fp16 that lives on the device: scale, growth counter and found-inf are tensors.

    The scale doubles after 2,000 steps without overflow and halves at each overflow (torch.amp.GradScaler's rule).
    """

    def __init__(self, device: torch.device) -> None:
        self.scale = torch.full((), 65536.0, device=device)
        self.growth_tracker = torch.zeros((), dtype=torch.int32, device=device)

    def unscale_(self, gradients: list[Tensor], found_inf: Tensor) -> None:
        """Divides the gradients by the scale in place; sets `found_inf` to 1 where one holds inf or NaN."""
        unscale_(gradients, self.scale.reciprocal(), found_inf)

    def update(self, found_inf: Tensor) -> None:
        torch._amp_update_scale_(self.scale, self.growth_tracker, found_inf, 2.0, 0.5, 2000)


class TrainStep:
    """`step(batch)` trains on one batch; `count` is the number of steps taken.

    The optimizer is one of `optim/`: `begin(step)` puts this step's learning rate on the device, `gradients()` lists
    what the loss scaler must look at, `apply(found_inf)` updates unless `found_inf` (a device tensor) is set. One with
    `exchange(loss_scale)` averages the gradients over the ranks itself.
    """

    def __init__(
        self,
        loss: Callable[[torch.nn.Module, Any], Tensor],
        model: torch.nn.Module,
        optimizer: Any,
        ranks: Ranks,
        precision: str,
    ) -> None:
        self.loss, self.model, self.optimizer, self.ranks, self.precision = loss, model, optimizer, ranks, precision
        self.count = 0
        self.found_inf = torch.zeros((), device=ranks.device)
        self.loss_sum = torch.zeros((), device=ranks.device)  # over the steps since it was last read
        self.read_at = 0
        self.scaler = LossScaler(ranks.device) if precision == "fp16" else None
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def __call__(self, batch: Any) -> None:
        self.count += 1
        self.optimizer.begin(self.count)
        if self.scaler:
            self.found_inf.zero_()
        self._train(batch)
        if self.scaler:
            self.scaler.update(self.found_inf)

    def autocast(self) -> torch.autocast:
        """The context that forward passes run in, also for evaluation."""
        dtype = AUTOCAST.get(self.precision)
        return torch.autocast(self.ranks.device.type, dtype=dtype, enabled=dtype is not None)

    def _train(self, batch: Any) -> None:
        with self.autocast():
            loss = self.loss(self.model, batch)
        (loss * self.scaler.scale if self.scaler else loss).backward()
        self._exchange()
        if self.scaler:
            self.scaler.unscale_(self.optimizer.gradients(), self.found_inf)
            reduce_max(self.ranks, self.found_inf)
        self.optimizer.apply(self.found_inf)
        for parameter in self._parameters:
            parameter.grad = None
        self.loss_sum += loss.detach()

    def _exchange(self) -> None:
        """Each gradient becomes its mean over the ranks; an optimizer that shards its work takes its share of it."""
        exchange = getattr(self.optimizer, "exchange", None)
        if exchange:
            exchange(self.scaler.scale if self.scaler else None)
        else:
            average_gradients(self.ranks, self._parameters)

    def warm_up(self, batch: Any, steps: int = 2) -> None:
        """Runs the whole step on a made-up batch, so that compiling and allocating happen before the clock starts.

        `found_inf` is held up meanwhile: every optimizer then skips its update, so no weight has to be saved and put
        back, however large. Buffers and random generators are put back.
        """
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        generators = rng_state(self.ranks.device)
        scaler, self.scaler = self.scaler, None
        self.found_inf.fill_(1.0)
        for _ in range(steps):
            self.optimizer.begin(1)
            self._train(batch)
        self.found_inf.zero_()
        self.loss_sum.zero_()
        self.scaler = scaler
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])
        set_rng_state(generators, self.ranks.device)

    def read_loss(self) -> tuple[float, int]:
        """The mean loss of the steps since the last call, over all ranks, and how many. Waits for the device."""
        steps = self.count - self.read_at
        mean = mean_over_ranks(self.ranks, self.loss_sum) / steps
        self.loss_sum.zero_()
        self.read_at = self.count
        return mean, steps

    def state_dict(self) -> dict[str, Any]:
        state = {
            "count": self.count,
            "loss_sum": self.loss_sum,
            "read_at": self.read_at,
            "optimizer": self.optimizer.state_dict(),
        }
        if self.scaler:
            state |= {"scale": self.scaler.scale, "growth_tracker": self.scaler.growth_tracker}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.read_at = state["count"], state["read_at"]
        self.loss_sum.copy_(state["loss_sum"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler:
            self.scaler.scale.copy_(state["scale"])
            self.scaler.growth_tracker.copy_(state["growth_tracker"])


def rng_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
