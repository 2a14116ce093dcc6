"""What this machine can do at best, measured: the denominators of the `% of limit` columns.

    triad     GB/s      a = b + s c on float32 arrays, each larger than most last-level caches; 12 bytes an element
    gather    GB/s      rows of 512 bytes read at random from a table of 1 GiB in huge pages by torch.index_select and
                        written in order; 1,024 bytes a row. A kernel that prefetches further can exceed 100 %
    gemm      GFLOP/s   C = A B, 2048 x 2048 x 2048, float32
    bf16-gemm GFLOP/s   the same in bfloat16
Each is the best of several tries, before and after the benchmark: a limit is what the machine can do at best.
"""

import time
from collections.abc import Callable, Iterable

import torch

from .measure import Row
from .peer import advise_huge_pages

UNITS = {"triad": "GB/s", "gather": "GB/s", "gemm": "GFLOP/s", "bf16-gemm": "GFLOP/s"}


def measure(names: Iterable[str] = UNITS, *, quick: bool = False) -> dict[str, float]:
    """Name -> GB/s or GFLOP/s, with torch's present number of threads."""
    tries = {"triad": _triad, "gather": _gather, "gemm": _gemm, "bf16-gemm": lambda q: _gemm(q, torch.bfloat16)}
    return {name: tries[name](quick) for name in UNITS if name in set(names)}


def again(before: dict[str, float], rows: Iterable[Row], *, quick: bool = False) -> dict[str, float]:
    """Those that the rows refer to, measured once more: the higher of the two."""
    after = measure({row.ceiling for row in rows}, quick=quick)
    return {name: max(value, before[name]) for name, value in after.items()}


def _triad(quick: bool) -> float:
    elements = 1 << 20 if quick else 1 << 27
    a, b, c = (torch.ones(elements) for _ in range(3))
    return 12 * elements / _fastest(lambda: torch.add(b, c, alpha=0.5, out=a), 8) / 1e9


def _gather(quick: bool) -> float:
    rows, picks = (1 << 14, 1 << 12) if quick else (1 << 21, 1 << 18)
    table, out = torch.ones(rows, 128), torch.empty(picks, 128)
    for tensor in (table, out):
        advise_huge_pages(tensor.data_ptr(), tensor.nbytes)
    ids = [torch.randint(rows, (picks,)) for _ in range(8)]
    number = iter(range(1_000))
    return 1024 * picks / _fastest(lambda: torch.index_select(table, 0, ids[next(number) % 8], out=out), 16) / 1e9


def _gemm(quick: bool, dtype: torch.dtype = torch.float32) -> float:
    n = 256 if quick else 2048
    a, b = (torch.randn(n, n).to(dtype) for _ in range(2))
    return 2 * n**3 / _fastest(lambda: a @ b, 8) / 1e9


def _fastest(function: Callable[[], object], tries: int) -> float:
    times = []
    for _ in range(tries):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)
