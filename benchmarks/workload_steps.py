"""The training step of every workload that can be trained, on a made-up batch: eager, in mixed precision, captured.

    python -m benchmarks.workload_steps            every workload's demo preset
    python -m benchmarks.workload_steps --device cuda --preset dgxa100_1x8

fp32, bf16, fp16      the whole step, forward to update, in that precision
... captured          the same, replayed as one CUDA graph: on a GPU only
What the run itself would do at init is done before: warm-up, capture. The data is the workload's `synthetic` batch, so
what loading costs isn't in here; `mlperf-fast profile` shows that.
"""

import argparse
import dataclasses
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator

from mlperf_fast.errors import UserError
from mlperf_fast.loop.dist import Ranks
from mlperf_fast.loop.step import TrainStep
from mlperf_fast.suite import BENCHMARKS
from mlperf_fast.workloads import find, has_trainer, preset_names
from mlperf_fast.workloads.base import Workload

from . import command, options
from .measure import Candidate, Local, Row, compare

PRECISIONS = ("fp32", "bf16", "fp16")


def measure(chosen: Namespace) -> Iterator[Row]:
    for name in (name for name in BENCHMARKS if has_trainer(name)):
        if chosen.preset not in preset_names(name):
            continue
        w = find(name)
        cfg = w.presets[chosen.preset]()
        if chosen.quick:
            cfg = dataclasses.replace(cfg, batch_size=8)
        w.ensure_data(cfg, print)
        candidates: dict[str, Candidate | str] = {}
        for precision in PRECISIONS:
            candidates[precision] = Local(step(w, cfg, chosen, precision, "off"))
            if chosen.device.type == "cuda":
                candidates[f"{precision} captured"] = Local(step(w, cfg, chosen, precision, "on"))
        results = compare(candidates, command.effort(chosen))
        shape = f"{chosen.preset}: batch {cfg.batch_size}"
        yield Row(f"{name} step", shape, "all", chosen.threads, 0, 0, "gemm", results, "fp32")


def step(w: Workload, cfg, chosen: Namespace, precision: str, cuda_graph: str) -> Callable[[int], object]:
    """A step as the loop builds it. Each has a model of its own, so that none trains another's weights."""
    ranks = Ranks(0, 1, chosen.device)
    cfg = dataclasses.replace(cfg, precision=precision, device=chosen.device.type)
    model = w.model(cfg, ranks, 0)
    train = TrainStep(w.loss, model, w.optimizer(cfg, model), ranks, precision, cuda_graph)
    batch = w.synthetic(cfg, ranks)
    train.warm_up(batch)
    return lambda number: train(batch)


def run(chosen: Namespace) -> int:
    command.settle(chosen)
    if not any(chosen.preset in preset_names(name) for name in BENCHMARKS if has_trainer(name)):
        raise UserError(f"no workload has a preset {chosen.preset!r}")
    return command.measure_all(chosen, [("workload_steps", measure)])


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_to(parser)
    parser.add_argument("--preset", default="demo", help="of each workload that has it; default: demo")
    return parser


if __name__ == "__main__":
    sys.exit(command.guarded(run, arguments().parse_args()))
