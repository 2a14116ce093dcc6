"""What the loop asks of a workload: plain functions, and nothing else."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from mlperf_fast.loop.dist import Ranks


@dataclass(frozen=True)
class Progress:
    """When a run evaluates and ends, in steps counted from 1, and what the log calls that moment."""

    eval_every: int | Fraction  # steps between evaluations; not whole where the rules count samples
    max_steps: int  # the run is aborted when no evaluation up to here reached the target
    train_samples: int | None  # in the training set; None where the log holds what the run trained on
    eval_samples: int  # in the evaluation set
    epoch_num: Callable[[int], float]  # step -> what `epoch_num` must hold in the log (suite.py: epochs or samples)
    first_eval: int | Fraction | None = None  # steps before the first evaluation; None: as many as between two
    numbered: bool = False  # a block's first_epoch_num: its first epoch, from 1; else what was done when it began

    def eval_due(self, step: int) -> bool:
        return self.evaluations(step) > self.evaluations(step - 1) or step == self.max_steps

    def evaluations(self, step: int) -> int:
        """How many are due in the first `step` steps; one that only the run's end brings isn't."""
        first = self.eval_every if self.first_eval is None else self.first_eval
        return max(0, (step - first) // self.eval_every + 1)

    def evaluation(self, number: int) -> int:
        """The step of the evaluation `number`, from 1, at the latest the run's last; 0 for 0."""
        first = self.eval_every if self.first_eval is None else self.first_eval
        due = math.ceil(first + (number - 1) * self.eval_every) if number else 0
        return min(due, self.max_steps)

    def block(self, step: int) -> dict[str, float]:
        """The metadata of the block, a stretch of training between two evaluations, that follows or holds `step`."""
        number = self.evaluations(step)
        start, end = (self.epoch_num(self.evaluation(n)) for n in (number, number + 1))
        return {"first_epoch_num": start + self.numbered, "epoch_count": end - start}


@dataclass(frozen=True)
class Workload:
    """One benchmark. `cfg` is the workload's own subclass of RunConfig; `ranks` says which process this is.

    Nothing but `train_batches` and `evaluate` may open training or evaluation data: the loop calls them after
    `run_start` only. `progress` may read counts (meta data), which the rules don't call data.
    """

    name: str  # the folder's name, a key of suite.BENCHMARKS
    presets: dict[str, Callable[[], Any]]
    fixed_in_closed: tuple[str, ...]  # configuration keys, or groups, that a closed run must leave as in `closed`
    prepare: Callable[..., None]  # (cfg, raw, out, say): makes or converts the data set; see `mlperf-fast prepare`
    verify: Callable[..., None]  # (cfg, out, say): checks a prepared data set by content; UserError with what is wrong
    ensure_data: Callable[[Any, Callable[[str], None]], None]  # (cfg, say): UserError, or makes what a demo generates
    progress: Callable[[Any], Progress]
    model: Callable[[Any, Ranks, int], torch.nn.Module]  # (cfg, ranks, seed), on ranks.device, initialised
    loss: Callable[[Any, Any], torch.Tensor]  # (model, batch) -> 0-dim float32; no sync inside
    optimizer: Callable[[Any, Any], Any]  # (cfg, model); see optim/
    synthetic: Callable[[Any, Ranks], Any]  # a made-up batch with the shapes of real ones, for the warm-up
    train_batches: Callable[[Any, Ranks, int, int], AbstractContextManager[Iterable[Any]]]  # (cfg, ranks, seed, first)
    evaluate: Callable[[Any, Ranks, Any], float]  # (cfg, ranks, model): the quality metric, the same on every rank
    hyperparameters: Callable[[Any, Ranks], dict[str, Any]]  # (cfg, ranks): log key -> value
    check: Callable[[Any], None]  # (model), at log points: raises UserError for faults that the device recorded
    evaluates_apart: bool = False  # `evaluate` may run in another thread: it exchanges through its `ranks` alone
    train: Callable[..., Any] | None = None  # a loop of its own in place of loop.train.train, with its arguments
