"""data: image readers alone, against a DataLoader whose processes decode with Pillow; --data DIR for a set of your own.

Without --data: 256 drawn images (noise of all scales as in photographs, 500 x 375 pixels, quality 90, 110 KB in the
mean, as ImageNet's). Training crops of 224 x 224, batches of 64, float32, normalised; a call is a batch. One thread, or
process, of each reader for each of --threads. In turns, several rounds, each after batches that aren't counted.

DataLoader + Pillow  worker processes: Pillow decodes, crops, resizes (its bilinear is always antialiased) and flips;
                     torch normalises; batches are collated. The same crops as ours.
workers, processes   our reader's function in a DataLoader's processes instead of threads
workers, kept pixels later epochs of a set that fits into memory decoded: nothing is decoded after the first
workers, dali        our readers, as a run has them; "antialias" as Pillow's resizing
dali, plain          what DALI's own examples do: its file reader, its own random crops, its own order
first epoch          with nothing read ahead when the clock starts; "cold": the files aren't in the page cache either
"""

import io
import os
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mlperf_fast.data import jpeg
from mlperf_fast.data.dali import import_dali
from mlperf_fast.data.order import permutation
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.resnet import augment, workers
from mlperf_fast.workloads.resnet.augment import Form, Plan
from mlperf_fast.workloads.resnet.data import steps_per_epoch, train_batches
from mlperf_fast.workloads.resnet.dataset import TRAIN, Images, Meta, read_meta
from mlperf_fast.workloads.resnet.prepare import prepare
from mlperf_fast.workloads.resnet.throughput import WARM_UP
from mlperf_fast.workloads.resnet.throughput import measure as throughput

from . import command
from .measure import ABSENT, Row, Timing, failure, summary

DEVICES = ("cpu",)
IMAGES, HEIGHT, WIDTH = 256, 375, 500
KEPT_MB = 4000
CONTRAST = 45  # standard deviation of the grey values; gives ImageNet's mean file size


@dataclass(frozen=True)
class Options:
    threads: int
    batch: int = 64
    rounds: int = 5
    seconds: float = 3.0  # of each reader in each round


def draw(raw: Path, count: int) -> None:
    """Class folders of made-up photographs: noise whose amplitude falls as 1 / frequency, as natural images' does."""
    from PIL import Image

    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None, :])
    fall = 1 / np.maximum(frequency, 1 / WIDTH)
    for number in range(count + 2):
        rng = np.random.default_rng(number)
        noise = np.fft.rfft2(rng.standard_normal((3, HEIGHT, WIDTH))) * fall
        grey, red, blue = np.fft.irfft2(noise, s=(HEIGHT, WIDTH))
        scale = CONTRAST / grey.std()
        pixels = 128 + scale * np.stack([grey + red / 4, grey, grey + blue / 4], -1)
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        place = raw / ("train" if number < count else "val") / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number}.jpg", quality=90)


class PillowImages(Dataset):
    """What a torchvision user writes, with our crops."""

    def __init__(self, folder: Path, meta: Meta, form: Form, native: bool):
        self.folder, self.meta, self.form, self.native = folder, meta, form, native
        self.images: Images | None = None
        index = Images(folder, meta, TRAIN).index
        numbers = np.arange(len(index))
        self.plan = augment.train_plan(numbers, index["height"], index["width"], form, 1, 0)
        self.mean, self.std = torch.tensor(form.mean) / 255, torch.tensor(form.std) / 255

    def __len__(self) -> int:
        return len(self.plan.samples)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        if self.images is None:  # in the worker
            self.images = Images(self.folder, self.meta, TRAIN)
        pixels = self.ours(number) if self.native else self.pillows(number)
        return pixels, int(self.images.index["label"][number])

    def ours(self, number: int) -> torch.Tensor:
        """[H, W, 3]."""
        out = np.empty((1, self.form.size, self.form.size, 3), np.float32)
        part = Plan(*(array[number : number + 1] for array in self.plan[:4]), valid=1)
        workers.fill(workers.Decoded(self.images, 0), part, range(1), self.form, out)
        return torch.from_numpy(out[0])

    def pillows(self, number: int) -> torch.Tensor:
        """[3, H, W]."""
        from PIL import Image

        top, left, height, width = self.plan.windows[number].tolist()
        image = Image.open(io.BytesIO(self.images.read(number).data)).convert("RGB")
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((self.form.size, self.form.size), Image.Resampling.BILINEAR)
        if self.plan.mirror[number]:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
        return pixels.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])


class Endless(torch.utils.data.Sampler):
    def __init__(self, count: int):
        self.count = count

    def __iter__(self) -> Iterator[int]:
        epoch = 0
        while True:
            yield from permutation(self.count, epoch).tolist()
            epoch += 1


def timed(batches: Iterator, o: Options, cpu: Callable[[], float]) -> tuple[float, float]:
    """Seconds a batch, wall and CPU."""
    for step, _ in enumerate(batches):
        if step < WARM_UP:
            start, before = time.perf_counter(), cpu()
            continue
        if time.perf_counter() - start >= o.seconds:
            break
    count = step - WARM_UP + 1
    return (time.perf_counter() - start) / count, (cpu() - before) / count


def data_loader(folder: Path, meta: Meta, form: Form, o: Options, native: bool) -> tuple[float, float]:
    images = PillowImages(folder, meta, form, native)
    loader = DataLoader(images, o.batch, sampler=Endless(len(images)), num_workers=o.threads)
    batches = iter(loader)
    ids = [worker.pid for worker in batches._workers]
    answer = timed(batches, o, lambda: time.process_time() + sum(map(cpu_of, ids)))
    del batches
    return answer


def cpu_of(process: int) -> float:
    """Seconds that a living process has worked."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def plain_dali(folder: Path, meta: Meta, form: Form, o: Options) -> tuple[float, float]:
    """DALI as its examples use it: TFRecords by its own reader, its own crops, exact decoding."""
    dali = import_dali()
    fn, types = dali.fn, dali.types
    images = Images(folder, meta, TRAIN)
    with tempfile.TemporaryDirectory() as place:
        for number in range(len(images)):
            (Path(place) / f"{number:06d}.jpg").write_bytes(images.read(number).tobytes())
        files = sorted(str(path) for path in Path(place).iterdir())

        @dali.pipeline_def(batch_size=o.batch, num_threads=o.threads, device_id=None, seed=1)
        def pipe():
            encoded, labels = fn.readers.file(files=files, random_shuffle=True)
            pixels = fn.decoders.image_random_crop(
                encoded, random_area=list(form.area), random_aspect_ratio=list(form.aspect)
            )
            pixels = fn.resize(pixels, size=(form.size, form.size), antialias=form.antialias)
            mirror = fn.random.coin_flip()
            pixels = fn.crop_mirror_normalize(
                pixels, mirror=mirror, dtype=types.FLOAT, output_layout="HWC", mean=list(form.mean), std=list(form.std)
            )
            return pixels, labels

        built = pipe()
        built.build()
        return timed(iter(built.run, None), o, time.process_time)


def measure(chosen: Namespace) -> Iterator[Row]:
    try:
        jpeg.pillow()
    except UserError as error:
        yield Row(
            "data", "no images", "fp32", chosen.threads, 0, 0, "triad", {"workers": f"{ABSENT}{error}"}, "workers"
        )
        return
    o = Options(threads=chosen.threads, batch=8, rounds=2, seconds=0.2) if chosen.quick else Options(chosen.threads)
    with tempfile.TemporaryDirectory() as place:
        folder = chosen.data or Path(place) / "set"
        if chosen.data is None:
            draw(Path(place) / "raw", 16 if chosen.quick else IMAGES)
            prepare(Path(place) / "raw", folder)
        meta = read_meta(folder)
        index = Images(folder, meta, TRAIN).index
        shape = (
            f"batches of {o.batch}, {len(index):,} images of {index['size'].mean() / 1000:.0f} KB, "
            f"{index['width'].mean():.0f}×{index['height'].mean():.0f} in the mean"
        )
        moved = int(o.batch * (index["size"].mean() + 4 * 3 * Form().size ** 2))
        for op, forms in (("data", steady(folder, meta, o)), ("data, first epoch", first_epochs(folder, meta, o))):
            results = in_turns(forms, o.rounds)
            best = min((n for n in ("dali", "workers") if isinstance(results[n], Timing)), key=lambda n: results[n].ms)
            yield Row(op, shape, "fp32", chosen.threads, moved, 0, "triad", results, best)


def steady(folder: Path, meta: Meta, o: Options) -> dict[str, Callable[[], tuple[float, float]] | str]:
    """Of each reader: what reads for a while and returns seconds a batch, wall and CPU; or why it can't."""
    form = Form()
    smooth = replace(form, antialias=True)

    def reader(name: str, form: Form, cache_mb: int = 0) -> Callable[[], tuple[float, float]]:
        def run() -> tuple[float, float]:
            options = {"batch_size": o.batch, "threads": o.threads, "seconds": o.seconds, "cache_mb": cache_mb}
            found = throughput(folder, meta, form, name, **options)
            batches = found.images / o.batch
            return found.seconds / batches, found.cpu_seconds / batches

        return run

    dali: dict[str, Any] = {
        "dali": reader("dali", form),
        "dali, antialias": reader("dali", smooth),
        "dali, plain": lambda: plain_dali(folder, meta, form, o),
    }
    return {
        **or_absent(dali),
        "workers": reader("workers", form),
        "workers, antialias": reader("workers", smooth),
        "workers, kept pixels": reader("workers", form, KEPT_MB),
        "workers, processes": lambda: data_loader(folder, meta, form, o, True),
        "DataLoader + Pillow": lambda: data_loader(folder, meta, form, o, False),
    }


def first_epochs(folder: Path, meta: Meta, o: Options) -> dict[str, Callable[[], tuple[float, float]] | str]:
    def reader(name: str, cold: bool) -> Callable[[], tuple[float, float]]:
        def run() -> tuple[float, float]:
            if cold:
                forget_pages(folder, meta)
            steps = steps_per_epoch(meta.train_samples, o.batch)
            start, cpu = time.perf_counter(), time.process_time()
            with train_batches(
                folder, meta, Form(), reader=name, batch_size=o.batch, seed=1, steps=steps, threads=o.threads
            ) as batches:
                for _ in batches:
                    pass
            return (time.perf_counter() - start) / steps, (time.process_time() - cpu) / steps

        return run

    return {
        **or_absent({"dali": reader("dali", False), "dali, cold": reader("dali", True)}),
        "workers": reader("workers", False),
        "workers, cold": reader("workers", True),
    }


def or_absent(forms: dict[str, Any]) -> dict[str, Any]:
    """DALI's forms, or once why there are none."""
    try:
        import_dali()
    except UserError as error:
        return {"dali": f"{ABSENT}{error}"}
    return forms


def forget_pages(folder: Path, meta: Meta) -> None:
    """Asks the kernel to drop the images' files from the page cache; what lies below it may still hold them."""
    for name in meta.train:
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_turns(forms: Mapping[str, Callable[[], tuple[float, float]] | str], rounds: int) -> dict[str, Timing | str]:
    """Timings of a batch. Not measure.compare's protocol: readers work ahead, so each has the machine for a while."""
    results: dict[str, Timing | str] = {name: run for name, run in forms.items() if isinstance(run, str)}
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in forms if name not in results}
    for _ in range(rounds):
        for name in list(samples):
            try:
                samples[name].append(forms[name]())  # type: ignore[operator]
            except Exception as error:
                results[name] = failure(error)
                del samples[name]
    results |= {name: summary(part, 1) for name, part in samples.items()}
    return {name: results[name] for name in forms}


if __name__ == "__main__":
    sys.exit(command.main("data"))
