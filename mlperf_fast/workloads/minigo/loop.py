"""Minigo's loop: play, train, play with what was learned; after the last iteration, which network was good enough?

    run_start
    each iteration k:  wait until network k-1 has finished its games   (self-play goes on all the time)
                       train on the window's examples, export network k
    each network:      a match against the opponent; the first that wins its share ends the search
    run_stop           with the time at which that network was exported: evaluation is off the clock

The same step, clock, log and checkpoints as loop/train.py. Source: mlcommons/training, minigo, ml_perf/train_loop.py.
"""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mlperf_fast import suite
from mlperf_fast.errors import UserError
from mlperf_fast.loop import checkpoint
from mlperf_fast.loop.clock import Clock
from mlperf_fast.loop.dist import Announcement, Ranks, barrier, broadcast_object, first_ones, sum_over_ranks
from mlperf_fast.loop.step import TrainStep
from mlperf_fast.loop.terminal import Outcome, Terminal
from mlperf_fast.loop.train import log_initialisation, tell_mode
from mlperf_fast.ops.backend import choices
from mlperf_fast.profiling.ranges import named
from mlperf_fast.profiling.window import Window as Watched
from mlperf_fast.submission.runlog import tracked_stats
from mlperf_fast.workloads.base import Workload
from mlperf_fast.workloads.minigo import evaluation, model, records
from mlperf_fast.workloads.minigo.match import Result, sgf
from mlperf_fast.workloads.minigo.presets import MinigoConfig
from mlperf_fast.workloads.minigo.window import Window, choose, read_generation
from mlperf_fast.workloads.minigo.workers import Players, model_path, only_plays, play_along, players

KEPT_GAMES = 8  # of the last match, as SGF


@dataclass
class Run:
    """What the matches of a run need to know of it."""

    cfg: MinigoConfig
    ranks: Ranks
    folder: Path
    seed: int
    log: Any
    terminal: Terminal
    clock: Clock
    start: int  # the network that self-play begins with


@dataclass
class Training(Run):
    """What an iteration works with."""

    team: Ranks  # those that train, of all
    net: model.DualNet
    step: TrainStep
    window: Window
    start_step: int  # how many steps the start was trained
    run_start: int = 0  # when the clock started, ms since 1970
    exported: dict[int, int] = field(default_factory=dict)  # network -> when, ms since 1970

    @property
    def newest(self) -> int:
        """The network that was made last."""
        return max([self.start, *self.exported])


def train(
    w: Workload, cfg: MinigoConfig, ranks: Ranks, log: Any, folder: Path, seed: int, preset: str, resume: bool,
    watched: Watched | None = None,
) -> Outcome:  # fmt: skip
    """As loop.train.train: trains, evaluates, returns the outcome, the same on every rank."""
    began = time.perf_counter()
    if cfg.play.ranks >= ranks.world:
        raise UserError(
            f"play.ranks is {cfg.play.ranks}: so many processes only play, and one at least must train; expected fewer "
            f"than the {ranks.world} of this run"
        )
    team = first_ones(ranks, ranks.world - cfg.play.ranks)
    over = Announcement(ranks, range(team.world, ranks.world)) if cfg.play.ranks else None
    if over and only_plays(cfg, ranks):
        return only_play(cfg, ranks, log, folder, seed, over)
    if not resume:
        log.start("init_start")
    run = begin(w, cfg, ranks, team, log, folder, seed, resume)
    step, terminal = run.step, run.terminal
    if not resume:
        log_initialisation(w, cfg, team, w.progress(cfg), log)
        log.end("init_stop")
        run.run_start = now()
        log.start("run_start", time_ms=run.run_start)
    init_seconds = time.perf_counter() - began
    run.clock, first = Clock(), step.count
    try:
        learn(run, run.start + cfg.max_epochs, watched)
        if over and ranks.is_first:
            over.make()
        curve = [] if watched else judge(run)
    except BaseException:
        with suppress(UserError):  # when the log itself is what failed
            log.end("run_stop", metadata={"status": "aborted"})
        raise
    finally:
        terminal.close()
        step.close()
    bench = suite.BENCHMARKS[w.name]
    metric = next(iter(bench.target))
    reached = bool(curve) and curve[-1][1] >= cfg.target
    stopped = run.exported[run.start + int(curve[-1][0])] if reached else now()
    steps = step.count - run.start_step
    log.event("train_samples", steps * cfg.batch_size)
    log.end("run_stop", metadata={"status": "success" if reached else "aborted"}, time_ms=stopped)
    outcome = Outcome(
        benchmark=w.name, preset=preset, metric=metric, target=cfg.target, higher_is_better=bench.higher_is_better,
        reached=reached, quality=curve[-1][1] if curve else math.nan, steps=steps, samples=steps * cfg.batch_size,
        run_seconds=(stopped - run.run_start) / 1000, init_seconds=init_seconds,
        data_wait_share=run.clock.data_wait_share,
        samples_per_second=(step.count - first) * cfg.batch_size / max(run.clock.training - run.clock.waiting, 1e-9),
        backends=choices(ranks.device.type), step_mode=step.mode, result=str(getattr(log, "path", "")), seed=seed,
        curve=curve,
    )  # fmt: skip
    return broadcast_object(ranks, outcome)


def only_play(cfg: MinigoConfig, ranks: Ranks, log: Any, folder: Path, seed: int, over: Announcement) -> Outcome:
    """The part of a rank that doesn't train: games until the last network is there, then its share of the matches."""
    start, newest = broadcast_object(ranks, None)
    if newest < start + cfg.max_epochs:  # else it was resumed in its matches
        play_along(cfg, ranks, folder, seed, over)
    judge(Run(cfg, ranks, folder, seed, log, Terminal(False, cfg.max_epochs), Clock(), start))
    return broadcast_object(ranks, None)


def begin(
    w: Workload, cfg: MinigoConfig, ranks: Ranks, team: Ranks, log: Any, folder: Path, seed: int, resume: bool
) -> Training:
    """What comes before the clock: the step, warmed up, at the start's state or where `folder` stopped."""
    torch.manual_seed(seed)
    net: model.DualNet = w.model(cfg, team, seed)  # type: ignore[assignment]
    step = TrainStep(w.loss, net, w.optimizer(cfg, net), team, cfg.precision, cfg.cuda_graph)
    step.warm_up(w.synthetic(cfg, team))
    start = evaluation.load_start(cfg, step) if cfg.data.path else 0
    terminal = Terminal(ranks.is_first, cfg.max_epochs)
    run = Training(cfg, ranks, folder, seed, log, terminal, Clock(), start, team, net, step, Window(cfg, team),
                   start_step=step.count)  # fmt: skip
    if resume:
        checkpoint.load(folder / "checkpoints", step, team)
        notes = checkpoint.latest(folder / "checkpoints")
        run.exported = {int(number): when for number, when in notes["exported"].items()}
        run.run_start = notes["run_start"]
    elif ranks.is_first:
        save_network(run, start)
    broadcast_object(ranks, (start, run.newest))
    return run


def now() -> int:
    """Milliseconds since 1970, as the log counts."""
    return int(time.time() * 1000)


def learn(run: Training, last: int, watched: Watched | None = None) -> None:
    """Iterations up to the one that makes network `last`; those that a resumed run has are left out."""
    cfg, done = run.cfg, run.newest
    if done >= last:
        return
    fill_window(run, done)
    if not watched:
        save_state(run)  # killed before its first network, a run goes on with the games that were finished
    with players(cfg, run.ranks, run.folder, run.seed) as play:
        play.publish(run.net.eval(), done)
        for number in range(done + 1, last + 1):
            run.log.start("epoch_start", metadata={"epoch_num": number})
            waited = time.perf_counter()
            known = [] if cfg.data.path and number == run.start + 1 else finished(run, play, number - 1)
            run.clock.waiting += time.perf_counter() - waited
            trained = iterate(run, number, known, watched)
            play.publish(run.net.eval(), number)
            if not watched:
                save_state(run)
            elif not trained:
                return


def save_state(run: Training) -> None:
    run.log.sync()
    notes = {"log_offset": run.log.offset, "curve": [], "seed": run.seed, "run_start": run.run_start,
             "exported": run.exported}  # fmt: skip
    checkpoint.save(run.folder / "checkpoints", run.step, run.team, notes)


def fill_window(run: Training, done: int) -> None:
    """The generations of the start and those that networks up to `done` were trained on, the newest of them."""
    first = run.start
    if run.cfg.data.path:
        first = run.start + 1  # the first iteration trains on what the start brought along
        for folder in evaluation.start_generations(run.cfg):
            run.window.add(own_share(run, folder)[0])
    for number in range(max(first, done - run.cfg.window), done):
        run.window.add(own_share(run, run.folder / "games" / str(number))[0])


def own_share(run: Training, folder: Path) -> Any:
    """(examples, games) of the generation in `folder`, this process' share of them."""
    chosen = broadcast_object(run.team, choose(folder, run.cfg.games, run.seed) if run.team.is_first else None)
    return read_generation(folder, chosen[run.team.rank :: run.team.world], run.cfg.size)


def finished(run: Training, play: Players, number: int) -> Sequence[records.Record]:
    """Waits until network `number` has finished its games, and takes them into the window; this process' share."""
    folder, wanted = run.folder / "games" / str(number), run.cfg.games
    with named("self-play"):
        while True:
            fault = None
            try:
                play.work()
            except UserError as error:
                fault = error
            failed = sum_over_ranks(run.team, torch.tensor(float(fault is not None), device=run.team.device))
            if failed:
                raise fault or UserError("another process of this run failed; its message stands above")
            count = broadcast_object(run.team, records.count(folder) if run.team.is_first else None)
            run.terminal.note(f"network {number}: {min(count, wanted)} of {wanted} games")
            if count >= wanted:
                break
    examples, games = own_share(run, folder)
    run.window.add(examples)
    return games


def iterate(run: Training, number: int, games: Sequence[records.Record], watched: Watched | None) -> bool:
    """Trains and exports network `number`; whether all of its steps were made."""
    cfg, step = run.cfg, run.step
    began, first = time.perf_counter(), step.count
    for _ in run.window.generations:
        run.log.event("actual_selfplay_games_per_generation", cfg.games)
    run.net.train()
    if watched:
        watched.after(step.count)
    for batch in run.window.batches(run.seed, number):
        step(batch)
        if watched and watched.after(step.count):
            return False
    if step.count == first:
        raise UserError(
            f"iteration {number}: the window's examples don't fill a batch of {cfg.batch_size}: raise games or "
            "filter_amount, or lower batch_size"
        )
    tell_mode(step, run.log, run.terminal)
    loss, steps = step.read_loss()
    if not math.isfinite(loss):
        raise UserError(
            f"the loss became {loss} in iteration {number}: lower the learning rates, and look at the games"
        )
    if run.team.is_first:
        save_network(run, number)
    barrier(run.team)
    run.exported[number] = now()
    run.log.event("save_model", metadata={"iteration": number})
    run.log.end("epoch_stop", metadata={"epoch_num": number})
    seconds, health = run.clock.lap(), health_of(games)
    tracked_stats(run.log, step=number, samples=steps * cfg.batch_size, seconds=seconds, loss=loss,
                  train_step=step.count, data_wait_share=run.clock.data_wait_share, **health)  # fmt: skip
    told = f"; games: {health['game_moves']:.0f} moves, Black won {health['black_wins']:.0%}" if health else ""
    run.terminal.say(
        f"iteration {number}: {steps} steps in {time.perf_counter() - began:.1f} of {seconds:.1f} s, "
        f"loss {loss:.3f}{told}"
    )
    run.terminal.step(number - run.start, loss, step.optimizer.schedule(step.count), steps * cfg.batch_size / seconds,
                      run.clock.data_wait_share)  # fmt: skip
    return True


def health_of(games: Sequence[records.Record]) -> dict[str, float]:
    """What shows a collapse that the loss hides: short games, one colour's wins, passes."""
    if not games:
        return {}
    passes = games[0].size ** 2
    moves = [len(game.moves) for game in games]
    return {
        "game_moves": sum(moves) / len(games),
        "black_wins": sum(game.z > 0 for game in games) / len(games),
        "passes": sum(int((game.moves == passes).sum()) for game in games) / max(1, sum(moves)),
        "resigned": sum(game.resigned for game in games) / len(games),
    }


def save_network(run: Training, number: int) -> None:
    path = model_path(run.folder, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(run.net, path, number=number, step=run.step.count, komi=run.cfg.komi,
               own_eyes=run.cfg.play.own_eyes)  # fmt: skip


def judge(run: Run) -> list[tuple[float, float]]:
    """Matches of the run's networks, in order, until one wins its share: (epoch, win rate) of each."""
    cfg, curve = run.cfg, []
    torch.set_num_threads(max(torch.get_num_threads(), cfg.play.workers))  # the players' cores are free now
    for epoch in range(1, cfg.max_epochs + 1):
        if epoch % cfg.eval_every and epoch != cfg.max_epochs:
            continue
        number = run.start + epoch
        net, _ = model.load(model_path(run.folder, number), cfg.size, run.ranks.device)
        run.log.start("eval_start", metadata={"epoch_num": epoch})
        with named("evaluate"), run.clock.evaluation():
            tally, results = evaluation.evaluate(cfg, run.ranks, net, run.seed + number)
        run.log.event("eval_accuracy", tally.win_rate, metadata={"epoch_num": epoch})
        run.log.end("eval_stop", metadata={"epoch_num": epoch})
        curve.append((float(epoch), tally.win_rate))
        run.terminal.say(f"network {number} wins {tally.text()} (target {cfg.target:.0%})")
        if tally.win_rate >= cfg.target or epoch == cfg.max_epochs:
            if run.ranks.is_first:
                keep_games(run, results)
            break
    return curve


def keep_games(run: Run, results: Sequence[Result]) -> None:
    """Some games of the last match as SGF, half with each colour, and one in the log, for the report's picture."""
    folder, half = run.folder / "sgf", (len(results) + 1) // 2
    folder.mkdir(exist_ok=True)
    each = min(half, KEPT_GAMES // 2)
    kept = [*results[:each], *results[half : half + each]]
    for i, result in enumerate(kept):
        (folder / f"game-{i + 1}.sgf").write_text(sgf(run.cfg, result), encoding="utf-8")
    run.log.event("final_game", evaluation.picture(run.cfg, kept[0]))
