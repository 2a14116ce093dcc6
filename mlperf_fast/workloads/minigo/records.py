"""Games that were played, and what they teach: the files that self-play leaves and training reads.

    write(records, folder, "0-1-000007")     folder/0-1-000007.3.npz: three games
    count(folder)                            games in whole files, by their names alone
    games = read(path)

A file is numpy's npz, without pickle. It appears under its name when it is complete, so a reader sees whole files only.
"""

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlperf_fast.errors import UserError
from mlperf_fast.workloads.minigo.board import LEAST_SIZE, MOST_SIZE, PLANES


@dataclass(frozen=True, eq=False)
class Record:
    """One game. Its examples are the moves that were read in full."""

    size: int
    model: int  # that chose the last move
    score: float  # Black's, komi taken off; of a game that was given up +1 or -1, the winner's sign
    resigned: bool
    moves: np.ndarray  # int16 [m]
    planes: np.ndarray  # uint8 [k, bytes]: 13 N N bits each
    pi: np.ndarray  # float32 [k, N N + 1]
    q: np.ndarray  # float32 [k], the search's value of each example's position, Black's

    @property
    def z(self) -> float:
        """What the value head learns: 1 where Black won, -1 where White did, 0 for a draw."""
        return float(np.sign(self.score))


def packed_bytes(size: int) -> int:
    return -(-PLANES * size**2 // 8)


def write(records: Sequence[Record], folder: Path, name: str) -> Path:
    """One file of games of one size. Raises UserError where the disk refuses; then no file of that name is there."""
    path = folder / f"{name}.{len(records)}.npz"
    partial = folder / f"{name}.partial"
    arrays = {
        "size": np.array(records[0].size),
        "model": np.array([record.model for record in records], np.int32),
        "score": np.array([record.score for record in records], np.float32),
        "resigned": np.array([record.resigned for record in records]),
        "lengths": np.array([len(record.moves) for record in records], np.int32),
        "examples": np.array([len(record.planes) for record in records], np.int32),
    }
    arrays |= {key: np.concatenate([getattr(record, key) for record in records]) for key in PARTS}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"games can't be written to {folder}: {error.strerror}. Free some space and resume") from error
    return path


PARTS = ("moves", "planes", "pi", "q")


def files(folder: Path) -> list[Path]:
    """Whole files of games, by name."""
    return sorted(folder.glob("*.npz")) if folder.is_dir() else []


def games_in(path: Path) -> int:
    """By the file's name alone. UserError for a name that `write` doesn't make."""
    number = path.name.split(".")[-2]
    if not number.isdecimal():
        raise UserError(f"{path} isn't named as files of games are, such as 0-1-000007.3.npz; move it elsewhere")
    return int(number)


def count(folder: Path) -> int:
    return sum(map(games_in, files(folder)))


def read(path: Path) -> list[Record]:
    """The games of a file. UserError for one that is damaged or holds something else."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in arrays.files}
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} holds no games, or is damaged ({error}); remove it, others aren't concerned") from None
    fault = _fault(found)
    if fault:
        raise UserError(f"{path} holds no games of this package: {fault}")
    size, moves = int(found["size"]), np.cumsum(found["lengths"])[:-1]
    examples = np.cumsum(found["examples"])[:-1]
    parts = {key: np.split(found[key], moves if key == "moves" else examples) for key in PARTS}
    return [
        Record(size, int(model), float(score), bool(resigned), *(parts[key][i] for key in PARTS))
        for i, (model, score, resigned) in enumerate(
            zip(found["model"], found["score"], found["resigned"], strict=True)
        )
    ]


def _fault(found: dict[str, np.ndarray]) -> str:
    wanted = {"size", "model", "score", "resigned", "lengths", "examples", *PARTS}
    if wanted - found.keys():
        return f"it lacks {', '.join(sorted(wanted - found.keys()))}"
    if found["size"].shape != () or not LEAST_SIZE <= found["size"] <= MOST_SIZE:
        return f"its board has {found['size']} lines, expected {LEAST_SIZE} to {MOST_SIZE}"
    n, size = len(found["model"]), int(found["size"])
    for key in ("score", "resigned", "lengths", "examples"):
        if found[key].shape != (n,):
            return f"{key} has shape {list(found[key].shape)}, expected [{n}]"
    if n == 0 or (found["lengths"] < 0).any() or (found["examples"] < 0).any():
        return "it has no games, or less than no moves"
    m, k = int(found["lengths"].sum()), int(found["examples"].sum())
    shapes = {"moves": (m,), "planes": (k, packed_bytes(size)), "pi": (k, size**2 + 1), "q": (k,)}
    for key, shape in shapes.items():
        if found[key].shape != shape:
            return f"{key} has shape {list(found[key].shape)}, expected {list(shape)}"
    if not np.isfinite(found["pi"]).all() or (found["pi"] < 0).any():
        return "a share of visits is no number, or below 0"
    return ""
