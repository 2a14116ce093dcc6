"""Where the time of a run goes: training, waiting for data, evaluating."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from mlperf_fast.profiling.ranges import named

Item = TypeVar("Item")


class Clock:
    """Seconds since it was made, split in three. Host time only: reading it never waits for a device."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.waiting = 0.0  # blocked on the next batch
        self.evaluating = 0.0
        self._lap = 0.0

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self._start

    @property
    def training(self) -> float:
        """Seconds outside evaluations; waiting for data is a part of it."""
        return self.elapsed - self.evaluating

    @property
    def data_wait_share(self) -> float:
        """The share of training time, 0 to 1, that the loop was blocked on the next batch."""
        return self.waiting / max(self.training, 1e-9)

    def lap(self) -> float:
        """Seconds of training since the last call."""
        before, self._lap = self._lap, self.training
        return self._lap - before

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same batches, with the time that each one took to come booked as waiting."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                with named("data wait"):
                    batch = next(iterator)
            except StopIteration:
                return
            finally:
                self.waiting += time.perf_counter() - asked
            yield batch

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.evaluating += time.perf_counter() - start
