"""What a run starts from, and what it must beat: made here, since the benchmark's own files are no longer published.

    FOLDER/start.pt        the network to start with            optimizer.pt   the optimizer's state with it
    FOLDER/games/16/       the games of the last generations before it, `window` of them
    FOLDER/target.pt       the network to beat
    FOLDER/meta.json       the recipe that made them, and each file's SHA-256

The recipe: two runs from nothing by the preset's own rules, with different seeds. The first gives the start, after
`data.start_iterations` iterations; the second, trained on, the target after `data.target_iterations`. Both begin with a
generation of a network that knows nothing (selfplay.bootstrap_rules). Killed, the command goes on where it stopped.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mlperf_fast.config import flatten
from mlperf_fast.errors import UserError
from mlperf_fast.loop.dist import Ranks
from mlperf_fast.submission.runlog import NullLog
from mlperf_fast.workloads.base import Workload
from mlperf_fast.workloads.minigo import evaluation, loop, model, records, window, workers
from mlperf_fast.workloads.minigo.presets import Data, MinigoConfig

START_SEED, TARGET_SEED = 1, 2
# What of a configuration is the recipe: all but who runs it, where, and how it is scored.
RECIPE = (
    "size", "komi", "model.", "play.", "bootstrap", "games", "window", "filter_amount", "optimizer.", "batch_size",
    "data.start_iterations", "data.target_iterations",
)  # fmt: skip
# Of these only the speed depends, or who plays where.
SPEED = ("play.ranks", "play.workers", "play.games", "play.cache_mb", "play.precision")


def recipe(cfg: MinigoConfig) -> dict[str, Any]:
    found = {key: value for key, value in flatten(cfg).items() if key.startswith(RECIPE) and key not in SPEED}
    return json.loads(json.dumps(found))  # tuples are lists there


def prepare(w: Workload, cfg: MinigoConfig, out: Path | None, say: Callable[[str], None]) -> None:
    if cfg.data.path is None:
        raise UserError("this preset needs no data: it starts from nothing, and plays against "
                        f"match.opponent={cfg.match.opponent}")  # fmt: skip
    target = out or evaluation.folder(cfg)
    if (target / "meta.json").exists():
        verify(cfg, target, say)
        return
    say(f"playing and training the start ({cfg.data.start_iterations} iterations) and the target "
        f"({cfg.data.target_iterations}) into {target}")  # fmt: skip
    alone = replace(cfg, data=Data(), match=replace(cfg.match, opponent="playouts"), play=replace(cfg.play, ranks=0))
    target.mkdir(parents=True, exist_ok=True)
    begun = target / "making" / "recipe.json"
    if begun.exists() and json.loads(begun.read_text()) != recipe(cfg):
        raise UserError(
            f"{target / 'making'} was begun by another recipe: remove that folder, or go on with its preset"
        )
    begun.parent.mkdir(exist_ok=True)
    begun.write_text(json.dumps(recipe(cfg)))
    run = trained(w, alone, target / "making" / "start", START_SEED, cfg.data.start_iterations)
    number = cfg.data.start_iterations
    shutil.copyfile(workers.model_path(run.folder, number), target / "start.pt")
    torch.save(run.step.optimizer.state_dict(), target / "optimizer.pt")
    for generation in range(max(0, number - cfg.window), number):
        copy_generation(run.folder / "games" / str(generation), target / "games" / str(generation), cfg, run.seed)
    run = trained(w, alone, target / "making" / "target", TARGET_SEED, cfg.data.target_iterations)
    shutil.copyfile(workers.model_path(run.folder, cfg.data.target_iterations), target / "target.pt")
    files = {str(path.relative_to(target)): digest(path) for path in listed(target)}
    meta = {"recipe": recipe(cfg), "seeds": [START_SEED, TARGET_SEED], "files": files}
    partial = target / "meta.partial"
    partial.write_text(json.dumps(meta, indent=1) + "\n")
    partial.replace(target / "meta.json")
    shutil.rmtree(target / "making")
    say(f"{target}: start and target are there")


def trained(w: Workload, cfg: MinigoConfig, folder: Path, seed: int, iterations: int) -> loop.Training:
    """A run of so many iterations without log and match, gone on with where it was broken off."""
    device = torch.device("cuda" if cfg.device != "cpu" and torch.cuda.is_available() else "cpu")
    folder.mkdir(parents=True, exist_ok=True)
    cfg = replace(cfg, max_epochs=iterations)
    resume = (folder / "checkpoints" / "latest.json").exists()
    alone = Ranks(0, 1, device)
    run = loop.begin(w, cfg, alone, alone, NullLog(), folder, seed, resume)
    try:
        loop.learn(run, iterations)
    finally:
        run.terminal.close()
        run.step.close()
    return run


def copy_generation(source: Path, to: Path, cfg: MinigoConfig, seed: int) -> None:
    """The games that training drew, in one file."""
    chosen = window.choose(source, cfg.games, seed)
    _, games = window.read_generation(source, chosen, cfg.size)
    if to.exists():
        shutil.rmtree(to)
    records.write(games, to, "start")


def listed(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".pt", ".npz") and "making" not in path.parts)


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require(cfg: MinigoConfig) -> None:
    """UserError where the start and the target aren't there, or were made by another recipe."""
    folder = evaluation.folder(cfg)
    try:
        meta = json.loads((folder / "meta.json").read_text())
        made, wanted = meta["recipe"], recipe(cfg)
    except FileNotFoundError:
        raise UserError(f"{folder} holds no start and target: make them with `mlperf-fast prepare minigo --preset …`, "
                        "which plays and trains both") from None  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'meta.json'} is damaged ({error}): make the folder anew") from None
    differing = {key: f"{key} {made.get(key)} (here {wanted[key]})" for key in wanted if made.get(key) != wanted[key]}
    if cfg.division == "closed" and differing:
        raise UserError(f"{folder} was made by another recipe: {'; '.join(differing.values())}")
    shapes = [text for key, text in differing.items() if key == "size" or key.startswith("model.")]
    if shapes:
        raise UserError(f"{folder} holds networks of another shape: {'; '.join(shapes)}")


def verify(cfg: MinigoConfig, out: Path | None, say: Callable[[str], None]) -> None:
    """By content: each file's SHA-256, networks that load, games that can be read."""
    folder = out or evaluation.folder(cfg)
    require(replace(cfg, data=replace(cfg.data, path=str(folder))))
    files: dict[str, str] = json.loads((folder / "meta.json").read_text())["files"]
    there = {str(path.relative_to(folder)) for path in listed(folder)}
    if there != files.keys():
        odd = ", ".join(sorted(there ^ files.keys()))
        raise UserError(f"{folder}: its meta.json and its files differ: {odd}")
    for name, wanted in files.items():
        if digest(folder / name) != wanted:
            raise UserError(f"{folder / name} isn't the file that was made here: its SHA-256 differs")
    for name in ("start.pt", "target.pt"):
        model.load(folder / name, cfg.size)
    games = sum(len(records.read(folder / name)) for name in files if name.endswith(".npz"))
    say(f"{folder}: {len(files)} files as they were made; {games} games to start with")
