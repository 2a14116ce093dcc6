"""Minigo's configuration and its presets."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from mlperf_fast.config import RunConfig

GNUGO = "gnugo --mode gtp --level 1 --chinese-rules --positional-superko --seed 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """path: the folder that `prepare` made, with the state to start from and the one to beat; None: from nothing."""

    path: str | None = None
    start_iterations: int = 0  # after which `prepare` takes its run's state for the start
    target_iterations: int = 0  # after which it takes another run's network for the one to beat


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    width: int = 64
    blocks: int = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """Self-play. A move is read `fast_readouts` times with probability `fast_share`, else `readouts` times; only the
    latter make examples."""

    ranks: int = 0  # the last so many processes of a run play and don't train, the others don't play; 0: all do both
    workers: int = 0  # processes that play while this one trains, of each rank; 0: it plays itself, in turn
    games: int = 64  # in flight, of each worker
    readouts: int = 800
    fast_readouts: int = 80
    fast_share: float = 0.75
    leaves: int = 4  # of a game in one batch
    value_init_penalty: float = 0.2
    noise_alpha: float | None = None  # default: 0.03 * 361 / points
    noise_mix: float = 0.3
    soft_moves: int | None = None  # drawn by visits at a game's start; default: 30 at 19 lines
    resign: tuple[float, ...] = (0.9, 1.0)  # each game's threshold lies between; empty: nobody resigns
    own_eyes: bool = True  # False: none is filled, and a side passes only where it has no other move
    prune: bool = True  # visits that turned out to be of no use teach nothing
    cache_mb: int = 0  # of answers, of each worker
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """SGD. Rate i is for the steps up to boundary i, the checkpoint's own counted in, and the last one for the rest."""

    lr_rates: tuple[float, ...]
    lr_boundaries: tuple[int, ...]
    momentum: float = 0.9
    weight_decay: float = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """An evaluation: half of the games with each colour, no noise, no resigning."""

    games: int = 256
    readouts: int = 100
    opponent: Literal["checkpoint", "playouts", "gtp"] = "checkpoint"
    opponent_readouts: int = 100  # of playouts: random games a move
    command: str = ""  # of gtp: how to start the program


@dataclass(frozen=True, slots=True, kw_only=True)
class MinigoConfig(RunConfig):
    """`max_epochs` iterations, each of at least `games` finished games and one pass over the window's examples."""

    data: Data = Data()
    size: int = 19
    komi: float = 7.5
    model: Model = Model()
    play: Play = Play()
    bootstrap: bool = False  # the first generation plays by its own rules; see bootstrap.py
    games: int = 8192  # of an iteration, and that an iteration takes from each generation of the window
    window: int = 5  # generations
    filter_amount: float = 0.3  # the share of the window's examples that an iteration trains on
    optimizer: Optimizer
    match: Match = Match()
    eval_every: int = 1  # iterations


def demo() -> MinigoConfig:
    """6x6 from nothing, against a search by random games; komi 4.5, so that neither colour wins by itself.

    The target is reached by network 14, 10, 12, 12, 12 with seeds 1 to 5, at 0.67, 0.55, 0.55, 0.61, 0.52; two before
    they are at 0.44, 0.33, 0.49, 0.44, 0.22.
    """
    return MinigoConfig(
        is_demo=True,
        size=6,
        komi=4.5,
        batch_size=64,
        target=0.5,
        max_epochs=16,
        log_every=50,
        threads=1,
        model=Model(width=32, blocks=2),
        play=Play(
            workers=2, games=64, readouts=32, fast_readouts=8, soft_moves=6, resign=(), own_eyes=False, prune=True
        ),
        games=128,
        filter_amount=0.5,
        optimizer=Optimizer(lr_rates=(0.02,), lr_boundaries=()),
        match=Match(games=128, readouts=32, opponent="playouts", opponent_readouts=100),
        eval_every=2,
    )


def demo_checkpoint() -> MinigoConfig:
    """The demo in the form of the benchmark: from a checkpoint against a checkpoint, both made by `prepare`."""
    return replace(
        demo(),
        data=Data(path="~/.cache/mlperf_fast/minigo/6x6", start_iterations=2, target_iterations=6),
        bootstrap=True,
        max_epochs=8,
        match=Match(games=128, readouts=32),
    )


def gnugo_9x9() -> MinigoConfig:
    """9x9 from nothing against GNU Go at its first level: a night on two cores, half a minute an iteration.

    Needs Debian's package gnugo. No run to the end was made: after 60 iterations, 40 minutes, it won 3 to 6 % of its
    games.
    """
    return MinigoConfig(
        is_demo=True,
        size=9,
        komi=6.5,
        batch_size=128,
        target=0.5,
        max_epochs=800,
        threads=1,
        model=Model(width=32, blocks=3),
        play=Play(workers=2, games=64, readouts=64, fast_readouts=16, resign=(), own_eyes=False, cache_mb=256),
        games=256,
        filter_amount=0.5,
        optimizer=Optimizer(lr_rates=(0.02, 0.005), lr_boundaries=(60_000,)),
        match=Match(games=32, readouts=200, opponent="gtp", command=GNUGO),
        eval_every=50,
    )


def closed() -> MinigoConfig:
    """The benchmark, with the reference's hyperparameters. Its start and target are made by `prepare`."""
    return MinigoConfig(
        division="closed",
        batch_size=4096,
        target=0.5,
        max_epochs=100,
        data=Data(path="data/minigo", start_iterations=17, target_iterations=52),
        play=Play(workers=1, games=512, cache_mb=8192),
        bootstrap=True,
        optimizer=Optimizer(lr_rates=(0.016, 0.16, 0.016, 0.0016), lr_boundaries=(128, 10000, 20000)),
    )


def dgxa100_1x8() -> MinigoConfig:
    """One node of eight A100: every GPU plays and trains, with 1,792 games in flight."""
    return replace(
        closed(),
        device="cuda",
        precision="fp16",
        max_epochs=60,
        play=Play(workers=2, games=112, cache_mb=8192, precision="fp16"),
    )


PRESETS: dict[str, Callable[[], MinigoConfig]] = {
    "demo": demo,
    "demo_checkpoint": demo_checkpoint,
    "gnugo_9x9": gnugo_9x9,
    "closed": closed,
    "dgxa100_1x8": dgxa100_1x8,
}
