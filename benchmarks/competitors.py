"""Who is measured: each backend of an op, and other libraries' forms of it.

    candidates = backends("sgd", device, torch.float32, lambda name: ours(grads, name))
    candidates["torch compile"] = compiled(chosen, lambda: compiled_form(grads))
    candidates["apex"] = library("apex", device, lambda: apex(grads))

Each function given builds what it needs and returns the call to time, `call(number)` on the input set of that number.
It is called only where the competitor is there; what is absent becomes a text: why, and how to get it.
"""

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec

import torch

from mlperf_fast import system
from mlperf_fast.ops import backend as ops_backend

from .measure import ABSENT, Candidate, Local, failure

# Libraries with forms of MLPerf's ops, as system.PACKAGES knows them.
LIBRARIES = (
    "apex", "fbgemm", "flash-attn", "torchvision", "torchaudio", "scikit-learn", "transformers", "open_spiel",
    "pgx",
)  # fmt: skip
MOST_COMPILED = 500  # tensors: 200 of plain SGD took 42 s on two busy cores
CUDA_ONLY = ("apex", "flash-attn")


def backends(
    op: str, device: torch.device, dtype: torch.dtype, build: Callable[[str], Callable[[int], object]]
) -> dict[str, Candidate | str]:
    """A candidate for each line of the op's table that runs here, best first. `build(name)` gives the call to time."""
    candidates: dict[str, Candidate | str] = {}
    for name, applies in ops_backend.OPS[op].table.items():
        why = ops_backend.reasons()[name]
        if why is None and not applies.fits(device.type, dtype):
            why = f"it takes no {str(dtype).removeprefix('torch.')} tensors on {device.type}"
        candidates[name] = _candidate(why, lambda n=name: build(n))  # type: ignore[misc]
    return candidates


def best(op: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """The backend that a call takes by itself: the column that ratios refer to."""
    return ops_backend.chosen(op, device.type, dtype)


def compiled(chosen, build: Callable[[], Callable[[int], object]]) -> Candidate | str:
    """torch.compile's form, or why there is none. `build()` is called only where it can run."""
    why = compile_absence(chosen)
    if why is None:
        # Each case is compiled for its own sizes; by default the second would be compiled for any.
        torch._dynamo.config.automatic_dynamic_shapes = False
    return _candidate(why, build)


def compiled_lists(chosen, tensors: int, build: Callable[[], Callable[[int], object]]) -> Candidate | str:
    """As `compiled`, for an update of many tensors."""
    if tensors > MOST_COMPILED:
        return f"{ABSENT}it compiles code for each tensor, {tensors:,} of them for many minutes"
    return compiled(chosen, build)


def compile_absence(chosen) -> str | None:
    if chosen.no_compile:
        return "--no-compile was given"
    if chosen.quick:
        return "compiling takes a minute, --quick leaves it out"
    if chosen.device.type == "cuda":
        return None if find_spec("triton") else "needs triton: pip install triton"
    compiler = os.environ.get("CXX", "g++").split()[0]
    return None if shutil.which(compiler) else f"needs a C++ compiler, and {compiler} is not on PATH: apt install g++"


def library(name: str, device: torch.device, build: Callable[[], Callable[[int], object]]) -> Candidate | str:
    """Another library's form, or why there is none. `build()` imports it, and is called only where it is."""
    return _candidate(library_absence(name, device), build)


def library_absence(name: str, device: torch.device) -> str | None:
    found = system.package(*system.PACKAGES[name])
    if found.startswith("absent: "):
        return found.removeprefix("absent: ")
    if name in CUDA_ONLY and device.type != "cuda":
        return f"{name} {found} is here, but its kernels are for CUDA and this measures the {device.type}"
    return None


def _candidate(why_absent: str | None, build: Callable[[], Callable[[int], object]]) -> Candidate | str:
    if why_absent:
        return ABSENT + why_absent
    try:
        return Local(build())
    except Exception as error:  # one that can't be set up must not end the others
        return failure(error)


def libraries() -> dict[str, str]:
    """Each library's version, or `absent: ` and how to get it."""
    return {name: system.package(*system.PACKAGES[name]) for name in LIBRARIES}
