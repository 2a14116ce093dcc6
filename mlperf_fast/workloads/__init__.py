"""One folder a benchmark: workload.py, presets.py, model.py, data.py. Finding them imports nothing heavy."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mlperf_fast.config import nearest
from mlperf_fast.errors import UserError
from mlperf_fast.suite import BENCHMARKS

if TYPE_CHECKING:
    from mlperf_fast.config import RunConfig
    from mlperf_fast.workloads.base import Workload


def find(name: str) -> "Workload":
    """The workload called `name`; UserError for a benchmark that doesn't exist or has no trainer in this version."""
    require(name)
    return importlib.import_module(f"mlperf_fast.workloads.{name}.workload").WORKLOAD


def require(name: str) -> None:
    """UserError for a benchmark that doesn't exist or has no trainer in this version."""
    if name not in BENCHMARKS:
        raise UserError(f"there is no benchmark {name!r}{nearest(name, BENCHMARKS)}")
    if not has_trainer(name):
        landed = ", ".join(benchmark for benchmark in BENCHMARKS if has_trainer(benchmark))
        raise UserError(f"{name} can't be trained by this version yet; it trains: {landed} (see `mlperf-fast list`)")


def has_trainer(name: str) -> bool:
    """Whether this version has a `workload.py` for the benchmark."""
    return (Path(__file__).parent / name / "workload.py").is_file()


def presets(name: str) -> "dict[str, Callable[[], RunConfig]]":
    """The presets of a workload that has a trainer, by name; imports no torch."""
    return importlib.import_module(f"mlperf_fast.workloads.{name}.presets").PRESETS


def preset_names(name: str) -> list[str]:
    return list(presets(name))
