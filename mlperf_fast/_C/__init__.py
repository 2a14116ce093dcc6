"""The native CPU functions, from the module compiled for the best instruction set that this processor runs.

Every function takes raw addresses and sizes (see csrc/*.h); shapes, dtypes and devices are checked in `ops/`.
torch is imported first so that both share torch's OpenMP runtime, and `torch.set_num_threads` rules both.
"""

import importlib
import importlib.util
import os
from types import ModuleType
from typing import Any

import torch  # noqa: F401

LEVELS = ("avx512", "avx2", "generic")  # best first


def load(level: str) -> ModuleType:
    """The module compiled for one instruction set; ImportError where the build doesn't hold it."""
    return importlib.import_module(f"mlperf_fast._C.{level}")


def supported_levels() -> list[str]:
    """The instruction sets that were built and that this processor runs, best first."""
    return [level for level in LEVELS if level in _runs]


def _probe() -> set[str]:
    try:
        generic = load("generic")
    except ImportError as error:
        raise ImportError(
            f"mlperf_fast's native extension is missing ({error}). Build it: `pip install -e .` in a checkout "
            "(needs g++ 10 or newer), or install the package again"
        ) from error
    return {level for level in generic.cpu_levels() if importlib.util.find_spec(f"{__name__}.{level}")}


_runs = _probe()
level = supported_levels()[0]
_best = load(level)


def __getattr__(name: str) -> Any:
    """For a name that the build doesn't hold; also tells type checkers that the native functions come at run time."""
    raise AttributeError(f"mlperf_fast._C has no {name!r}: the build is older than the sources; build it again")


globals().update({name: value for name, value in vars(_best).items() if not name.startswith("_")})

# Freed memory is kept rather than given back: a fresh large tensor otherwise pays a page fault per 4 KiB.
# MLPERF_FAST_MALLOC=0 leaves the allocator as it is.
memory_is_tuned = os.environ.get("MLPERF_FAST_MALLOC", "1") != "0" and _best.tune_malloc()
