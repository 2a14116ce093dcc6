"""A data set of a hundred small JPEGs in the benchmark's packed form, and the settings that train on it in seconds."""

import numpy as np

from mlperf_fast.workloads.resnet.prepare import prepare

CLASSES = ("ant", "bee", "cat", "dog", "eel")
TRAIN, EVAL = 74, 23  # images: a last batch of 16 that is filled up, and one of 8 that is short


def write_folders(folder, train=TRAIN, evaluation=EVAL):
    """Class folders. A class is a colour under noise, so that a network can learn it."""
    from PIL import Image

    colours = np.random.default_rng(7).uniform(60, 200, (len(CLASSES), 3))
    for part, count, first in (("train", train, 0), ("val", evaluation, train)):
        for number in range(first, first + count):
            rng, label = np.random.default_rng(number), number % len(CLASSES)
            coarse = rng.normal(0, 25, (6, 5, 3)) + colours[label]
            small = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
            image = small.resize((int(rng.integers(30, 60)), int(rng.integers(30, 60))), Image.Resampling.BICUBIC)
            place = folder / part / CLASSES[label]
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{number:03d}.JPEG", quality=90)
    return folder


def write(folder):
    if not folder.is_dir():
        prepare(write_folders(folder.with_name(f"{folder.name}-raw")), folder, source="tests")
    return folder


def settings(folder, *more):
    """Arguments of `run resnet` for this data: 4 epochs of 5 steps, an evaluation after each, a target out of reach."""
    sets = (
        f"data.path={folder}", "data.generated=none", "data.threads=1", "batch_size=16", "eval_batch_size=8",
        "max_epochs=4", "eval_every=1", "eval_offset=0", "log_every=1", "target=0.999", "image.size=32",
        "image.resize=36", "model.width=4", "model.layers=1,1,1,1", "optimizer.lr=2.0", "optimizer.warmup=1",
        "optimizer.epochs=4", "threads=1", *more,
    )  # fmt: skip
    return [part for setting in sets for part in ("--set", setting)]
