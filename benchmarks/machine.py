"""What a result's header says about the machine and the software, enough to repeat the run."""

import os
import platform
import re
import time
from datetime import date
from functools import cache
from pathlib import Path

import torch

import mlperf_fast
from mlperf_fast import _C
from mlperf_fast.system import environment

BUSY_CORES = 0.1  # taken by others on average, from which on the header calls the machine busy


_environment = cache(environment)  # it asks compilers for their versions


def header(device: torch.device) -> dict[str, str]:
    """{item: text}. To be taken before the first measurement: the load average is that of others, then."""
    found = _environment()
    return {
        "device": device.type,
        **(_gpu(device, found) if device.type == "cuda" else {}),
        "processor": found["machine"]["processor"],
        "cores": found["machine"]["cores"],
        "instruction set": f"{_C.level}, chosen at run time",
        "last-level cache": f"{_cpu_cache_bytes() / 2**20:.0f} MiB",
        "memory": found["machine"]["memory"],
        "huge pages": found["machine"]["huge pages"],
        "threads": str(torch.get_num_threads()),
        "allocator": "glibc, thresholds raised for every competitor" if _C.memory_is_tuned else "left as it is",
        "waiting threads": f"GOMP_SPINCOUNT={os.environ.get('GOMP_SPINCOUNT', 'unset')}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "mlperf_fast": mlperf_fast.__version__,
        "date": date.today().isoformat(),
        "load average before": f"{os.getloadavg()[0]:.2f}",
    }


def _gpu(device: torch.device, found: dict[str, dict[str, str]]) -> dict[str, str]:
    facts = torch.cuda.get_device_properties(device)
    return {
        "GPU": facts.name,
        "compute capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": str(facts.multi_processor_count),
        "GPU memory": f"{facts.total_memory / 2**30:.0f} GiB",
        "level-2 cache": f"{facts.L2_cache_size / 2**20:.0f} MiB",
        "CUDA": str(torch.version.cuda),
        "triton": found["packages"]["triton"],
    }


def usage() -> tuple[float, float, float]:
    """Now, in seconds: the clock, what all of the machine's cores have worked, and what this process and its ended
    children have."""
    own = sum(os.times()[:4])
    try:
        # user nice system idle iowait irq softirq steal, in ticks: all but idle and iowait are lost to others
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return time.perf_counter(), own, own  # no such file: others can't be seen
    busy = sum(ticks) - ticks[3] - ticks[4]
    return time.perf_counter(), busy / os.sysconf("SC_CLK_TCK"), own


def others(before: tuple[float, float, float]) -> str:
    """Cores that other processes took on average since `before` = usage(). Competitors' processes must have ended."""
    clock, machine, own = (after - start for after, start in zip(usage(), before, strict=True))
    cores = max(0.0, machine - own) / clock
    return f"{cores:.2f} cores on average" + (" (busy: treat the figures as rough)" if cores > BUSY_CORES else "")


def name(device: torch.device) -> str:
    """A folder name for this machine's results: intel-xeon-processor-2-cores-avx512, nvidia-h100-80gb-hbm3."""
    if device.type == "cuda":
        return _slug(torch.cuda.get_device_name(device))
    words = re.sub(r"\((r|tm)\)|@.*|cpu", "", _environment()["machine"]["processor"].lower())
    return _slug(f"{words} {len(os.sched_getaffinity(0))} cores {_C.level}")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def cache_bytes(device: torch.device) -> int:
    """Size of the largest cache before the device's memory."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else _cpu_cache_bytes()


def _cpu_cache_bytes() -> int:
    """Of the largest cache that core 0 sees; 32 MiB where the system doesn't tell."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        number, unit = re.fullmatch(r"(\d+)([KMG]?)", path.read_text().strip()).groups()  # type: ignore[union-attr]
        sizes.append(int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit])
    return max(sizes, default=32 << 20)
