"""Small raw folders of JPEGs for tests. Each image's colour tells its number."""

import io

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat", "dog", "eel")
TRAIN, EVAL = 47, 13  # images


def jpeg(number, height=None, width=None, mode="RGB", **options):
    """One colour: red is four times the number, all over."""
    rng = np.random.default_rng(number)
    size = (width or int(rng.integers(30, 90)), height or int(rng.integers(30, 90)))
    image = Image.new("RGB", size, (4 * number, 255 - 4 * number, 128)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 95, **options})
    return buffer.getvalue()


def png(number):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg(number))).save(buffer, "PNG")
    return buffer.getvalue()


def numbers(images):
    """The numbers that uint8 images [b, H, W, 3] tell."""
    return np.rint(images[..., 0].float().mean(dim=(1, 2)).numpy() / 4).astype(int).tolist()


def textured(seed, height, width):
    """A JPEG with something to see in it."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def samples(count, first=0):
    """(number, label, JPEG): labels go round."""
    return [(first + i, i % len(CLASSES), jpeg(first + i)) for i in range(count)]


def write_folders(folder):
    """Class folders; returns the label of each number."""
    labels = {}
    for part, count, first in (("train", TRAIN, 0), ("val", EVAL, TRAIN)):
        for number, label, data in samples(count, first):
            place = folder / part / CLASSES[label]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number:03d}.JPEG").write_bytes(data)
            labels[number] = label
    return labels
