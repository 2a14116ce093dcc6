"""The demo's data: generated clicks with something to learn, in the benchmark's own on-disk format.

Tables shrink to about the square root of their true size, ids follow Zipf's law, and a hidden teacher draws the label
from ids, pairs of ids and integers at the benchmark's click rate. A model never reaches the teacher's own AUC, but the
curve has the shape of the real one: quick to 0.76, slow after, and a lift from the decay of the learning rate.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mlperf_fast.errors import UserError
from mlperf_fast.workloads.dlrm.data import (
    COLUMNS,
    COUNTS_FILE,
    INTEGERS,
    META_FILE,
    TABLES,
    TEST_FILE,
    TRAIN_FILE,
    Meta,
    read_meta,
)
from mlperf_fast.workloads.dlrm.verify import write_counts, write_meta

SOURCE = "generated: hidden teacher, version 2"
SEED = 2022
TRAIN_SAMPLES = 262_144
TEST_SAMPLES = 32_768
# round(sqrt(n)) of the true sizes, 4000 at most; tables of up to 64 rows keep their size.
TABLE_ROWS = (
    4000, 198, 131, 86, 142, 3, 84, 39, 63, 4000, 1719, 635, 10, 47, 109, 12, 4, 31, 14, 4000, 4000, 4000, 765, 114,
    10, 36,
)  # fmt: skip
ZIPF = 1.05
# The teacher's weights: of each id, of each pair, and of each integer.
ID_SD, PAIR_WEIGHT, INTEGER_SD = 0.65, 0.25, 0.5
CLICK_RATE = 0.0332  # Criteo's is 3.2 to 3.4 %
PAIRS = ((0, 9), (2, 19), (4, 20), (10, 21), (14, 23), (1, 12))  # tables whose ids act together


def make_demo(out_folder: str | os.PathLike, progress: Callable[[str], None] = lambda line: None) -> Meta:
    """The demo's data set in `out_folder`: made there if it isn't yet, all at once or not at all; the same each time.

    One that is there is checked by its sizes; `verify` checks it by content. UserError if the folder holds something
    else.
    """
    out = Path(out_folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return made_before(out, SOURCE)
    labels, integers, ids = draw()
    rows = np.empty((TRAIN_SAMPLES + TEST_SAMPLES, COLUMNS), dtype="<i4")
    rows[:, 0], rows[:, 1 : 1 + INTEGERS], rows[:, 1 + INTEGERS :] = labels, integers, ids
    out.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        checksums = {}
        for name, part in ((TRAIN_FILE, rows[:TRAIN_SAMPLES]), (TEST_FILE, rows[TRAIN_SAMPLES:])):
            part.tofile(new / name)
            checksums[name] = hashlib.sha256(part.data).hexdigest()
        checksums[COUNTS_FILE] = write_counts(new / COUNTS_FILE, TABLE_ROWS)
        meta = Meta(
            table_rows=TABLE_ROWS,
            train_samples=TRAIN_SAMPLES,
            test_samples=TEST_SAMPLES,
            source=SOURCE,
            train_positives=int(labels[:TRAIN_SAMPLES].sum()),
            test_positives=int(labels[TRAIN_SAMPLES:].sum()),
            sha256=checksums,
            settings={"seed": SEED},
        )
        write_meta(new, meta)
        new.chmod(0o755)
        try:
            os.rename(new, out)
        except OSError:  # another process was quicker: its data is the same
            return made_before(out, SOURCE)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    progress(f"{out}: {TRAIN_SAMPLES:,} + {TEST_SAMPLES:,} generated samples, {labels.mean():.2%} clicks")
    return meta


def made_before(out: Path, source: str) -> Meta:
    """The data set of `source` that is in `out`; UserError if what is there is another or a damaged one."""
    if not out.is_dir() or not (out / META_FILE).is_file():
        raise UserError(f"{out} is there, but is no data set of this program: choose another folder, or remove it")
    meta = read_meta(out)
    if meta.source != source:
        raise UserError(f"{out} holds another data set ({meta.source}): choose another folder, or remove it")
    return meta


def draw() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels [n], integers [n, 13] and ids [n, 26] of the training samples and then the test samples."""
    labels, integers, ids, _ = draw_with_teacher()
    return labels, integers, ids


def draw_with_teacher() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`draw`, and the teacher's log-odds [n] behind the labels."""
    rng = np.random.default_rng(SEED)
    n = TRAIN_SAMPLES + TEST_SAMPLES
    ids = np.empty((n, TABLES), dtype=np.int32)
    logits = np.zeros(n)
    for table, rows in enumerate(TABLE_ROWS):
        share = np.arange(1, rows + 1) ** -ZIPF
        # A random permutation, so that a frequent id is no small number.
        ids[:, table] = rng.permutation(rows)[np.searchsorted(np.cumsum(share / share.sum())[:-1], rng.random(n))]
        logits += rng.normal(0, ID_SD, rows)[ids[:, table]]
    for first, second in PAIRS:
        left, right = rng.normal(size=(TABLE_ROWS[first], 3)), rng.normal(size=(TABLE_ROWS[second], 3))
        logits += PAIR_WEIGHT * np.einsum("ij,ij->i", left[ids[:, first]], right[ids[:, second]])
    integers = np.exp(1.5 + 1.2 * rng.standard_normal((n, INTEGERS))).astype(np.int32)
    logs = np.log1p(integers)
    logs = (logs - logs.mean(axis=0)) / logs.std(axis=0)
    logits += logs @ rng.normal(0, INTEGER_SD, INTEGERS) + 0.3 * logs[:, 0] * logs[:, 1]
    logits += offset_for(CLICK_RATE, logits)
    labels = rng.random(n) < sigmoid(logits)
    return labels.astype(np.int32), integers, ids, logits


def offset_for(rate: float, logits: np.ndarray) -> float:
    """What to add to the logits so that the mean probability is `rate`, by bisection."""
    low, high = -40.0, 40.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if sigmoid(logits + middle).mean() < rate else (low, middle)
    return middle


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
