"""One run in one folder: the result log, the resolved configuration, checkpoints, the summary.

result_0.txt      the official result log
config.json       the configuration that made it, the versions of what computed, and the machine
checkpoints/      see checkpoint.py
summary.json      how it ended
"""

import dataclasses
import fcntl
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from mlperf_fast import __version__
from mlperf_fast.config import RunConfig, flatten, to_json
from mlperf_fast.errors import UserError
from mlperf_fast.loop import checkpoint, dist
from mlperf_fast.loop.caches import drop_caches
from mlperf_fast.loop.dist import Ranks
from mlperf_fast.loop.evaluation import require_evaluation
from mlperf_fast.loop.graph import eager_reason
from mlperf_fast.loop.terminal import Outcome, summary
from mlperf_fast.loop.train import train
from mlperf_fast.ops import backend
from mlperf_fast.submission import machine, runlog
from mlperf_fast.workloads.base import Workload

Value = TypeVar("Value")


def run(
    w: Workload,
    cfg: RunConfig,
    origins: dict[str, str],
    preset: str,
    out: Path,
    resume: bool,
    say: Callable[[str], None],
) -> Outcome:
    """Trains `w` once under this process's launcher, into the folder `out`. With `resume`, goes on where `out` stopped.

    Raises UserError for anything a user can mend; every rank raises the same.
    """
    with started(cfg) as ranks:
        refuse_false_claims(w, cfg)
        require_evaluation(w, cfg)
        on_first(ranks, lambda: w.ensure_data(cfg, say))
        require_names(cfg)
        dropped = not resume and drop_caches(cfg.drop_caches, ranks)
        with folder_lock(ranks, out):
            state = on_first(ranks, lambda: resumed_state(out) if resume else new_state(cfg, out))
            with runlog.open_log(out / "result_0.txt", ranks.rank, resume_at=state["log_offset"]) as log:
                if resume:
                    log.event("resumed", state["step"])
                else:
                    on_first(ranks, lambda: save_config(w, cfg, origins, preset, ranks, out))
                    open_submission(w, cfg, log, preset, state["seed"], dropped)
                outcome = (w.train or train)(w, cfg, ranks, log, out, state["seed"], preset, resume)
            if ranks.is_first:
                (out / "summary.json").write_text(json.dumps(dataclasses.asdict(outcome), indent=1) + "\n")
                say(summary(outcome))
            return outcome


@contextmanager
def started(cfg: RunConfig) -> Iterator[Ranks]:
    """This process among the others, with the threads and the default backend that the configuration names."""
    ranks = dist.start(cfg.device)
    try:
        if cfg.threads:
            torch.set_num_threads(cfg.threads)
        backend.set_default_backend(cfg.backend)
        eager_reason(cfg.cuda_graph, ranks)  # refuses what can't be, before anything is written
        yield ranks
    finally:
        backend.set_default_backend(None)
        dist.stop()


def refuse_false_claims(w: Workload, cfg: RunConfig) -> None:
    """Stops a run whose log would claim what it may not: the rules of the closed division that a config can break."""
    if cfg.division != "closed":
        return
    if cfg.is_demo:
        raise UserError("a demo is never a closed result: leave division=open")
    if cfg.seed is not None:
        raise UserError("the closed division draws its seed from the system: leave seed unset")
    official, wanted = flatten(w.presets["closed"]()), flatten(cfg)
    for key in wanted:
        fixed = any(key == name or key.startswith(f"{name}.") for name in w.fixed_in_closed)
        if fixed and wanted[key] != official[key]:
            raise UserError(
                f"the closed division fixes {key} at {official[key]}, not {wanted[key]}; set division=open to change it"
            )


def require_names(cfg: RunConfig) -> None:
    """Stops a run that isn't a demo and doesn't say whose it is."""
    for name in ("submission_org", "submission_platform"):
        if not cfg.is_demo and not getattr(cfg, name):
            raise UserError(f"a run that is no demo must say whose it is: --set {name}=NAME")


def on_first(ranks: Ranks, work: Callable[[], Value]) -> Value:
    """`work()`'s result, computed on rank 0 and given to all; a UserError there is raised on every rank."""
    result: Any = None
    error = None
    if ranks.is_first:
        try:
            result = work()
        except UserError as caught:
            error = str(caught)
    result, error = dist.broadcast_object(ranks, (result, error))
    if error is not None:
        raise UserError(error)
    return result


def new_state(cfg: RunConfig, out: Path) -> dict[str, Any]:
    if (out / "result_0.txt").exists():
        raise UserError(f"{out} holds a run already: go on with it by `--resume {out}`, or choose another --out")
    return {"seed": cfg.seed if cfg.seed is not None else runlog.draw_seed(), "log_offset": None}


def resumed_state(out: Path) -> dict[str, Any]:
    if not (out / "result_0.txt").is_file():
        raise UserError(f"{out} holds no run to resume (no result_0.txt)")
    return checkpoint.latest(out / "checkpoints")


@contextmanager
def folder_lock(ranks: Ranks, out: Path):
    """Holds `out` for this run alone; made if missing. The lock goes with the process, however it ends."""

    def take() -> int | None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            handle = os.open(out / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise UserError(f"can't write to the run's folder {out}: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise UserError(f"another run is writing to {out}: wait for it, or choose another --out") from None
        return handle

    handle = on_first(ranks, take)
    try:
        yield
    finally:
        if ranks.is_first and handle is not None:
            os.close(handle)


def open_submission(w: Workload, cfg: RunConfig, log: Any, preset: str, seed: int, dropped: bool) -> None:
    """The lines a log begins with: who, what, the run's one seed, and whether the caches were dropped just now."""
    runlog.log_submission(
        log,
        w.name,
        is_demo=cfg.is_demo,
        division=cfg.division,
        status=cfg.submission_status,
        org=cfg.submission_org,
        platform=cfg.submission_platform or "this machine",
    )
    runlog.log_seed(log, seed)
    log.event("preset", preset)
    log.event("cache_clear", dropped)


def save_config(w: Workload, cfg: RunConfig, origins: dict[str, str], preset: str, ranks: Ranks, out: Path) -> None:
    values = {
        "workload": w.name,
        "preset": preset,
        "config": to_json(cfg),
        "origins": origins,
        "versions": versions(ranks),
        "processes": ranks.world,
        "machine": describe_machine(cfg, ranks, out),
    }
    (out / "config.json").write_text(json.dumps(values, indent=1) + "\n")


def versions(ranks: Ranks) -> dict[str, str]:
    """What computed: this package, torch and, on a GPU, what torch calls there."""
    found = {"mlperf_fast": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
    if ranks.device.type == "cuda":
        parts = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        found |= {name: str(version) for name, version in parts.items() if version is not None}
        if torch.distributed.is_nccl_available():
            found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def describe_machine(cfg: RunConfig, ranks: Ranks, out: Path) -> dict[str, Any]:
    """The fields of a system description that this node, one among equals, can tell: the run is filed with them."""
    data = getattr(getattr(cfg, "data", None), "path", None)
    found = machine.facts(Path(data) if data else out)
    each = dist.processes_per_node()
    if each:
        found["number_of_nodes"] = str(ranks.world // each)
    if ranks.device.type != "cuda":  # the node may have some, but the result isn't theirs
        found = {name: value for name, value in found.items() if not name.startswith("accelerator")}
        found |= machine.NO_ACCELERATOR
    elif each:
        found["accelerators_per_node"] = str(each)  # one process each
    return found
