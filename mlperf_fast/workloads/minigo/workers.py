"""Who plays the games of self-play: this process, in turn with training, or processes of their own, all the time.

    with players(cfg, ranks, folder, seed) as play:
        play.publish(net, number)          # who plays, from now on
        play.work()                        # a moment of it; raises UserError when a process died

Networks go to them by models/000018.pt, games come back by games/18/: both appear when they are complete, so a kill at
any moment loses the games in flight alone.
"""

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mlperf_fast.errors import UserError
from mlperf_fast.loop.dist import Announcement, Ranks, broadcast_object
from mlperf_fast.workloads.minigo import model, records
from mlperf_fast.workloads.minigo.inference import Inference
from mlperf_fast.workloads.minigo.model import DualNet
from mlperf_fast.workloads.minigo.presets import MinigoConfig
from mlperf_fast.workloads.minigo.selfplay import SelfPlay, bootstrap_rules

POLL_SECONDS = 0.2  # between two looks for a newer network
WAIT_SECONDS = 0.05  # between two counts of the games


def model_path(folder: Path, number: int) -> Path:
    return folder / "models" / f"{number:06d}.pt"


def newest_model(folder: Path) -> int | None:
    """The number of the newest network of a run."""
    return max((int(path.stem) for path in (folder / "models").glob("*.pt") if path.stem.isdecimal()), default=None)


class Seat:
    """One player's games: it writes those that ended, and changes the network in mid-game."""

    def __init__(self, cfg: MinigoConfig, folder: Path, rank: int, worker: int, seed: int, start: int) -> None:
        self.cfg, self.folder, self.seed = cfg, folder, seed
        self.name = f"{rank}-{worker}-{start:03d}"  # of files, with a number behind it; `start` counts resumptions
        # Ids are no other seat's: 2^24 games for each start of a worker, of both at most 2^10.
        self.first_id = ((rank << 20) + (worker << 10) + start) << 24
        self.files = 0
        self.number = -1
        self.inference: Inference | None = None
        self.play: SelfPlay | None = None

    def publish(self, net: DualNet, number: int) -> None:
        if self.inference is None:
            self.inference = Inference(net, self.cfg.play.precision, self.cfg.play.games * self.cfg.play.leaves)
        else:
            self.inference.load(net)
        boot = self.cfg.bootstrap and number == 0
        if self.play is None or (self.cfg.bootstrap and self.number == 0):
            first = self.first_id if self.play is None else self.play.next_id
            rules = bootstrap_rules(self.cfg.play) if boot else self.cfg.play
            self.play = SelfPlay(self.cfg, rules, self.inference, seed=self.seed, first_id=first)
        self.number = number

    def round(self) -> None:
        assert self.play is not None, "publish() comes first"
        ended = self.play.round(self.number)
        if ended:
            records.write(ended, self.folder / "games" / str(self.number), f"{self.name}-{self.files:06d}")
            self.files += 1


class InTurn:
    """This process plays, a round at a time: what is played depends on the seed alone."""

    def __init__(self, seat: Seat) -> None:
        self.publish = seat.publish
        self.work = seat.round


class Beside:
    """Processes that play on while this one trains."""

    def __init__(self, cfg: MinigoConfig, ranks: Ranks, folder: Path, seed: int, start: int) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA and OpenMP don't survive a fork
        arguments = cfg, folder, ranks.rank, str(ranks.device)
        self.processes = [
            context.Process(target=play_on, args=(*arguments, i, seed, start), daemon=True, name=f"selfplay-{i}")
            for i in range(cfg.play.workers)
        ]
        for process in self.processes:
            process.start()

    def publish(self, net: DualNet, number: int) -> None:
        """They find the file."""

    def work(self) -> None:
        for process in self.processes:
            if process.exitcode is not None:
                raise UserError(
                    f"the self-play process {process.name} ended with code {process.exitcode}; what it printed stands "
                    "above. The games that were finished are kept: go on with --resume"
                )
        time.sleep(WAIT_SECONDS)

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()


class Elsewhere:
    """Other ranks play, and what ends them ends this run too: that is the launcher's part."""

    def publish(self, net: DualNet, number: int) -> None:
        """They find the file."""

    def work(self) -> None:
        time.sleep(WAIT_SECONDS)


Players = InTurn | Beside | Elsewhere


def follow(
    play: InTurn, cfg: MinigoConfig, folder: Path, device: torch.device | str, goes_on: Callable[[], bool]
) -> None:
    """Plays with the newest network of the run, whenever it appears, as long as `goes_on()`."""
    looked, number = -math.inf, None
    while goes_on():
        if time.monotonic() - looked >= POLL_SECONDS:
            looked, newest = time.monotonic(), newest_model(folder)
            if newest != number and newest is not None:
                play.publish(model.load(model_path(folder, newest), cfg.size, device)[0], newest)
                number = newest
        if number is None:
            time.sleep(WAIT_SECONDS)
        else:
            play.work()


def only_plays(cfg: MinigoConfig, ranks: Ranks) -> bool:
    return ranks.rank >= ranks.world - cfg.play.ranks


@contextmanager
def players(cfg: MinigoConfig, ranks: Ranks, folder: Path, seed: int) -> Iterator[Players]:
    """For all ranks together."""
    start = broadcast_object(ranks, count_start(folder) if ranks.is_first else None)
    if cfg.play.ranks and not only_plays(cfg, ranks):
        yield Elsewhere()
        return
    if cfg.play.workers == 0:
        yield InTurn(Seat(cfg, folder, ranks.rank, 0, seed, start))
        return
    beside = Beside(cfg, ranks, folder, seed, start)
    try:
        yield beside
    finally:
        beside.close()


def play_along(cfg: MinigoConfig, ranks: Ranks, folder: Path, seed: int, over: Announcement) -> None:
    """What a rank that only plays does until rank 0 says that it is over."""
    with players(cfg, ranks, folder, seed) as play:
        if isinstance(play, InTurn):
            follow(play, cfg, folder, ranks.device, lambda: not over.came())
        else:
            while not over.came():
                play.work()


def count_start(folder: Path) -> int:
    """How often this run was started before; random numbers and names of files come from it, so none comes twice."""
    path = folder / "games" / "starts"
    path.parent.mkdir(parents=True, exist_ok=True)
    start = int(path.read_text()) + 1 if path.exists() else 0
    partial = path.with_name("starts.partial")
    partial.write_text(str(start))
    os.replace(partial, path)
    return start


def play_on(cfg: MinigoConfig, folder: Path, rank: int, device: str, worker: int, seed: int, start: int) -> None:
    """What a process of `Beside` does until its parent ends it, or is gone."""
    parent = os.getppid()
    torch.set_num_threads(1 if device == "cpu" else max(1, (os.cpu_count() or 1) // (2 * cfg.play.workers)))
    if device != "cpu":
        torch.cuda.set_device(device)
    play = InTurn(Seat(cfg, folder, rank, worker, seed, start))
    try:
        follow(play, cfg, folder, device, lambda: os.getppid() == parent)
    except UserError as error:
        print(f"self-play process {worker}: {error}", flush=True)
        raise SystemExit(2) from None
