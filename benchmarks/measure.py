"""The timing protocol, one for all benchmarks, and what a measured row holds.

- All competitors of a row are measured in one run, in rounds: each round takes one sample of each, in an order that is
  drawn anew, so that a busy minute or a change of clock hits all of them alike.
- Warm-up goes by time, not by count. A sample is as many calls as take about 10 ms, after as many that
  aren't timed: they wake the competitor's threads, which in a training run are never asleep for long. Just woken, two
  of them can share one core for milliseconds, which the column `cores` would show.
- On a GPU a sample begins and ends with a wait for the device: it holds launches and kernels as they overlap in a
  training step, where events around a small kernel would time the gaps. Its CPU time is the launching thread's, and
  that of waiting, which spins.
- Inputs rotate. A server's last-level cache can be too large to flush (260 MB on one machine used, shared with its
  neighbours), so instead each call takes the next of several input sets that together exceed twice that cache, and
  the competitors evict each other. Each has weights of its own. A GPU's level-2 cache is treated likewise.
- Figures are medians with the 20th and 80th percentile, in wall time and in process CPU time (all threads). Where
  OpenMP's waiting threads spin, that counts as CPU time; the default here is that they soon sleep (command.py).
  Before a competitor in another process runs, they are given time to fall asleep in any case.
- Everybody has the same allocator: importing mlperf_fast._C raises glibc's thresholds for this process, competitors
  included, and a competitor's own process does the same by `peer.tune_malloc`. Embedding tables get huge pages on
  both sides, and the number of threads is the same.
- Benchmarks measure and never assert.
"""

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from .peer import Peer, first_line, measure_calls

ABSENT, FAILED = "not run: ", "failed: "  # what a text in place of a timing begins with
SAMPLE_SECONDS = 0.01
FALL_ASLEEP = 0.03  # seconds until OpenMP's waiting threads stop spinning: about 14 ms measured for libgomp
FEWEST_ROUNDS, MOST_ROUNDS = 5, 200
FEWEST_WARM_UP = 3  # calls: memory is touched first in the warm-up, and a virtual machine may be slow to provide it


@dataclass(frozen=True)
class Effort:
    """Seconds that one row may take over all competitors, the warm-up of each, and the least that a sample takes."""

    seconds: float
    warm_up: float
    sample: float = SAMPLE_SECONDS
    fewest_rounds: int = FEWEST_ROUNDS


FULL = Effort(seconds=6.0, warm_up=0.5)
QUICK = Effort(seconds=0.05, warm_up=0.001, sample=0.001, fewest_rounds=3)


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call: median, 20th and 80th percentile, of `samples` samples of `calls` calls each."""

    wall: tuple[float, float, float]
    cpu: tuple[float, float, float]
    samples: int
    calls: int

    @property
    def ms(self) -> float:
        return self.wall[0]

    @property
    def cores(self) -> float:
        """CPU time over wall time. Below the number of threads: work that isn't parallel, or others held a core."""
        return self.cpu[0] / self.wall[0]


class Candidate(Protocol):
    def sample(self, first: int, calls: int) -> tuple[float, float]: ...


@dataclass(frozen=True)
class Local:
    """A competitor in this process: `function(number)` makes one call on the input set of that number."""

    function: Callable[[int], object]

    def sample(self, first: int, calls: int) -> tuple[float, float]:
        return measure_calls(self.function, first, calls, synchronize)


def synchronize() -> None:
    """Waits for the GPU, where this process uses one: a call there returns when it is queued, not when it is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@dataclass
class Row:
    """One measured case. A competitor that didn't run has a text instead of a timing: why, and how to get it."""

    op: str
    shape: str
    dtype: str
    threads: int
    bytes: int  # that must be moved, by the formula in the kernel's header
    flops: int
    ceiling: str  # which of ceilings.py limits it: its unit decides whether bytes or flops are rated
    results: dict[str, Timing | str]  # by backend and competitor
    ours: str  # the one that ratios refer to: of an op, the backend that a call takes by itself
    facts: dict[str, Any] = field(default_factory=dict)  # versions of peers, rotation

    @property
    def threads_text(self) -> str:
        return f"{self.threads} thread{'s' * (self.threads != 1)}"

    def timing(self, name: str) -> Timing | None:
        found = self.results.get(name)
        return found if isinstance(found, Timing) else None

    def ratio(self, name: str) -> float | None:
        """How many times as long as ours the competitor takes, by wall medians; None where one didn't run."""
        ours, peer = self.timing(self.ours), self.timing(name)
        return peer.ms / ours.ms if ours and peer else None

    def cpu_ratio(self, name: str) -> float | None:
        """The same by CPU medians: with one thread it holds on a busy machine too."""
        ours, peer = self.timing(self.ours), self.timing(name)
        return peer.cpu[0] / ours.cpu[0] if ours and peer else None

    def rate(self, name: str) -> float | None:
        """Giga-units a second: bytes, or flops where the ceiling counts flops."""
        timing = self.timing(name)
        work = self.flops if self.ceiling.endswith("gemm") else self.bytes
        return work / timing.ms / 1e6 if timing and work else None


def compare(candidates: Mapping[str, Candidate | str], effort: Effort) -> dict[str, Timing | str]:
    """Measures all candidates interleaved. A text in place of a candidate is handed through; one that raises an error
    becomes a text, and the others go on."""
    results: dict[str, Timing | str] = {name: one for name, one in candidates.items() if isinstance(one, str)}
    running = {name: one for name, one in candidates.items() if not isinstance(one, str)}
    calls: dict[str, int] = {}
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in running}
    draw = random.Random(0)
    gc.collect()
    gc.disable()
    try:
        for name in list(running):
            try:
                calls[name] = _warm_up(running[name], effort)
            except Exception as error:
                results[name] = failure(error)
                del running[name]
        started, rounds, before = time.perf_counter(), 0, None
        while running and (
            rounds < effort.fewest_rounds or (rounds < MOST_ROUNDS and time.perf_counter() - started < effort.seconds)
        ):
            gc.collect(0)  # what a library's cycles hold: three models' activations of ten rounds filled 24 GB
            for name in draw.sample(list(running), len(running)):
                candidate = running[name]
                process = candidate if isinstance(candidate, Peer) else None
                if process is not before:
                    time.sleep(FALL_ASLEEP)
                    before = process
                first = 2 * rounds * calls[name]
                try:
                    candidate.sample(first, calls[name])
                    wall, cpu = candidate.sample(first + calls[name], calls[name])
                except Exception as error:
                    results[name] = failure(error)
                    del running[name]
                else:
                    samples[name].append((wall / calls[name], cpu / calls[name]))
            rounds += 1
    finally:
        gc.enable()
    results |= {name: summary(samples[name], calls[name]) for name in running}
    return {name: results[name] for name in candidates}


def failure(error: Exception) -> str:
    """The text that stands in the table for a competitor that raised `error`."""
    return f"{FAILED}{type(error).__name__}: {first_line(error)}"


def rotation(bytes_of_one: int, cache: int, most: int = 32, memory: int = 1 << 30) -> int:
    """How many input sets make up twice the cache: at most `most`, within `memory` bytes, and at least one."""
    wanted = -(-2 * cache // max(bytes_of_one, 1))
    return max(1, min(wanted, most, memory // max(bytes_of_one, 1)))


def _warm_up(candidate: Candidate, effort: Effort) -> int:
    """Runs it for a while; returns the calls that a sample should have."""
    started, number = time.perf_counter(), 0
    while True:
        wall, _ = candidate.sample(number, 1)
        number += 1
        if number >= FEWEST_WARM_UP and time.perf_counter() - started > effort.warm_up:
            return max(1, min(10_000, round(effort.sample / max(wall, 1e-9))))


def summary(samples: Sequence[tuple[float, float]], calls: int) -> Timing:
    """From (wall, CPU) seconds a call."""
    wall, cpu = (tuple(float(x) * 1e3 for x in np.percentile(part, (50, 20, 80))) for part in np.transpose(samples))
    return Timing(wall, cpu, len(samples), calls)  # type: ignore[arg-type]
