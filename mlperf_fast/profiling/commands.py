"""The command lines of NVIDIA's profilers, which run the profiled command as a process of their own.

That process marks the steps with cudaProfilerStart and Stop and names its ranges by NVTX (window.CudaRange).
"""

import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch

from mlperf_fast.errors import UserError

HOW_TO_GET = {
    "nsys": "It is Nsight Systems: https://developer.nvidia.com/nsight-systems, in containers from nvcr.io, or the "
    "package cuda-nsight-systems of NVIDIA's repository",
    "ncu": "It is Nsight Compute: https://developer.nvidia.com/nsight-compute, in the CUDA toolkit, or the package "
    "cuda-nsight-compute of NVIDIA's repository; its counters need root or NVreg_RestrictProfilingToAdminUsers=0",
}


def nsys(profiled: list[str], out: Path) -> list[str]:
    """A timeline of the marked steps, with the kernels of CUDA graphs one by one, into `out`.nsys-rep."""
    return [
        "nsys", "profile",
        "-t", "cuda,nvtx,osrt,cudnn,cublas",
        "--cuda-graph-trace=node",
        "--capture-range=cudaProfilerApi", "--capture-range-end=stop",
        "--force-overwrite=true", f"--output={out}",
        *profiled,
    ]  # fmt: skip


def ncu(profiled: list[str], out: Path, named: str) -> list[str]:
    """Every counter of every kernel launched in ranges called `named` of the marked steps, into `out`.ncu-rep."""
    return [
        "ncu",
        "--profile-from-start", "off",
        "--graph-profiling", "node",
        "--nvtx", "--nvtx-include", f"{named}/",  # the slash says that it is a range of push and pop
        "--set", "full",
        "--force-overwrite", "--export", str(out),
        *profiled,
    ]  # fmt: skip


def execute(command: list[str], out: Path, say: Callable[[str], None]) -> None:
    """Shows a profiler's command and runs it, with its report in the folder `out`.

    UserError where the profiler isn't installed, where there is no GPU, and where it fails.
    """
    say(shlex.join(command))
    tool = command[0]
    if shutil.which(tool) is None:
        raise UserError(f"{tool} is not on PATH, so the command above was not run. {HOW_TO_GET[tool]}")
    if not torch.cuda.is_available():
        raise UserError(f"torch sees no CUDA device here, so the command above was not run: {tool} profiles GPUs. For "
                        "the host alone use --tool torch")  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    code = subprocess.run(command, check=False).returncode
    if code:
        raise UserError(f"{tool} ended with code {code}; its own messages are above")
    say(f"wrote {out}")
