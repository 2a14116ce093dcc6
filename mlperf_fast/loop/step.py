"""One training step: forward, backward, gradient exchange, update. Nothing in it waits for the device.

On a GPU the whole of it runs as a CUDA graph where it can (graph.py); what changes from step to step is put into
device tensors before it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mlperf_fast.loop.dist import Ranks, average_gradients, mean_over_ranks, reduce_max
from mlperf_fast.loop.graph import CudaGraphs, StepGraphs, eager_reason
from mlperf_fast.ops.grad_norm import unscale_
from mlperf_fast.profiling.ranges import named

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

    def tensors(self) -> tuple[Tensor, Tensor]:
        return self.scale, self.growth_tracker

    def update(self, found_inf: Tensor) -> None:
        torch._amp_update_scale_(self.scale, self.growth_tracker, found_inf, 2.0, 0.5, 2000)


class TrainStep:
    """`step(batch)` trains on one batch; `count` is the number of steps taken.

    The optimizer is one of `optim/`: `begin(step)` puts this step's learning rate on the device, `gradients()` lists
    what the loss scaler must look at, `apply(found_inf)` updates unless `found_inf` (a device tensor) is set. One with
    `exchange(loss_scale)` averages the gradients over the ranks itself. `cuda_graph` is the configuration's; `mode`
    says what came of it.
    """

    def __init__(
        self,
        loss: Callable[[Any, Any], Tensor],
        model: torch.nn.Module,
        optimizer: Any,
        ranks: Ranks,
        precision: str,
        cuda_graph: str = "auto",
    ) -> None:
        self.loss, self.model, self.optimizer, self.ranks, self.precision = loss, model, optimizer, ranks, precision
        self.count = 0
        self.found_inf = torch.zeros((), device=ranks.device)
        self.held = torch.zeros((), device=ranks.device)  # what found_inf starts a step with; 1 while warming up
        self.loss_sum = torch.zeros((), device=ranks.device)  # over the steps since it was last read
        self.read_at = 0
        self.scaler = LossScaler(ranks.device) if precision == "fp16" else None
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._eager = eager_reason(cuda_graph, ranks)
        self._mode_told = ""
        self._graphs = None
        if self._eager is None:
            graphs = CudaGraphs(ranks.device)
            self._graphs = StepGraphs(self._body, self._forget, graphs, ranks.device, cuda_graph == "on")

    def __call__(self, batch: Any) -> None:
        with named("step"):
            self.count += 1
            self.optimizer.begin(self.count)
            self._run(batch)

    @property
    def mode(self) -> str:
        """Captured or eager, and why: for the log and the terminal."""
        return self._graphs.mode if self._graphs else f"eager: {self._eager}"

    def mode_change(self) -> str | None:
        """`mode` where it is another than at the last call: a later batch can change it."""
        before, self._mode_told = self._mode_told, self.mode
        return self.mode if self.mode != before else None

    def autocast(self) -> AbstractContextManager[object]:
        """The context that forward passes run in, also for evaluation."""
        dtype = AUTOCAST.get(self.precision)
        # A disabled one would still take 30 us a step to enter and leave.
        return torch.autocast(self.ranks.device.type, dtype=dtype) if dtype else nullcontext()

    def _run(self, batch: Any) -> None:
        (self._graphs or self._body)(batch)

    def _body(self, batch: Any) -> None:
        """What a graph captures: the same work at each step, on tensors that stay where they are."""
        if self.scaler:
            self.found_inf.copy_(self.held)
        with named("forward"), self.autocast():
            loss = self.loss(self.model, batch)
        with named("backward"):
            (loss * self.scaler.scale if self.scaler else loss).backward()
        with named("gradient exchange"):
            self._exchange()
        if self.scaler:
            with named("unscale"):
                self.scaler.unscale_(self.optimizer.gradients(), self.found_inf)
                reduce_max(self.ranks, self.found_inf)
        with named("optimizer"):
            self.optimizer.apply(self.found_inf)
            if self.scaler:
                self.scaler.update(self.found_inf)
        self._forget()
        self.loss_sum += loss.detach()

    def _exchange(self) -> None:
        """Each gradient becomes its mean over the ranks; an optimizer that shards its work takes its share of it."""
        exchange = getattr(self.optimizer, "exchange", None)
        if exchange:
            exchange(self.scaler.scale if self.scaler else None)
        else:
            average_gradients(self.ranks, self._parameters)

    def _forget(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def warm_up(self, batch: Any, steps: int = 3) -> None:
        """Runs the whole step on a made-up batch, so that compiling, allocating and capturing come before the clock.

        `found_inf` is held up meanwhile: every optimizer then skips its update, so no weight has to be saved and put
        back, however large. Buffers, the loss scaler and random generators are put back.
        """
        changed = [*self.model.buffers(), *(self.scaler.tensors() if self.scaler else ())]
        saved = [tensor.clone() for tensor in changed]
        generators = rng_state(self.ranks.device)
        self.held.fill_(1.0)
        self.found_inf.fill_(1.0)
        for _ in range(steps):  # eager, captured and replayed, replayed
            self.optimizer.begin(1)
            self._run(batch)
        for tensor in (self.held, self.found_inf, self.loss_sum):
            tensor.zero_()
        for tensor, value in zip(changed, saved, strict=True):
            tensor.copy_(value)
        set_rng_state(generators, self.ranks.device)

    def close(self) -> None:
        """Ends the step's use of the device. To be called before the process group ends."""
        if self._graphs:
            self._graphs.close()

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
