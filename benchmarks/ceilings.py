"""What this machine can do at best, measured: the denominators of the `% of limit` columns.

On a CPU
    triad     GB/s      a = b + s c on float32 arrays, each larger than most last-level caches; 12 bytes an element
    gather    GB/s      rows of 512 bytes read at random from a table of 1 GiB in huge pages by torch.index_select and
                        written in order; 1,024 bytes a row. A kernel that prefetches further can exceed 100 %
    gemm      GFLOP/s   C = A B, 2048 x 2048 x 2048, float32
    bf16-gemm GFLOP/s   the same in bfloat16
On a GPU
    copy      GB/s      a = b on 1 GiB of float32; 8 bytes an element
    gather    GB/s      as above
    gemm      GFLOP/s   C = A B, 8192 x 8192 x 8192, float32 throughout
    tf32-gemm GFLOP/s   the same, with inputs cut to tf32
    bf16-gemm GFLOP/s   the same in bfloat16
A CPU's is the best of several tries, since neighbours only ever take away. A GPU's is the median of tries of 10 ms or
more: for a few milliseconds its clock is higher than it can hold. Both are measured before and after the benchmark, and
the higher counts.
"""

import time
from collections.abc import Callable, Iterable
from statistics import median

import torch

from .measure import SAMPLE_SECONDS, Row, synchronize
from .peer import advise_huge_pages

SLOW_SECONDS = 2.0  # of one call

UNITS = {
    "triad": "GB/s",
    "copy": "GB/s",
    "gather": "GB/s",
    "gemm": "GFLOP/s",
    "tf32-gemm": "GFLOP/s",
    "bf16-gemm": "GFLOP/s",
}
NAMES = {
    "cpu": ("triad", "gather", "gemm", "bf16-gemm"),
    "cuda": ("copy", "gather", "gemm", "tf32-gemm", "bf16-gemm"),
}


def stream(device: torch.device) -> str:
    """The limit of an op that reads and writes in order."""
    return NAMES[device.type][0]


def measure(device: torch.device, names: Iterable[str] | None = None, *, quick: bool = False) -> dict[str, float]:
    """Name -> GB/s or GFLOP/s, of the device's limits or of those named; on a CPU with torch's number of threads."""
    wanted = NAMES[device.type] if names is None else [name for name in NAMES[device.type] if name in set(names)]
    return {name: _MEASURES[name](device, quick) for name in wanted}


def again(before: dict[str, float], rows: Iterable[Row], device: torch.device, *, quick: bool = False):
    """Those that the rows refer to, measured once more: the higher of the two."""
    after = measure(device, {row.ceiling for row in rows}, quick=quick)
    return {name: max(value, before[name]) for name, value in after.items()}


def _triad(device: torch.device, quick: bool) -> float:
    a, b, c = (torch.ones(1 << 20 if quick else 1 << 27, device=device) for _ in range(3))
    return _giga_per_second(12 * a.numel(), device, lambda: torch.add(b, c, alpha=0.5, out=a))


def _copy(device: torch.device, quick: bool) -> float:
    a, b = (torch.ones(1 << 20 if quick else 1 << 28, device=device) for _ in range(2))
    return _giga_per_second(8 * a.numel(), device, lambda: a.copy_(b))


def _gather(device: torch.device, quick: bool) -> float:
    rows, picks = (1 << 14, 1 << 12) if quick else (1 << 21, 1 << 18)
    table, out = torch.ones(rows, 128, device=device), torch.empty(picks, 128, device=device)
    if device.type == "cpu":
        for tensor in (table, out):
            advise_huge_pages(tensor.data_ptr(), tensor.nbytes)
    ids = [torch.randint(rows, (picks,), device=device) for _ in range(8)]
    calls = 0

    def call() -> None:
        nonlocal calls
        torch.index_select(table, 0, ids[calls % 8], out=out)
        calls += 1

    return _giga_per_second(1024 * picks, device, call, tries=16)


def _gemm(device: torch.device, quick: bool, dtype: torch.dtype = torch.float32, precision: str = "highest") -> float:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    best = 0.0
    try:
        for n in (256,) if quick else (8192,) if device.type == "cuda" else (256, 2048):
            if best and 2e-9 * n**3 / best > SLOW_SECONDS:
                break  # a processor without instructions for this type: a larger product would take minutes
            a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
            best = _giga_per_second(2 * n**3, device, lambda x=a, y=b: x @ y)
    finally:
        torch.set_float32_matmul_precision(before)
    return best


_MEASURES: dict[str, Callable[[torch.device, bool], float]] = {
    "triad": _triad,
    "copy": _copy,
    "gather": _gather,
    "gemm": _gemm,
    "tf32-gemm": lambda device, quick: _gemm(device, quick, precision="high"),
    "bf16-gemm": lambda device, quick: _gemm(device, quick, torch.bfloat16),
}


def _giga_per_second(work: int, device: torch.device, function: Callable[[], object], tries: int = 8) -> float:
    """`work` bytes or flops a call."""
    if device.type != "cuda":
        return work / min(_seconds(function, 1) for _ in range(tries)) / 1e9
    _seconds(function, 1)  # the first call sets up the library
    calls = max(1, round(SAMPLE_SECONDS / _seconds(function, 1)))
    return work / median(_seconds(function, calls) for _ in range(tries)) / 1e9


def _seconds(function: Callable[[], object], calls: int) -> float:
    """A call's, from an idle device until it is idle again."""
    synchronize()
    started = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize()
    return (time.perf_counter() - started) / calls
