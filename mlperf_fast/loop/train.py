"""The training loop, from initialisation to run_stop. Read top to bottom.

The clock's rules (MLPerf Training v2.0): initialisation and warm-up on made-up data come before `run_start`; nothing
touches training or evaluation data before it; the clock never pauses after it.
"""

import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from mlperf_fast import suite
from mlperf_fast.config import RunConfig
from mlperf_fast.errors import UserError
from mlperf_fast.loop import checkpoint
from mlperf_fast.loop.clock import Clock
from mlperf_fast.loop.dist import Ranks, barrier
from mlperf_fast.loop.evaluation import Evaluations
from mlperf_fast.loop.step import TrainStep
from mlperf_fast.loop.terminal import Outcome, Terminal
from mlperf_fast.ops.backend import choices
from mlperf_fast.profiling.window import Window
from mlperf_fast.submission.runlog import tracked_stats
from mlperf_fast.workloads.base import Progress, Workload


def train(
    w: Workload,
    cfg: RunConfig,
    ranks: Ranks,
    log: Any,
    folder: Path,
    seed: int,
    preset: str,
    resume: bool,
    window: Window | None = None,
) -> Outcome:
    """Trains until an evaluation reaches the target or the steps are used up; every rank returns the same outcome.

    `log` is a RunLog (rank 0) or NullLog, already holding the submission's lines. With `resume` the newest checkpoint
    in `folder` is loaded first and the log goes on where that checkpoint was written. A `window` is what a profiler
    watches: training ends with it.
    """
    bench = suite.BENCHMARKS[w.name]
    metric = next(iter(bench.target))
    progress = w.progress(cfg)
    started = time.perf_counter()
    step, evaluations = initialise(w, cfg, ranks, progress, log, folder, seed, resume)
    init_seconds = time.perf_counter() - started
    barrier(ranks)
    if not resume:
        log.start("run_start")

    terminal = Terminal(ranks.is_first, progress.max_steps)
    tell_mode(step, log, terminal)
    clock = Clock()
    finished = False
    first_step = step.count
    try:
        if not resume:
            log.start("block_start", metadata=progress.block(step.count))
        with w.train_batches(cfg, ranks, seed, step.count) as batches:
            if window:
                window.after(step.count)
            for batch in clock.timed(batches):
                step(batch)
                evaluating = progress.eval_due(step.count)
                saving = cfg.checkpoint_every and step.count % cfg.checkpoint_every == 0
                if evaluating or step.count % cfg.log_every == 0:
                    report(w, cfg, step, progress, clock, log, terminal)
                if evaluating or saving or evaluations.known(step.count):
                    evaluations.settle(clock, terminal)  # one that began at an earlier step
                if evaluating or evaluations.reached:
                    log.end("block_stop", metadata=progress.block(step.count - 1))
                if evaluating and not evaluations.reached:
                    evaluations.begin(progress.epoch_num(step.count))
                    # Nothing may be under way in a checkpoint, nor at the end.
                    if not cfg.eval_async or saving or step.count >= progress.max_steps:
                        evaluations.settle(clock, terminal)
                finished = evaluations.reached or step.count >= progress.max_steps
                if (window and window.after(step.count)) or finished:
                    finished = True
                    break
                if evaluating:
                    log.start("block_start", metadata=progress.block(step.count))
                if saving:
                    log.sync()
                    notes = {"log_offset": log.offset, "curve": evaluations.curve, "seed": seed}
                    checkpoint.save(folder / "checkpoints", step, ranks, notes)
        if not finished:
            raise UserError(f"the data ended at step {step.count}, but the run needs {progress.max_steps} steps")
    except BaseException:
        with suppress(UserError):  # when the log itself is what failed
            log.end("run_stop", metadata={"status": "aborted"})
        raise
    finally:
        terminal.close()
        evaluations.close()
        step.close()
    if progress.train_samples is None:
        log.event("train_samples", step.count * cfg.batch_size)
    log.end("run_stop", metadata={"status": "success" if evaluations.reached else "aborted"})
    curve = evaluations.curve
    return Outcome(
        benchmark=w.name, preset=preset, metric=metric, target=cfg.target, higher_is_better=bench.higher_is_better,
        reached=evaluations.reached, quality=curve[-1][1] if curve else math.nan, steps=step.count,
        samples=step.count * cfg.batch_size, run_seconds=clock.elapsed, init_seconds=init_seconds,
        data_wait_share=clock.data_wait_share,
        samples_per_second=(step.count - first_step) * cfg.batch_size / max(clock.training, 1e-9),
        backends=choices(ranks.device.type), step_mode=step.mode, result=str(getattr(log, "path", "")), seed=seed,
        curve=curve,
    )  # fmt: skip


def initialise(
    w: Workload, cfg: RunConfig, ranks: Ranks, progress: Progress, log: Any, folder: Path, seed: int, resume: bool
) -> tuple[TrainStep, Evaluations]:
    """What comes before the clock: the step with its model and optimizer, warmed up, and the evaluations so far."""
    torch.manual_seed(seed)
    if not resume:
        log.start("init_start")
    model = w.model(cfg, ranks, seed)
    step = TrainStep(w.loss, model, w.optimizer(cfg, model), ranks, cfg.precision, cfg.cuda_graph)
    step.warm_up(w.synthetic(cfg, ranks))
    evaluations = Evaluations(w, cfg, step, seed, log)
    if resume:
        checkpoint.load(folder / "checkpoints", step, ranks)
        curve = checkpoint.latest(folder / "checkpoints")["curve"]
        evaluations.curve = [(epoch, quality) for epoch, quality in curve]
        return step, evaluations
    log_initialisation(w, cfg, ranks, progress, log)
    log.end("init_stop")
    return step, evaluations


def log_initialisation(w: Workload, cfg: RunConfig, ranks: Ranks, progress: Progress, log: Any) -> None:
    """Writes what the rules ask for before `init_stop`: hyperparameters, set sizes, names of initialised tensors."""
    log.event("global_batch_size", cfg.batch_size)
    log.event("gradient_accumulation_steps", 1)
    for key, value in w.hyperparameters(cfg, ranks).items():
        log.event(key, value)
    if progress.train_samples is not None:
        log.event("train_samples", progress.train_samples)
    log.event("eval_samples", progress.eval_samples)
    for name in suite.BENCHMARKS[w.name].weight_names():
        log.event("weights_initialization", metadata={"tensor": name})
    # No official keys: what counts as converged, and which code computed, so that the log alone tells.
    log.event("target", cfg.target)
    log.event("op_backends", choices(ranks.device.type))


def tell_mode(step: TrainStep, log: Any, terminal: Terminal) -> None:
    """Shows and logs whether the step runs as a CUDA graph, and why not; once, and again when a batch changed that."""
    change = step.mode_change()
    if change:
        log.event("step_mode", change)
        terminal.say(f"step: {change}")


def report(
    w: Workload, cfg: RunConfig, step: TrainStep, progress: Progress, clock: Clock, log: Any, terminal: Terminal
) -> None:
    """Fetches the loss from the device, checks it, and shows and logs where the run stands."""
    w.check(step.model)
    loss, steps = step.read_loss()
    if not math.isfinite(loss):
        raise UserError(
            f"the loss became {loss} by step {step.count}: training can't go on. Lower the learning rate, lengthen the "
            "warm-up, or look for NaN in the data; the last checkpoint, if any, is intact"
        )
    tell_mode(step, log, terminal)
    samples, seconds = steps * cfg.batch_size, clock.lap()
    tracked_stats(
        log, step=progress.epoch_num(step.count), samples=samples, seconds=seconds,
        loss=loss, train_step=step.count, data_wait_share=clock.data_wait_share,
    )  # fmt: skip
    terminal.step(step.count, loss, step.optimizer.schedule(step.count), samples / seconds, clock.data_wait_share)
