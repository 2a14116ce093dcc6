"""Batches on their way to a step: images in an order drawn from the run's seed, by one of three readers.

    workers    Pillow in threads (workers.py)
    dali       NVIDIA DALI, on the CPU or the GPU (dali.py)
    synthetic  one made-up batch, again and again: how fast is the rest?

Order, crops and flips are drawn here (augment.py), so the readers give the same images but for rounding.
"""

import os
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mlperf_fast.data.order import batch_count, permutation
from mlperf_fast.data.prefetch import Prefetcher
from mlperf_fast.errors import UserError
from mlperf_fast.loop.dist import processes_per_node
from mlperf_fast.workloads.resnet import dali, workers
from mlperf_fast.workloads.resnet.augment import DTYPES, Form, Plan, eval_plan, train_plan
from mlperf_fast.workloads.resnet.dataset import EVAL, TRAIN, Images, Meta

ORDER = 5  # which random stream is drawn
READERS = ("workers", "dali", "synthetic")


class Batch(NamedTuple):
    """One rank's part of a global batch, b images. A view `images.permute(0, 3, 1, 2)` is channels-last in memory."""

    images: torch.Tensor  # [b, size, size, 3] RGB, of Form.dtype
    labels: torch.Tensor  # int64 [b]


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Steps in which each image comes once. The last batch is filled up from the epoch's beginning, as NVIDIA's is."""
    return batch_count(samples, batch_size)


def train_batches(
    folder: str | os.PathLike,
    meta: Meta,
    form: Form,
    *,
    reader: str = "workers",
    batch_size: int,
    seed: int,
    steps: int,
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
    threads: int | None = None,
    cache_mb: int = 0,
    device: torch.device | str = "cpu",
) -> Prefetcher[Batch]:
    """This rank's batches of the steps `start_step` … `steps` - 1, of `batch_size` images over all ranks.

    threads: that decode; by default this process's share of the cores. cache_mb: `workers` keeps so many megabytes of
    decoded images for later epochs; the other readers have no such memory. Use it in a `with` block. UserError,
    where its batch would have come, names a bad image. Files are opened by this call, not before.
    """
    if batch_size < 1 or batch_size % world:
        raise UserError(f"batch size {batch_size} must be a positive multiple of the {world} processes")
    left, local = max(0, steps - start_step), batch_size // world

    def plans(images: Images) -> Iterator[Plan]:
        for step in range(start_step, steps):
            epoch, within = divmod(step, steps_per_epoch(len(images), batch_size))
            if within == 0 or step == start_step:
                order = permutation(len(images), seed, ORDER, epoch)
            # Numbers behind the order's end go on at its beginning.
            first = within * batch_size + rank * local
            own = order[np.arange(first, first + local) % len(order)]
            yield train_plan(own, images.index["height"][own], images.index["width"][own], form, seed, epoch)

    def batches() -> Iterator[Batch]:
        if reader == "synthetic":
            yield from repeat(synthetic(meta.classes, form, local, seed), left)
        else:
            images = Images(Path(folder), meta, TRAIN)
            where = torch.device(device)
            for batch, _ in read(reader, images, plans(images), form, local, threads, cache_mb * 1_000_000, where):
                yield batch

    require(reader)
    if cache_mb and reader == "dali":
        raise UserError("cache_mb is for the reader `workers`; DALI keeps no decoded images on this way: set it to 0")
    return Prefetcher(batches(), length=left, device=device)


def eval_batches(
    folder: str | os.PathLike,
    meta: Meta,
    form: Form,
    *,
    reader: str = "workers",
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    threads: int | None = None,
    device: torch.device | str = "cpu",
) -> Prefetcher[tuple[Batch, int]]:
    """(batch, valid) over the evaluation set, of `batch_size` images over all ranks.

    This rank's first `valid` images count, the rest are padding: over all batches and ranks each image comes exactly
    once. All ranks have the same number of batches, all of the same shape. `synthetic` has the real set's numbers.
    """
    if batch_size < 1 or batch_size % world:
        raise UserError(f"evaluation batch size {batch_size} must be a positive multiple of the {world} processes")
    local, count = batch_size // world, batch_count(meta.eval_samples, batch_size)

    def numbers() -> Iterator[tuple[np.ndarray, int]]:
        for start in range(rank * local, count * batch_size, batch_size):
            own = np.arange(start, start + local)
            yield np.minimum(own, meta.eval_samples - 1), int((own < meta.eval_samples).sum())

    def plans(images: Images) -> Iterator[Plan]:
        for own, valid in numbers():
            yield eval_plan(own, images.index["height"][own], images.index["width"][own], form, valid)

    def batches() -> Iterator[tuple[Batch, int]]:
        if reader == "synthetic":
            batch = synthetic(meta.classes, form, local, 0)
            yield from ((batch, valid) for _, valid in numbers())
        else:
            images = Images(Path(folder), meta, EVAL)
            where = torch.device(device)
            for batch, plan in read(reader, images, plans(images), form, local, threads, 0, where):
                yield batch, plan.valid

    require(reader)
    return Prefetcher(batches(), length=count, device=device)


def require(reader: str) -> None:
    if reader not in READERS:
        raise UserError(f"there is no reader {reader!r}: choose one of {', '.join(READERS)}")


def read(
    reader: str, images: Images, plans: Iterator[Plan], form: Form, local: int, threads: int | None,
    cache_bytes: int, device: torch.device,
) -> Iterator[tuple[Batch, Plan]]:  # fmt: skip
    threads = threads or default_threads()
    if reader == "dali":
        pixels = dali.read(images, plans, form, threads, device, local)
    else:
        pixels = workers.read(images, plans, form, threads, device, cache_bytes)
    for tensor, plan in pixels:
        labels = torch.from_numpy(images.index["label"][plan.samples].astype(np.int64))
        yield Batch(tensor, labels.pin_memory() if device.type == "cuda" else labels), plan


def default_threads() -> int:
    """This process's share of the cores that it may use: all of them if the launcher bound it to its own."""
    usable = len(os.sched_getaffinity(0))
    bound = usable < (os.cpu_count() or 1)
    return usable if bound else max(1, usable // (processes_per_node() or 1))


def synthetic(classes: int, form: Form, local: int, seed: int) -> Batch:
    """A made-up batch with the shapes of a real one."""
    generator = torch.Generator().manual_seed(seed)
    shape = (local, form.size, form.size, 3)
    if form.dtype == "uint8":
        images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    else:
        images = torch.randn(shape, generator=generator).to(DTYPES[form.dtype])
    return Batch(images, torch.randint(classes, (local,), generator=generator))
