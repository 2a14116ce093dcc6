"""A DLRM data set of a few thousand rows in the true format, and the settings that train on it in a second."""

import gzip
import json
from pathlib import Path

import numpy as np

TABLE_ROWS = (50, 3, 200, 7, 11, 2, 90, 4, 63, 300, 25, 12, 10, 8, 40, 15, 4, 31, 14, 120, 77, 60, 5, 9, 20, 36)
TRAIN, TEST = 4000, 1000


def write(folder: Path, train: int = TRAIN, test: int = TEST, seed: int = 0) -> Path:
    """Rows whose label depends on a few ids and integers, so that a model can learn it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    effects = [rng.normal(0, 1, rows) for rows in TABLE_ROWS]
    for name, samples in (("train", train), ("test", test)):
        ids = np.stack([rng.integers(rows, size=samples) for rows in TABLE_ROWS], axis=1)
        integers = np.floor(np.exp(rng.normal(1, 1, (samples, 13)))).astype(int)
        logit = sum(effects[t][ids[:, t]] for t in range(0, 26, 5)) + 0.5 * np.log1p(integers[:, 0]) - 1
        labels = rng.random(samples) < 1 / (1 + np.exp(-logit))
        rows = np.concatenate([labels[:, None], integers, ids], axis=1).astype("<i4")
        rows.tofile(folder / f"terabyte_processed_{name}.bin")
    np.savez(folder / "day_fea_count.npz", counts=np.array(TABLE_ROWS, dtype=np.int32))
    meta = {"table_rows": TABLE_ROWS, "train_samples": train, "test_samples": test, "source": "tests"}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def settings(folder: Path, *more: str) -> list[str]:
    """Arguments of `run dlrm` for this data: 4 epochs of 63 steps, 4 evaluations each, a target out of reach."""
    sets = (
        f"data.path={folder}", "data.generated=none", "batch_size=64", "eval_batch_size=256", "max_epochs=4",
        "evals_per_epoch=4", "log_every=5", "target=0.99", "optimizer.decay_start=200", "optimizer.decay_steps=40",
        "optimizer.lr=0.5", "threads=1", *more,
    )  # fmt: skip
    return [part for setting in sets for part in ("--set", setting)]


def campaign(folder: Path, data: Path, runs: int = 5) -> Path:
    """A folder as a campaign leaves it, of runs that take a moment and reach their target."""
    from mlperf_fast import cli

    for run in range(runs):
        out = folder / f"runs/{run}"
        sets = settings(data, "max_epochs=1", "target=0.3", "submission_org=Ajax")
        assert cli.main(["run", "dlrm", "--out", str(out), *sets]) == 0
        (out / "result_0.txt").rename(folder / f"result_{run}.txt")
    return folder


def records(log: Path) -> list[dict]:
    """The records of a result log, in file order."""
    lines = [line for line in log.read_text().splitlines() if line.startswith(":::MLLOG ")]
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in lines]


def losses(log: Path) -> dict[int, float]:
    """step -> training loss, as the log's tracked_stats hold them."""
    return {
        record["value"]["train_step"]: record["value"]["loss"]
        for record in records(log)
        if record["key"] == "tracked_stats"
    }


def write_days(folder: Path, days: int = 2, rows: int = 400, seed: int = 0) -> Path:
    """Raw click logs as Criteo ships them: day_N.gz, tab-separated, some fields empty."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for day in range(days):
        lines = []
        for _ in range(rows):
            integers = ["" if rng.random() < 0.2 else str(rng.integers(-1, 50)) for _ in range(13)]
            hashes = ["" if rng.random() < 0.1 else f"{rng.integers(20) * 2654435761 % 2**32:08x}" for _ in range(26)]
            lines.append("\t".join([str(rng.integers(2)), *integers, *hashes]))
        with gzip.open(folder / f"day_{day}.gz", "wt") as file:
            file.write("\n".join(lines) + "\n")
    return folder
