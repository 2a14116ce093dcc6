"""How many images a second a reader gives when nothing else is done with them."""

import os
import time
from typing import NamedTuple

import torch

from mlperf_fast.errors import UserError
from mlperf_fast.workloads.resnet.augment import Form
from mlperf_fast.workloads.resnet.data import train_batches
from mlperf_fast.workloads.resnet.dataset import Meta

# Batches that a reader may have made before the clock starts; their work isn't counted, nor are they.
WARM_UP = 8


class Throughput(NamedTuple):
    reader: str
    images: int
    seconds: float
    cpu_seconds: float  # of this process, over all its threads

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Processor time an image, in milliseconds: the figure to trust on a busy machine."""
        return 1000 * self.cpu_seconds / self.images


def measure(
    folder: str | os.PathLike,
    meta: Meta,
    form: Form,
    reader: str,
    *,
    batch_size: int = 64,
    threads: int | None = None,
    cache_mb: int = 0,
    seconds: float = 5.0,
    seed: int = 1,
    device: torch.device | str = "cpu",
) -> Throughput:
    """The training batches of one rank, read for `seconds` after a warm-up. Nothing is trained."""
    device = torch.device(device)
    images = 0
    with train_batches(
        folder, meta, form, reader=reader, batch_size=batch_size, seed=seed, steps=1 << 40, threads=threads,
        cache_mb=cache_mb, device=device,
    ) as batches:  # fmt: skip
        for step, _ in enumerate(batches):
            if step < WARM_UP:
                start, cpu = time.perf_counter(), time.process_time()
                continue
            images += batch_size
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if time.perf_counter() - start >= seconds:
                return Throughput(reader, images, time.perf_counter() - start, time.process_time() - cpu)
    raise UserError(f"the reader {reader} ended before {seconds} seconds were over")
