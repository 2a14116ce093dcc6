"""What a result's header says about the machine and the software, enough to repeat the run."""

import os
import platform
import re
from datetime import date
from pathlib import Path

import torch

import mlperf_fast
from mlperf_fast import _C
from mlperf_fast.system import environment

BUSY = 0.3  # load average a core, before a run begins, from which on the header calls the machine busy


def header() -> dict[str, str]:
    """{item: text}. To be taken before the first measurement: the load average is that of others, then."""
    found = environment()
    load = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0))
    busy = "busy: others were running, treat the figures as rough" if load > BUSY * cores else "quiet"
    return {
        "processor": found["machine"]["processor"],
        "cores": found["machine"]["cores"],
        "instruction set": f"{_C.level}, chosen at run time",
        "last-level cache": f"{cache_bytes() / 2**20:.0f} MiB",
        "memory": found["machine"]["memory"],
        "huge pages": found["machine"]["huge pages"],
        "threads": str(torch.get_num_threads()),
        "allocator": "glibc, thresholds raised for every competitor" if _C.memory_is_tuned else "left as it is",
        "waiting threads": os.environ.get("OMP_WAIT_POLICY", "as OpenMP comes").lower(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "mlperf_fast": mlperf_fast.__version__,
        "date": date.today().isoformat(),
        "load before": f"{load:.2f} ({busy})",
    }


def name() -> str:
    """A folder name for this machine's results, such as intel-xeon-processor-2-cores-avx512."""
    found = environment()["machine"]["processor"]
    words = re.sub(r"\((r|tm)\)|@.*|cpu", "", found.lower())
    return re.sub(r"[^a-z0-9]+", "-", f"{words} {len(os.sched_getaffinity(0))} cores {_C.level}").strip("-")


def cache_bytes() -> int:
    """Size of the largest cache that core 0 sees; 32 MiB where the system doesn't tell."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        number, unit = re.fullmatch(r"(\d+)([KMG]?)", path.read_text().strip()).groups()  # type: ignore[union-attr]
        sizes.append(int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit])
    return max(sizes, default=32 << 20)
