"""A small training step of every landed workload, with made-up data: for tests that hold for all of them."""

from pathlib import Path
from typing import Any

import small_bert
import small_dlrm
import small_minigo
import small_resnet
import torch

from mlperf_fast.config import from_preset
from mlperf_fast.loop.dist import Ranks
from mlperf_fast.loop.step import TrainStep
from mlperf_fast.suite import BENCHMARKS
from mlperf_fast.workloads import find, has_trainer

WORKLOADS = [name for name in BENCHMARKS if has_trainer(name)]
PRECISIONS = ("fp32", "bf16", "fp16")
ALONE = Ranks(0, 1, torch.device("cpu"))


def small_dlrm_settings(folder: Path) -> list[str]:
    return small_dlrm.settings(small_dlrm.write(folder / "dlrm", train=200, test=50))


def small_bert_settings(folder: Path) -> list[str]:
    return small_bert.settings(small_bert.write(folder / "bert"))


def small_resnet_settings(folder: Path) -> list[str]:
    return small_resnet.settings(small_resnet.write(folder / "resnet"))


def small_minigo_settings(folder: Path) -> list[str]:
    return small_minigo.settings()


# What makes a workload's demo small enough for a test: `--set` arguments, after writing what data they need.
SMALL = {
    "bert": small_bert_settings,
    "dlrm": small_dlrm_settings,
    "minigo": small_minigo_settings,
    "resnet": small_resnet_settings,
}


def small_config(name: str, folder: Path, *settings: str) -> Any:
    """The demo's configuration, small, with `key=value` settings on top."""
    assert name in SMALL, f"{name} has landed: give it a small configuration in tests/steps.py"
    sets = [part for part in SMALL[name](folder) if part != "--set"]
    return from_preset(find(name).presets["demo"], "demo", [*sets, *settings])[0]


def make_step(name: str, cfg: Any, ranks: Ranks = ALONE, **options: Any) -> tuple[TrainStep, Any]:
    """(step, batch) of a workload: freshly initialised, not warmed up, and a made-up batch."""
    w = find(name)
    model = w.model(cfg, ranks, 1)
    step = TrainStep(w.loss, model, w.optimizer(cfg, model), ranks, cfg.precision, **options)
    return step, w.synthetic(cfg, ranks)
