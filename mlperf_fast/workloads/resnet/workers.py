"""The reader that needs little: Pillow decodes in threads, one native pass makes the network's input.

Threads, not processes: Pillow and the pass release Python's lock, and an image needs no copy to come from a thread. A
DataLoader's processes over the same function took 1.6 times the processor time (benchmarks/bench_data.py). Decoding
scaled by the DCT (Pillow's `draft`) isn't used: it pays from crops of twice the output's size on, which images of
ImageNet's size seldom give, and the pixels are others.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from mlperf_fast.data import jpeg
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.resnet.augment import DTYPES, Form, Plan
from mlperf_fast.workloads.resnet.dataset import Images

AHEAD = 2  # batches that are decoded while one is waited for, so that no thread idles at a batch's end
CHUNK = 4  # images that a thread takes at once


class Decoded:
    """Pixels of images, kept up to so many bytes once they were decoded: later epochs needn't decode those again.

    Of a set that doesn't fit, the images that came first are kept: to drop any for others would gain nothing, since
    each is wanted once an epoch.
    """

    def __init__(self, images: Images, limit: int):
        self.images, self.left = images, limit
        self.kept: dict[int, np.ndarray] = {}

    def pixels(self, number: int) -> np.ndarray:
        """uint8 [height, width, 3 or 4], see jpeg.pixels_of; UserError names an image that can't be decoded."""
        found = self.kept.get(number)
        if found is not None:
            return found
        try:
            pixels = jpeg.pixels_of(jpeg.decode(self.images.read(number).data))
        except jpeg.BadImage as error:
            raise UserError(
                f"{self.images.name(number)} {error}. Prepare the data set anew: it decodes each image"
            ) from None
        # Threads that come here together may keep an image each beyond the limit: no lock is worth that.
        if pixels.nbytes <= self.left:
            self.left -= pixels.nbytes
            self.kept[number] = pixels
        return pixels


def read(
    images: Images, plans: Iterable[Plan], form: Form, threads: int, device: torch.device, cache_bytes: int = 0
) -> Iterator[tuple[torch.Tensor, Plan]]:
    """([b, size, size, 3] of `form.dtype`, plan) for each plan, on the CPU, pinned for a GPU."""
    jpeg.pillow()
    decoded = Decoded(images, cache_bytes)
    waiting: deque[tuple[torch.Tensor, list[Future], Plan]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        try:
            for plan in plans:
                images.ask_for(np.array([n for n in plan.samples.tolist() if n not in decoded.kept], dtype=np.int64))
                out = torch.empty(
                    len(plan.samples), form.size, form.size, 3, pin_memory=device.type == "cuda",
                    dtype=torch.uint8 if form.dtype == "uint8" else torch.float32,
                )  # fmt: skip
                ranges = [range(i, min(i + CHUNK, len(out))) for i in range(0, len(out), CHUNK)]
                waiting.append(
                    (out, [pool.submit(fill, decoded, plan, rows, form, out.numpy()) for rows in ranges], plan)
                )
                if len(waiting) > AHEAD:
                    yield finished(*waiting.popleft(), form)
            while waiting:
                yield finished(*waiting.popleft(), form)
        finally:
            # Whoever leaves early needn't wait for what it won't see.
            pool.shutdown(wait=True, cancel_futures=True)


def finished(out: torch.Tensor, parts: list[Future], plan: Plan, form: Form) -> tuple[torch.Tensor, Plan]:
    for part in parts:
        part.result()
    return out.to(DTYPES[form.dtype]), plan


def fill(decoded: Decoded, plan: Plan, rows: range, form: Form, out: np.ndarray) -> None:
    for row in rows:
        top, left, height, width = plan.windows[row].tolist()
        pixels = decoded.pixels(int(plan.samples[row]))[top : top + height, left : left + width]
        box, mirror = jpeg.Box(*plan.boxes[row].tolist()), bool(plan.mirror[row])
        jpeg.resample(pixels, box, mirror, out[row], form.antialias, form.mean, form.std)
