"""A BERT data set of a few hundred short sequences in the true format, and the settings that train on it in seconds."""

from pathlib import Path

import numpy as np

from mlperf_fast.workloads.bert import shards, verify
from mlperf_fast.workloads.bert.sequences import Sequences, starts_of

WORDS, LONGEST, MOST_MASKED = 61, 24, 4
TRAIN, EVAL = (120, 104), (40,)
MASK = 4


def sequences(n: int, seed: int) -> Sequences:
    """Mostly one word over and over in each sequence, so that a model can learn what is masked."""
    rng = np.random.default_rng(seed)
    lengths = np.where(rng.random(n) < 0.3, LONGEST, rng.integers(6, LONGEST + 1, n))
    tokens = []
    for length in lengths:
        word = int(rng.integers(8))
        tokens += [5 + word if rng.random() < 0.9 else int(rng.integers(5, WORDS)) for _ in range(length)]
    words, starts = np.array(tokens, dtype=np.int16), starts_of(lengths)
    masked = np.maximum(1, np.round(0.15 * lengths)).astype(int)
    positions = [np.sort(rng.choice(np.arange(1, size), k, replace=False)) for size, k in zip(lengths, masked)]  # noqa: B905
    at = np.repeat(starts[:-1], masked) + np.concatenate(positions)
    labels = words[at].copy()
    words[at] = MASK
    return Sequences(
        words, starts, rng.integers(2, lengths - 1).astype(np.int16), np.concatenate(positions).astype(np.int16),
        labels, starts_of(masked), rng.integers(0, 2, n).astype(np.int8),
    )  # fmt: skip


def write(folder: Path) -> Path:
    names: dict[str, dict[str, int]] = {"train": {}, "eval": {}}
    for part, sizes in (("train", TRAIN), ("eval", EVAL)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for number, size in enumerate(sizes):
            name = f"{part}/part_{number:05d}_of_{len(sizes):05d}.hdf5"
            shards.write_hdf5(folder / name, sequences(size, 10 * number + size))
            names[part][name] = size
    found = {part: verify.inspect(folder, names[part], WORDS, LONGEST, MOST_MASKED) for part in names}
    assert not found["train"].problems + found["eval"].problems
    meta = verify.Meta(
        WORDS, LONGEST, MOST_MASKED, "varlength", names["train"], names["eval"], found["train"].tokens,
        found["train"].lengths.tolist(), found["train"].sha256 | found["eval"].sha256, "tests",
    )  # fmt: skip
    verify.write_meta(folder, meta)
    return folder


def settings(folder: Path, *more: str) -> list[str]:
    """Arguments of `run bert` for this data: 60 steps, an evaluation every 10, a target out of reach."""
    sets = (
        f"data.path={folder}", "data.generated=none", "phase1_steps=0", "batch_size=16", "eval_batch_size=9",
        "eval_every_samples=160", "log_every=5", "target=0.99", "optimizer.total=60", "optimizer.lr=0.02",
        "model.hidden=64", "model.intermediate=96", "threads=1", *more,
    )  # fmt: skip
    return [part for setting in sets for part in ("--set", setting)]
