"""The evaluations of a run: between two steps or, with `eval_async`, beside the training that goes on.

    evaluations.begin(epoch)         of the weights as they are now
    evaluations.known(step.count)    after each step: is the result there, for every rank?
    evaluations.settle(...)          waits for it where it isn't, logs it, and says whether the target is `reached`

Beside the training a thread evaluates a copy of the model, on a GPU on a stream of its own. Results of several ranks
come together in a process group that no other thread uses: two threads that meet in one group would wait for ever.
"""

import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from mlperf_fast import suite
from mlperf_fast.config import RunConfig
from mlperf_fast.errors import UserError
from mlperf_fast.loop.clock import Clock
from mlperf_fast.loop.dist import apart, reduce_max
from mlperf_fast.loop.step import TrainStep, rng_state, set_rng_state
from mlperf_fast.loop.terminal import Terminal, counted, number
from mlperf_fast.profiling.ranges import named
from mlperf_fast.workloads.base import Workload


def require_evaluation(w: Workload, cfg: RunConfig) -> None:
    """UserError for evaluations beside the training of a workload that can't."""
    if cfg.eval_async and not w.evaluates_apart:
        raise UserError(f"eval_async=true, but {w.name} is evaluated between two steps only: leave it at false")


class Evaluations:
    """`curve` holds (epoch_num, quality) of those that are over; `reached` says whether one met the target."""

    def __init__(self, w: Workload, cfg: RunConfig, step: TrainStep, seed: int, log: Any) -> None:
        self.w, self.cfg, self.step, self.log = w, cfg, step, log
        self.curve: list[tuple[float, float]] = []
        self.reached = False
        self._epoch: float | None = None  # of the one under way
        self._beside = Beside(w, cfg, step, seed) if cfg.eval_async else None

    def begin(self, epoch: float) -> None:
        self.log.start("eval_start", metadata={"epoch_num": epoch})
        self._epoch = epoch
        if self._beside:
            self._beside.begin()

    def known(self, count: int) -> bool:
        """Whether one is under way whose result is to be taken after step `count`: the same answer on every rank."""
        return self._epoch is not None and (self._beside is None or self._beside.known(count))

    def settle(self, clock: Clock, terminal: Terminal) -> None:
        """Ends the one under way, if there is one, and logs it as the rules ask. Raises what went wrong in it."""
        if self._epoch is None:
            return
        epoch, self._epoch = self._epoch, None
        with clock.evaluation():
            quality = self._beside.result() if self._beside else self._between()
        self.log.event("eval_accuracy", quality, metadata={"epoch_num": epoch})
        self.log.end("eval_stop", metadata={"epoch_num": epoch})
        self.curve.append((epoch, quality))
        bench, target = suite.BENCHMARKS[self.w.name], self.cfg.target
        metric = next(iter(bench.target))
        self.reached = bench.reached(quality, {metric: target})
        terminal.say(f"{counted(self.w.name)} {number(epoch)}  {metric} {quality:.4f}  (target {target})")

    def close(self) -> None:
        if self._beside:
            self._beside.close()

    def _between(self) -> float:
        step = self.step
        step.model.eval()
        with named("evaluate"), step.autocast():
            quality = self.w.evaluate(self.cfg, step.ranks, step.model)
        step.model.train()
        return quality


class Beside:
    """A thread that evaluates copies of `step`'s model. The copy's memory is there before the clock starts.

    All ranks must act on a result after the same step, but their threads end while they are at different ones. So the
    threads agree on the latest step that any of their ranks has let begin; no rank lets another begin meanwhile.
    """

    def __init__(self, w: Workload, cfg: RunConfig, step: TrainStep, seed: int) -> None:
        self.w, self.cfg, self.step = w, cfg, step
        self.ranks = apart(step.ranks)
        generators = rng_state(self.ranks.device)  # the copy takes nothing from those that the training draws from
        self.model = w.model(cfg, step.ranks, seed).eval()
        set_rng_state(generators, self.ranks.device)
        self.model.register_forward_pre_hook(self._unless_closed)
        self._stream = torch.cuda.Stream(self.ranks.device) if self.ranks.device.type == "cuda" else None
        self._threads = torch.get_num_threads()
        self._executor = ThreadPoolExecutor(1, "evaluation")
        self._future: Future[float] | None = None
        self._lock = threading.Lock()
        self._begun = 0  # the latest step that this rank let begin
        self._known_at: int | None = None  # after which all ranks act on the result
        self._closed = False

    def begin(self) -> None:
        """Copies the model as it is now, in the order of the device's work, and evaluates that."""
        with torch.no_grad():
            torch._foreach_copy_(tensors(self.model), tensors(self.step.model))
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream(self.ranks.device))
        self._begun, self._known_at = self.step.count + 1, None
        self._future = self._executor.submit(self._evaluate)

    def _evaluate(self) -> float:
        """Runs in the thread."""
        torch.set_num_threads(self._threads)  # OpenMP keeps the number for each thread that calls
        with torch.cuda.stream(self._stream), named("evaluate"), self.step.autocast():
            quality = self.w.evaluate(self.cfg, self.ranks, self.model)
            self.w.check(self.model)
        with self._lock:
            latest = torch.tensor(self._begun)
            reduce_max(self.ranks, latest)
            self._known_at = int(latest)
        return quality

    def known(self, count: int) -> bool:
        with self._lock:
            if self._known_at is not None and count >= self._known_at:
                return True
            self._begun = count + 1
        # Nobody waits for a rank that failed: it says so at once.
        return self._future is not None and self._future.done() and self._future.exception() is not None

    def result(self) -> float:
        assert self._future is not None
        return self._future.result()

    def close(self) -> None:
        """Ends the thread. Alone it stops at the next batch; of several ranks none may leave the others waiting."""
        self._closed = self.ranks.world == 1
        self._executor.shutdown()

    def _unless_closed(self, *_: object) -> None:
        if self._closed:
            raise CancelledError


def tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
