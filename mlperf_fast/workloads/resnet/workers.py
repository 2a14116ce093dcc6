"""The reader that needs little: Pillow decodes in threads, one native pass makes the network's input.

Threads, not processes: Pillow and the pass release Python's lock, and an image needs no copy to come from a thread. A
DataLoader's processes over the same function took 1.6 times the processor time (benchmarks/image_input.py). Decoding
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


def read(
    images: Images, plans: Iterable[Plan], form: Form, threads: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, Plan]]:
    """([b, size, size, 3] of `form.dtype`, plan) for each plan, on the CPU, pinned for a GPU."""
    jpeg.pillow()
    waiting: deque[tuple[torch.Tensor, list[Future], Plan]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        try:
            for plan in plans:
                images.ask_for(plan.samples)
                out = torch.empty(
                    len(plan.samples), form.size, form.size, 3, pin_memory=device.type == "cuda",
                    dtype=torch.uint8 if form.dtype == "uint8" else torch.float32,
                )  # fmt: skip
                ranges = [range(i, min(i + CHUNK, len(out))) for i in range(0, len(out), CHUNK)]
                waiting.append(
                    (out, [pool.submit(fill, images, plan, rows, form, out.numpy()) for rows in ranges], plan)
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


def fill(images: Images, plan: Plan, rows: range, form: Form, out: np.ndarray) -> None:
    for row in rows:
        number = int(plan.samples[row])
        window, box = plan.windows[row].tolist(), jpeg.Box(*plan.boxes[row].tolist())
        try:
            jpeg.resized(
                images.read(number).data, window, box, bool(plan.mirror[row]), out[row], form.antialias, form.mean,
                form.std,
            )  # fmt: skip
        except jpeg.BadImage as error:
            raise UserError(
                f"{images.name(number)} {error}. Prepare the data set anew: it decodes each image"
            ) from None
