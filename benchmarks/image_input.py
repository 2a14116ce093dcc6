"""The image readers alone, against what PyTorch's users have: a DataLoader whose processes decode with Pillow.

    python -m benchmarks.image_input [--data DIR] [--threads 2] [--quick]

The images are those of a data set that `prepare resnet` made, or 256 drawn ones (noise of all scales as in photographs,
500 x 375 pixels, quality 90, 110 KB in the mean, as ImageNet's), all in the page cache. Training crops of 224 x 224,
batches of 64, float32, normalised. In turns, several rounds; the medians are shown.

DataLoader + Pillow  worker processes, one for each thread of ours: Pillow decodes, crops, resizes (its bilinear is
                     always antialiased) and flips; torch normalises; batches are collated. The same crops as ours.
workers, processes   our reader's function in a DataLoader's processes instead of threads
workers, kept pixels later epochs of a set that fits into memory decoded: nothing is decoded after the first
workers, dali        our readers, as a run has them; "antialias" as Pillow's resizing
dali, plain          what DALI's own examples do: its file reader, its own random crops, its own order

CPU time is of all processes and steadier than images a second where others use the machine.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mlperf_fast.data.dali import import_dali
from mlperf_fast.data.order import permutation
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.resnet import augment, workers
from mlperf_fast.workloads.resnet.augment import Form, Plan
from mlperf_fast.workloads.resnet.dataset import TRAIN, Images, Meta, read_meta
from mlperf_fast.workloads.resnet.prepare import prepare
from mlperf_fast.workloads.resnet.throughput import WARM_UP, Throughput, measure

from . import machine

IMAGES, HEIGHT, WIDTH = 256, 375, 500
KEPT_MB = 4000
CONTRAST = 45  # standard deviation of the grey values; gives ImageNet's mean file size


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


def timed(name: str, batches: Iterator, o: argparse.Namespace, cpu: Callable[[], float]) -> Throughput:
    images = 0
    for step, _ in enumerate(batches):
        if step < WARM_UP:
            start, before = time.perf_counter(), cpu()
            continue
        images += o.batch
        if time.perf_counter() - start >= o.seconds:
            break
    return Throughput(name, images, time.perf_counter() - start, cpu() - before)


def data_loader(folder: Path, meta: Meta, form: Form, o: argparse.Namespace, native: bool) -> Throughput:
    images = PillowImages(folder, meta, form, native)
    loader = DataLoader(images, o.batch, sampler=Endless(len(images)), num_workers=o.threads)
    batches = iter(loader)
    ids = [worker.pid for worker in batches._workers]
    answer = timed("DataLoader", batches, o, lambda: time.process_time() + sum(map(cpu_of, ids)))
    del batches
    return answer


def cpu_of(process: int) -> float:
    """Seconds that a living process has worked."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def plain_dali(folder: Path, meta: Meta, form: Form, o: argparse.Namespace) -> Throughput:
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
        return timed("dali, plain", iter(built.run, None), o, time.process_time)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a data set that `mlperf-fast prepare resnet` made")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each reader in each round")
    parser.add_argument("--quick", action="store_true", help="one short round: does it work?")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds, options.batch = 1, 0.2, 8
    torch.set_num_threads(1)
    for item, text in machine.header(torch.device("cpu")).items():
        print(f"{item:<20} {text}")
    with tempfile.TemporaryDirectory() as place:
        folder = options.data or Path(place) / "set"
        if options.data is None:
            draw(Path(place) / "raw", 16 if options.quick else IMAGES)
            prepare(Path(place) / "raw", folder)
        report(folder, read_meta(folder), options)
    return 0


def report(folder: Path, meta: Meta, options: argparse.Namespace) -> None:
    form = Form()
    smooth = replace(form, antialias=True)
    ours = {"batch_size": options.batch, "threads": options.threads, "seconds": options.seconds}
    forms: dict[str, Callable[[], Throughput]] = {
        "DataLoader + Pillow": lambda: data_loader(folder, meta, form, options, False),
        "workers, processes": lambda: data_loader(folder, meta, form, options, True),
        "workers": lambda: measure(folder, meta, form, "workers", **ours),
        "workers, kept pixels": lambda: measure(folder, meta, form, "workers", cache_mb=KEPT_MB, **ours),
        "workers, antialias": lambda: measure(folder, meta, smooth, "workers", **ours),
    }
    try:
        import_dali()
    except UserError as error:
        print(f"left out: {error}")
    else:
        forms |= {
            "dali": lambda: measure(folder, meta, form, "dali", **ours),
            "dali, antialias": lambda: measure(folder, meta, smooth, "dali", **ours),
            "dali, plain": lambda: plain_dali(folder, meta, form, options),
        }
    index = Images(folder, meta, TRAIN).index
    print(f"\n{len(index):,} images, {index['size'].mean() / 1000:.0f} KB and {index['width'].mean():.0f} x "
          f"{index['height'].mean():.0f} pixels in the mean; {options.threads} threads, {options.rounds} rounds of "
          f"{options.seconds} s, in turns")  # fmt: skip
    found: dict[str, list[Throughput]] = {name: [] for name in forms}
    for _ in range(options.rounds):
        for name, run in forms.items():
            found[name].append(run())
    base = statistics.median(one.images_per_second for one in found["DataLoader + Pillow"])
    base_cpu = statistics.median(one.cpu_ms for one in found["DataLoader + Pillow"])
    print(f"{'':<20} {'images/s':>9} {'x':>6} {'CPU ms/image':>13} {'x':>6}")
    for name, rounds in found.items():
        rate = statistics.median(one.images_per_second for one in rounds)
        cpu = statistics.median(one.cpu_ms for one in rounds)
        print(f"{name:<20} {rate:>9.0f} {rate / base:>6.2f} {cpu:>13.2f} {base_cpu / cpu:>6.2f}")


if __name__ == "__main__":
    raise SystemExit(main())
