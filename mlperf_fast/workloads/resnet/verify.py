"""Reading a data set back: every image by its checksum, counts per class, images that are there twice."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mlperf_fast.data import jpeg
from mlperf_fast.data.files import checksum
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.resnet.dataset import EVAL, META_FILE, TRAIN, Images, Meta, read_meta

MOST_PROBLEMS = 20  # that are listed of a part
# ImageNet has a few images twice; more than this share is a mistake.
MOST_DUPLICATES = 0.01
BLOCK = 2048

Say = Callable[[str], None]


@dataclass
class Report:
    """What a part of a data set holds."""

    classes: np.ndarray  # int64, images of each
    duplicates: int = 0  # images whose bytes an earlier one has
    problems: list[str] = field(default_factory=list)


def verify(folder: str | os.PathLike, progress: Say = lambda line: None, workers: int = 1) -> Meta:
    """Reads a data set whole and compares it with its meta.json; UserError lists what is wrong.

    Checked: checksums of files and of images, that each image can be decoded and has the size that the index says,
    labels, counts per class, images that are there twice, and evaluation images that are among the training images.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    problems = []
    for name in (*meta.train, *meta.validation):
        if checksum(folder / name) != meta.sha256.get(name):
            problems.append(f"{name}: its checksum isn't the one in {META_FILE}")
    parts = {part: Images(folder, meta, part) for part in (TRAIN, EVAL)}
    for part, wanted in ((TRAIN, meta.train_classes), (EVAL, meta.eval_classes)):
        report = inspect(parts[part], meta.classes, True, workers, progress)
        problems += report.problems
        if not report.problems and report.classes.tolist() != list(wanted):
            problems.append(f"{part}: images of each class aren't as many as {META_FILE} says")
        progress(describe(part, report))
    problems += shared_problem(parts[TRAIN], parts[EVAL])
    if problems:
        raise UserError(f"{folder} is no valid data set:\n  " + "\n  ".join(problems) + "\nPrepare it anew")
    return meta


def inspect(images: Images, classes: int, decode: bool, workers: int, progress: Say) -> Report:
    """One pass over a part: each image's checksum, and with `decode` its pixels."""
    index = images.index
    report = Report(np.bincount(np.clip(index["label"], 0, classes - 1), minlength=classes))
    bad = np.flatnonzero((index["label"] < 0) | (index["label"] >= classes))
    report.problems += [
        f"{images.name(i)} has label {index['label'][i]}, but the classes are 0 to {classes - 1}"
        for i in bad[:MOST_PROBLEMS].tolist()
    ]
    report.problems += [
        f"{images.part}: class {label} has no image" for label in np.flatnonzero(report.classes == 0)[:MOST_PROBLEMS]
    ]
    blocks = [range(at, min(at + BLOCK, len(images))) for at in range(0, len(images), BLOCK)]
    with ThreadPoolExecutor(workers) as pool:
        for done, found in enumerate(pool.map(lambda block: faults(images, block, decode), blocks), 1):
            report.problems += found
            if decode and done % 10 == 0:
                progress(f"{images.part}: {min(done * BLOCK, len(images)):,} of {len(images):,} images decoded")
    report.problems = report.problems[:MOST_PROBLEMS]
    if not report.problems:
        report.duplicates = len(repeated(images))
        if report.duplicates > MOST_DUPLICATES * len(images):
            report.problems.append(f"{images.part}: {report.duplicates:,} of {len(images):,} images are there twice")
    return report


def faults(images: Images, numbers: range, decode: bool) -> list[str]:
    found: list[str] = []
    for number in numbers:
        try:
            data = images.read(number)
            if decode:
                image, entry = jpeg.decode(data.data), images.index[number]
                if (image.height, image.width) != (entry["height"], entry["width"]):
                    found.append(f"{images.name(number)} isn't of the size that the index says")
        except UserError as error:
            found.append(str(error))
        except jpeg.BadImage as error:
            found.append(f"{images.name(number)} {error}")
    return found


def repeated(images: Images) -> list[int]:
    """Numbers of the images whose bytes an earlier one has. Checksum and size find candidates, the bytes decide."""
    first: dict[int, int] = {}
    found = []
    keys = keys_of(images)
    values, counts = np.unique(keys, return_counts=True)
    for number in np.flatnonzero(np.isin(keys, values[counts > 1])).tolist():
        other = first.setdefault(int(keys[number]), number)
        if other != number and np.array_equal(images.read(other), images.read(number)):
            found.append(number)
    return found


def keys_of(images: Images) -> np.ndarray:
    index = images.index
    return index["crc"].astype(np.uint64) << np.uint64(32) | index["size"].astype(np.uint64)


def shared_problem(train: Images, evaluation: Images) -> list[str]:
    """Whether evaluation images are among the training images, which makes the accuracy worthless."""
    known = np.isin(keys_of(evaluation), keys_of(train))
    if known.sum() <= MOST_DUPLICATES * len(evaluation):
        return []
    return [f"{known.sum():,} of {len(evaluation):,} evaluation images are among the training images: split them anew"]


def describe(part: str, report: Report) -> str:
    counts = report.classes
    twice = f", {report.duplicates:,} of them there twice" if report.duplicates else ""
    return (
        f"{part}: {counts.sum():,} images of {len(counts):,} classes, {counts.min():,} to {counts.max():,} each{twice}"
    )
