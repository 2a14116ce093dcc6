"""The reader of NVIDIA DALI, on the CPU or the GPU, fed with our order: encoded images, windows and flips.

The decoder takes only the window of each image ("fused" with the crop). EXIF turns are ignored, as elsewhere.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from mlperf_fast.data import jpeg
from mlperf_fast.data.dali import import_dali
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.resnet.augment import Form, Plan
from mlperf_fast.workloads.resnet.dataset import Images

QUEUE = 2  # batches that DALI makes ahead

Fed = tuple[list[np.ndarray], ...]  # of each image: JPEG, start and shape of its window, begin and end of its box, flip


def read(
    images: Images, plans: Iterable[Plan], form: Form, threads: int, device: torch.device, batch_size: int
) -> Iterator[tuple[torch.Tensor, Plan]]:
    """([b, size, size, 3] of `form.dtype`, plan) for each plan, on `device`. All plans are of `batch_size` images."""
    dali = import_dali()
    begun: deque[tuple[Plan, Fed]] = deque()
    pipe = pipeline(dali, source(images, plans, begun), form, threads, device, batch_size)
    try:
        pipe.build()
    except RuntimeError as error:
        raise UserError(f"DALI can't make a pipeline on {device}: {first_line(error)}") from None
    while True:
        try:
            (out,) = pipe.run()
        except StopIteration:
            return
        except RuntimeError as error:
            raise fault(images, [plan for plan, _ in begun], error) from None
        batch = as_tensor(out, device)
        yield batch, begun.popleft()[0]


def source(images: Images, plans: Iterable[Plan], begun: deque[tuple[Plan, Fed]]) -> Iterator[Fed]:
    """What the pipeline is fed with, batch by batch. `begun` holds it until the batch is done: DALI makes no copy."""
    for plan in plans:
        images.ask_for(plan.samples)
        windows, boxes = plan.windows.astype(np.int32), plan.boxes.astype(np.float32)
        fed = (
            [images.read(number) for number in plan.samples.tolist()],
            list(windows[:, :2]),
            list(windows[:, 2:]),
            list(boxes[:, :2]),
            list(boxes[:, :2] + boxes[:, 2:]),
            list(plan.mirror.astype(np.int32)),
        )
        begun.append((plan, fed))
        yield fed


def pipeline(dali: Any, feed: Any, form: Form, threads: int, device: torch.device, batch_size: int) -> Any:
    fn, types = dali.fn, dali.types
    place = "gpu" if device.type == "cuda" else "cpu"
    number = device.index or 0 if place == "gpu" else None

    @dali.pipeline_def(batch_size=batch_size, num_threads=threads, device_id=number, prefetch_queue_depth=QUEUE)
    def decode_crop_resize():
        encoded, start, shape, box_start, box_end, mirror = fn.external_source(
            source=feed, num_outputs=6, no_copy=True, dtype=fed
        )
        pixels = fn.decoders.image_slice(
            encoded, start, shape, axis_names="HW", device="mixed" if place == "gpu" else "cpu",
            output_type=types.RGB, adjust_orientation=False,
        )  # fmt: skip
        pixels = fn.resize(
            pixels, size=(form.size, form.size), roi_start=box_start, roi_end=box_end, antialias=form.antialias,
            interp_type=types.INTERP_LINEAR,
        )  # fmt: skip
        if form.dtype == "uint8":
            return fn.flip(pixels, horizontal=mirror)
        kind = types.FLOAT16 if form.dtype == "float16" else types.FLOAT
        return fn.crop_mirror_normalize(
            pixels, mirror=mirror, dtype=kind, output_layout="HWC", mean=list(form.mean), std=list(form.std)
        )

    fed = [types.UINT8, types.INT32, types.INT32, types.FLOAT, types.FLOAT, types.INT32]
    return decode_crop_resize()


def as_tensor(out: Any, device: torch.device) -> torch.Tensor:
    """A copy of DALI's batch, which the next one overwrites."""
    batch = torch.from_dlpack(out.as_tensor()).clone()
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return batch


def fault(images: Images, plans: list[Plan], error: RuntimeError) -> UserError:
    """Which image DALI couldn't decode; Pillow finds it."""
    for plan in plans:
        for number in plan.samples.tolist():
            try:
                jpeg.decode(images.read(number).data)
            except (jpeg.BadImage, UserError) as why:
                return UserError(f"{images.name(number)} {why}. Prepare the data set anew: it decodes each image")
    return UserError(f"DALI failed: {first_line(error)}")


def first_line(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("Error")), lines[0] if lines else "no reason given")
