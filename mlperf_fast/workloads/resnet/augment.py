"""Which part of each image a network sees: the benchmark's crops and flips, the same whoever decodes.

Training: a random crop of 5 % to 100 % of the area and an aspect of 3/4 to 4/3, resized, and flipped with probability
1/2. NVIDIA's v2.0 draws them so (ten attempts, aspect log-uniform); the reference draws the aspect uniformly in up to
100 attempts. Evaluation: resized so that the shorter side is 256, then the central 224 x 224. Resizing is bilinear
between the two nearest pixels, without antialiasing, as both did.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from mlperf_fast.data.order import sample_bits

CROPS = 6  # which random stream is drawn
# NVIDIA's; the reference subtracts (123.68, 116.78, 103.94) and divides by nothing.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
DTYPES = {"uint8": torch.uint8, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What images become. The defaults are the benchmark's."""

    size: int = 224  # height and width, in pixels
    resize: int = 256  # of the shorter side, in evaluation
    area: tuple[float, float] = (0.05, 1.0)  # share of the image that a random crop has
    aspect: tuple[float, float] = (3 / 4, 4 / 3)  # its width over its height
    attempts: int = 10
    flip: float = 0.5  # probability
    antialias: bool = False
    dtype: str = "float32"  # or float16, normalised; or uint8, as decoded
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD


class Plan(NamedTuple):
    """What to read for one batch of b images, the first `valid` of which count."""

    samples: np.ndarray  # int64 [b]
    windows: np.ndarray  # int64 [b, 4]: top, left, height, width of the pixels that count
    boxes: np.ndarray  # float64 [b, 4]: the same of the part of the window that is resized
    mirror: np.ndarray  # bool [b]
    valid: int


def train_plan(samples: np.ndarray, heights: np.ndarray, widths: np.ndarray, form: Form, seed: int, epoch: int) -> Plan:
    """Random crops and flips that depend on the seed, the epoch and each image's number alone."""
    bits = sample_bits(samples, 1 + 4 * form.attempts, seed, CROPS, epoch)
    unit = (bits >> np.uint64(11)) * 2.0**-53  # in [0, 1)
    windows = random_windows(heights, widths, unit[:, 1:].reshape(len(samples), form.attempts, 4), form)
    boxes = np.zeros((len(samples), 4))
    boxes[:, 2:] = windows[:, 2:]
    return Plan(samples, windows, boxes, unit[:, 0] < form.flip, len(samples))


def random_windows(heights: np.ndarray, widths: np.ndarray, unit: np.ndarray, form: Form) -> np.ndarray:
    """int64 [b, 4]: of each image's attempts (unit: float64 [b, attempts, 4]) the first that fits, else the largest
    central part with an allowed aspect."""
    area, aspect, down, right = np.moveaxis(unit, 2, 0)
    h, w = heights.astype(np.float64)[:, None], widths.astype(np.float64)[:, None]
    area = h * w * (form.area[0] + area * (form.area[1] - form.area[0]))
    low, high = np.log(form.aspect)
    aspect = np.exp(low + aspect * (high - low))
    height = np.maximum(1, np.rint(np.sqrt(area / aspect)))
    width = np.maximum(1, np.rint(np.sqrt(area * aspect)))
    fits = (height <= h) & (width <= w)
    drawn = np.stack([np.floor(down * (h - height + 1)), np.floor(right * (w - width + 1)), height, width], axis=2)
    first = drawn[np.arange(len(drawn)), fits.argmax(axis=1)]
    # None fitted: a long image.
    height = np.minimum(h, np.maximum(1, np.rint(w / form.aspect[0])))[:, 0]
    width = np.minimum(w, np.maximum(1, np.rint(h * form.aspect[1])))[:, 0]
    central = np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=1)
    return np.where(fits.any(axis=1)[:, None], first, central).astype(np.int64)


def eval_plan(samples: np.ndarray, heights: np.ndarray, widths: np.ndarray, form: Form, valid: int) -> Plan:
    """The central part of each image, resized as a whole in thought: only what is needed of it is."""
    short = np.minimum(heights, widths)
    tops, sides_h = central(heights, short, form)
    lefts, sides_w = central(widths, short, form)
    windows, boxes = [], []
    for size, start, side in ((heights, tops, sides_h), (widths, lefts, sides_w)):
        reach = np.maximum(1, side / form.size) if form.antialias else 1
        begin = np.maximum(0, np.floor(start - reach)).astype(np.int64)
        end = np.minimum(size, np.ceil(start + side + reach)).astype(np.int64)
        windows.append((begin, end - begin))
        boxes.append((start - begin, side))
    (top, height), (left, width) = windows
    (box_top, box_height), (box_left, box_width) = boxes
    return Plan(
        samples,
        np.stack([top, left, height, width], axis=1),
        np.stack([box_top, box_left, box_height, box_width], axis=1),
        np.zeros(len(samples), dtype=bool),
        valid,
    )


def central(size: np.ndarray, short: np.ndarray, form: Form) -> tuple[np.ndarray, np.ndarray]:
    """(start, length) of one axis of the central crop, in pixels of the image as it is; float64 [b] each."""
    new = size * form.resize // short  # whole numbers: the shorter side becomes `resize` exactly
    return (new - form.size) // 2 * (size / new), form.size * (size / new)


def normalised(images: torch.Tensor, form: Form, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 [b, H, W, 3] as float (value - mean) / std, on whichever device they are."""
    mean, std = (torch.tensor(values, device=images.device) for values in (form.mean, form.std))
    return ((images.float() - mean) / std).to(dtype)
