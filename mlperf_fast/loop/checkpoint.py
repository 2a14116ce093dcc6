"""Checkpoints that a kill at any moment can't spoil.

    checkpoints/step-00000100/rank-0.pt     one file a rank: its share of the model, the step's state, its generators
    checkpoints/latest.json                 names the newest complete one; replaced in one rename after all ranks wrote

The order matters: files are flushed to the disk before latest.json names them, and an older checkpoint is removed only
after that. Files load with weights_only=True.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from mlperf_fast.errors import UserError
from mlperf_fast.loop.dist import Ranks, barrier
from mlperf_fast.loop.step import TrainStep, rng_state, set_rng_state


def save(folder: Path, step: TrainStep, ranks: Ranks, notes: dict[str, Any]) -> None:
    """Writes a checkpoint of `step` under `folder`; `notes` (JSON) go into latest.json. Collective."""
    place = folder / f"step-{step.count:08d}"
    place.mkdir(parents=True, exist_ok=True)
    state = {"model": step.model.state_dict(), "step": step.state_dict(), "rng": rng_state(ranks.device)}
    _write(place / f"rank-{ranks.rank}.pt", lambda file: torch.save(state, file))
    barrier(ranks)
    if ranks.is_first:
        latest = {"step": step.count, "world": ranks.world, **notes}
        _write(folder / "latest.json", lambda file: file.write(json.dumps(latest).encode()))
        for old in folder.glob("step-*"):
            if old != place:
                shutil.rmtree(old)


def latest(folder: Path) -> dict[str, Any]:
    """What latest.json says; UserError where there is no complete checkpoint."""
    try:
        return json.loads((folder / "latest.json").read_text())
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no complete checkpoint; a run writes them with --set checkpoint_every=STEPS"
        ) from None
    except ValueError as error:
        raise UserError(f"{folder / 'latest.json'} is damaged ({error}); the run can't be resumed") from None


def load(folder: Path, step: TrainStep, ranks: Ranks) -> None:
    """Puts the newest checkpoint into `step`: weights, optimizer, counters and generators of this rank."""
    found = latest(folder)
    if found["world"] != ranks.world:
        raise UserError(f"the checkpoint in {folder} is of {found['world']} processes; this run has {ranks.world}")
    path = folder / f"step-{found['step']:08d}" / f"rank-{ranks.rank}.pt"
    try:
        state = torch.load(path, map_location=ranks.device, weights_only=True)
        step.model.load_state_dict(state["model"])
        step.load_state_dict(state["step"])
        set_rng_state(state["rng"], ranks.device)
    except (OSError, RuntimeError, KeyError, ValueError, EOFError) as error:
        raise UserError(f"{path} can't be loaded: {error}") from error


def _write(path: Path, write: Any) -> None:
    """Calls `write(file)` on a file that takes `path`'s place only when it is complete and on the disk."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        partial.unlink(missing_ok=True)
        raise UserError(f"the checkpoint {path} can't be written: {error}. Free some space and resume") from error
