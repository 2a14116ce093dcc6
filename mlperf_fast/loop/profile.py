"""A few steps of a run under a profiler: the same loop on the same data, but no result log."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mlperf_fast.config import RunConfig, to_json
from mlperf_fast.errors import UserError
from mlperf_fast.loop.dist import Ranks, barrier
from mlperf_fast.loop.evaluation import require_evaluation
from mlperf_fast.loop.run import folder_lock, on_first, started
from mlperf_fast.loop.terminal import Outcome
from mlperf_fast.loop.train import train
from mlperf_fast.profiling import summary
from mlperf_fast.profiling.window import CudaRange, TorchTrace, Window
from mlperf_fast.submission.runlog import NullLog
from mlperf_fast.workloads.base import Workload


def profile(
    w: Workload, cfg: RunConfig, preset: str, steps: tuple[int, int], tool: str, out: Path, say: Callable[[str], None]
) -> None:
    """Trains `w` from the start to step steps[1] and watches from steps[0] on.

    tool "torch" writes a Chrome trace a process and summary.json into the folder `out`, and shows the summary; "range"
    marks the steps for an Nsight profiler around this process. UserError for steps that the run doesn't have.
    """
    first, last = steps
    cfg = replace(cfg, checkpoint_every=0)
    with started(cfg) as ranks:
        require_evaluation(w, cfg)
        on_first(ranks, lambda: w.ensure_data(cfg, say))
        most = w.progress(cfg).max_steps
        if w.train is None and last > most:  # a loop of its own may not know its steps ahead
            raise UserError(f"--steps {first}:{last}: this run has only {most} steps")
        on_first(ranks, lambda: refuse_a_run(out))
        with folder_lock(ranks, out):
            watched = TorchTrace(ranks.device) if tool == "torch" else CudaRange(ranks.device)
            with closing(Window(first, last, watched)) as window:
                outcome = (w.train or train)(w, cfg, ranks, NullLog(), out, cfg.seed or 1, preset, False, window)
            if not window.complete:
                raise UserError(f"--steps {first}:{last}: the run reached its target at step {outcome.steps}; choose "
                                "earlier steps, or set another target")  # fmt: skip
            if isinstance(watched, TorchTrace):
                trace = out / f"trace-rank-{ranks.rank}.json.gz"
                watched.export(trace)
                if ranks.is_first:
                    found = facts(w, cfg, outcome, steps, ranks, trace) | summary.read(trace, last - first + 1)
                    refuse_no_kernels(found)
                    (out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
                    say(summary.table(found))
            barrier(ranks)


def refuse_a_run(out: Path) -> None:
    if (out / "result_0.txt").exists():
        raise UserError(f"{out} holds a run; a profile wants a folder of its own: choose another --out")


def refuse_no_kernels(found: dict[str, Any]) -> None:
    if found["device"] != "CPU" and found["follows"] == "host":
        raise UserError(
            f"{found['trace']} holds no kernel: torch's profiler got none from CUPTI. Is another profiler attached? Is "
            "the CUPTI of torch's CUDA version installed?"
        )


def facts(
    w: Workload, cfg: RunConfig, outcome: Outcome, steps: tuple[int, int], ranks: Ranks, trace: Path
) -> dict[str, Any]:
    """What was profiled, so that two profiles can be compared."""
    device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "CPU"
    return {
        "workload": w.name,
        "preset": outcome.preset,
        "first": steps[0],
        "last": steps[1],
        "processes": ranks.world,
        "device": device,
        "torch": torch.__version__,
        "step_mode": outcome.step_mode,
        "backends": outcome.backends,
        "trace": str(trace),
        "config": to_json(cfg),
    }
