"""Minigo as the command line sees it; its loop is its own (loop.py)."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlperf_fast.config import flatten
from mlperf_fast.errors import UserError
from mlperf_fast.loop.dist import Ranks
from mlperf_fast.optim.optimizer import Optimizer
from mlperf_fast.optim.schedules import piecewise_constant
from mlperf_fast.optim.sgd import SGD
from mlperf_fast.workloads.base import Progress, Workload
from mlperf_fast.workloads.minigo import evaluation
from mlperf_fast.workloads.minigo import model as minigo
from mlperf_fast.workloads.minigo import prepare as preparing
from mlperf_fast.workloads.minigo.board import LEAST_SIZE, MOST_SIZE, PLANES
from mlperf_fast.workloads.minigo.inference import Inference
from mlperf_fast.workloads.minigo.loop import train
from mlperf_fast.workloads.minigo.presets import PRESETS, MinigoConfig
from mlperf_fast.workloads.minigo.records import Record
from mlperf_fast.workloads.minigo.selfplay import SelfPlay
from mlperf_fast.workloads.minigo.window import Batch, Examples, Window

POSITIVE = (
    "batch_size", "max_epochs", "games", "window", "eval_every", "model.width", "play.games", "play.readouts",
    "play.fast_readouts", "play.leaves", "match.games", "match.readouts", "match.opponent_readouts",
)  # fmt: skip


def ensure_data(cfg: MinigoConfig, say: Callable[[str], None]) -> None:
    """Refuses what makes no run; the start and the target must be there where the preset names their folder."""
    require_sizes(cfg)
    if cfg.data.path:
        preparing.require(cfg)
    elif cfg.match.opponent == "checkpoint":
        raise UserError("match.opponent=checkpoint, but data.path names no folder with one: set it, or play against "
                        "match.opponent=playouts")  # fmt: skip


def require_sizes(cfg: MinigoConfig) -> None:
    """UserError for numbers that make no run."""
    values = flatten(cfg)
    for key in POSITIVE:
        if values[key] < 1:
            raise UserError(f"{key} is {values[key]}, expected a whole number of 1 or more")
    if not LEAST_SIZE <= cfg.size <= MOST_SIZE:
        raise UserError(f"size is {cfg.size}, expected a board of {LEAST_SIZE} to {MOST_SIZE} lines")
    if not 0 < cfg.filter_amount <= 1:
        raise UserError(f"filter_amount is {cfg.filter_amount}, expected a share of more than 0, at most 1")
    if not 0 <= cfg.play.fast_share < 1:
        raise UserError(f"play.fast_share is {cfg.play.fast_share}, expected a share of 0 or more, below 1")
    if min(cfg.play.ranks, cfg.play.workers, cfg.play.cache_mb, cfg.model.blocks) < 0:
        raise UserError("play.ranks, play.workers, play.cache_mb and model.blocks are counts: expected 0 or more")
    if cfg.play.resign and not (len(cfg.play.resign) == 2 and 0 < cfg.play.resign[0] <= cfg.play.resign[1] <= 1):
        raise UserError(
            f"play.resign is {list(cfg.play.resign)}, expected two numbers up to 1, the least first, or none"
        )
    o = cfg.optimizer
    if len(o.lr_rates) != len(o.lr_boundaries) + 1 or list(o.lr_boundaries) != sorted(o.lr_boundaries):
        raise UserError(f"optimizer.lr_rates are {len(o.lr_rates)} for {len(o.lr_boundaries)} boundaries: expected one "
                        "rate more than there are boundaries, which ascend")  # fmt: skip


def prepare_data(cfg: MinigoConfig, raw: Path | None, out: Path | None, say: Callable[[str], None]) -> None:
    """`mlperf-fast prepare minigo`: plays and trains the start and the target by the stated recipe."""
    if raw is not None:
        raise UserError(
            "minigo takes no raw data: the start and the target are played and trained here; leave --raw out"
        )
    require_sizes(cfg)
    preparing.prepare(WORKLOAD, cfg, out, say)


def verify_data(cfg: MinigoConfig, out: Path | None, say: Callable[[str], None]) -> None:
    preparing.verify(cfg, out, say)


def progress(cfg: MinigoConfig) -> Progress:
    """Steps aren't known ahead: what is counted here are iterations."""
    return Progress(eval_every=cfg.eval_every, max_steps=cfg.max_epochs, train_samples=None,
                    eval_samples=cfg.match.games, epoch_num=float)  # fmt: skip


def model(cfg: MinigoConfig, ranks: Ranks, seed: int) -> minigo.DualNet:
    if cfg.batch_size % ranks.world:
        raise UserError(f"batch_size is {cfg.batch_size}, expected a multiple of the {ranks.world} processes")
    net = minigo.DualNet(cfg.size, cfg.model.width, cfg.model.blocks, ranks.device)
    minigo.initialise(net, seed)
    return net


def loss(net: minigo.DualNet, batch: Batch) -> Tensor:
    return net.loss(*batch)


def optimizer(cfg: MinigoConfig, net: minigo.DualNet) -> Optimizer:
    """SGD with momentum; the loss's L2 term is its weight decay."""
    o = cfg.optimizer
    schedule = partial(piecewise_constant, rates=o.lr_rates, boundaries=o.lr_boundaries)
    return SGD(
        net.named_parameters(), schedule, net.value.weight.device, momentum=o.momentum, weight_decay=o.weight_decay,
        undecayed=minigo.undecayed,
    )  # fmt: skip


def synthetic(cfg: MinigoConfig, ranks: Ranks) -> Batch:
    """A made-up batch with the shapes of a real one."""
    rows, generator = cfg.batch_size // ranks.world, torch.Generator().manual_seed(ranks.rank)
    planes = torch.randint(2, (rows, PLANES, cfg.size, cfg.size), dtype=torch.uint8, generator=generator)
    pi = torch.rand(rows, cfg.size**2 + 1, generator=generator).softmax(1)
    z = torch.randint(2, (rows,), generator=generator).float() * 2 - 1
    return Batch(*(tensor.to(ranks.device) for tensor in (planes, pi, z)))


def train_batches(cfg: MinigoConfig, ranks: Ranks, seed: int, first: int) -> AbstractContextManager[Iterable[Batch]]:
    """Batches of the first games of a new network: for who wants the step alone. A run's are loop.py's."""

    @contextmanager
    def opened() -> Iterator[Iterator[Batch]]:
        play = SelfPlay(cfg, cfg.play, Inference(model(cfg, ranks, seed).eval()), seed=seed)
        games: list[Record] = []
        while len(games) < cfg.games:
            games += play.round(0)
        planes, pi = (
            torch.from_numpy(np.concatenate([getattr(game, part) for game in games])) for part in ("planes", "pi")
        )
        z = torch.cat([torch.full((len(game.q),), game.z) for game in games])
        window = Window(cfg, ranks)
        window.add(Examples(planes, pi, z))
        yield (batch for epoch in range(cfg.max_epochs) for batch in window.batches(seed, epoch))

    return opened()


def evaluate(cfg: MinigoConfig, ranks: Ranks, net: minigo.DualNet) -> float:
    """The share of the games against the opponent that the network wins."""
    return evaluation.evaluate(cfg, ranks, net, 0)[0].win_rate


def hyperparameters(cfg: MinigoConfig, ranks: Ranks) -> dict[str, Any]:
    """The closed division's keys, as NVIDIA's logs have them."""
    o, play = cfg.optimizer, cfg.play
    return {
        "lr_rates": list(o.lr_rates),
        "lr_boundaries": list(o.lr_boundaries),
        "train_batch_size": cfg.batch_size,
        "opt_weight_decay": o.weight_decay,
        "filter_amount": cfg.filter_amount,
        "num_readouts": play.readouts,
        "virtual_losses": play.leaves,
        "value_init_penalty": play.value_init_penalty,
        "holdout_pct": 0,
        "disable_resign_pct": 0.0,
        "resign_threshold": -play.resign[0] if play.resign else None,
        "min_selfplay_games_per_generation": cfg.games,
        "window_size": cfg.window,
        "eval_games": cfg.match.games,
    }


def check(net: minigo.DualNet) -> None:
    """Nothing that a device records."""


WORKLOAD = Workload(
    name="minigo",
    presets=PRESETS,
    fixed_in_closed=(
        "target", "size", "komi", "model", "games", "window", "filter_amount", "bootstrap", "optimizer.momentum",
        "optimizer.weight_decay", "play.readouts", "play.fast_readouts", "play.fast_share", "play.leaves",
        "play.value_init_penalty", "play.noise_alpha", "play.noise_mix", "play.soft_moves", "play.resign",
        "play.own_eyes", "play.prune", "match", "eval_every",
    ),
    prepare=prepare_data,
    verify=verify_data,
    ensure_data=ensure_data,
    progress=progress,
    model=model,
    loss=loss,
    optimizer=optimizer,
    synthetic=synthetic,
    train_batches=train_batches,
    evaluate=evaluate,
    hyperparameters=hyperparameters,
    check=check,
    train=train,
)  # fmt: skip
