"""How good a network is: its match against the opponent that the configuration names."""

import math
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlperf_fast.errors import UserError
from mlperf_fast.loop.dist import Ranks, sum_over_ranks
from mlperf_fast.workloads.minigo import model
from mlperf_fast.workloads.minigo.board import BLACK, new_games
from mlperf_fast.workloads.minigo.gtp_client import Engine
from mlperf_fast.workloads.minigo.inference import Inference
from mlperf_fast.workloads.minigo.judge import by_network, by_playouts
from mlperf_fast.workloads.minigo.match import RESIGN, Reader, Result, Side, Tally, play_match, tally
from mlperf_fast.workloads.minigo.model import DualNet
from mlperf_fast.workloads.minigo.presets import MinigoConfig


def evaluate(cfg: MinigoConfig, ranks: Ranks, net: DualNet, seed: int) -> tuple[Tally, list[Result]]:
    """The match's count over all processes, each of which plays its share of the games, and this one's games."""
    games = cfg.match.games // ranks.world + (ranks.rank < cfg.match.games % ranks.world)
    rows = games * cfg.play.leaves
    own = Reader(cfg, by_network(Inference(net, most=rows)), cfg.match.readouts, games, seed, "mlperf_fast")
    results = []
    if games:
        other = opponent(cfg, ranks, games, seed)
        try:
            results = play_match(cfg, own, other, games)
        finally:
            other.close()
    counted = tally(results)
    numbers = [counted.black_wins, counted.black_games, counted.white_wins, counted.white_games]
    return Tally(*sum_over_ranks(ranks, torch.tensor(numbers, device=ranks.device)).tolist()), results


def opponent(cfg: MinigoConfig, ranks: Ranks, games: int, seed: int) -> Side:
    kind = cfg.match.opponent
    if kind == "playouts":
        readouts = cfg.match.opponent_readouts
        return Reader(cfg, by_playouts, readouts, games, seed, f"{readouts} random games a move")
    if kind == "gtp":
        return Engines(cfg, games)
    net, _ = model.load(target_path(cfg), cfg.size, ranks.device)
    judge = by_network(Inference(net, most=games * cfg.play.leaves))
    return Reader(cfg, judge, cfg.match.readouts, games, seed, "target")


class Engines:
    """A program that speaks GTP, one process a game. Its network knows nothing of ours: what it says is all."""

    def __init__(self, cfg: MinigoConfig, games: int) -> None:
        command = shlex.split(cfg.match.command)
        if not command:
            raise UserError("match.opponent=gtp: set match.command to the program, such as 'gnugo --mode gtp'")
        self.engines: list[Engine] = []
        self.asked = torch.full((games,), -1, dtype=torch.int32)  # moves that the engines have played themselves
        self.turn = [BLACK] * games
        with ExitStack() as stack:
            for _ in range(games):
                engine = stack.enter_context(Engine(command))
                engine.boardsize(cfg.size)
                engine.komi(cfg.komi)
                engine.clear()
                self.engines.append(engine)
            self.stack = stack.pop_all()
        self.name = self.engines[0].name()

    def choose(self, which: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.fill_(-1)
        for row in which.nonzero()[:, 0].tolist():
            move = self.engines[row].genmove(self.turn[row])
            self.asked[row] = RESIGN if move is None else move
        return self.asked.clone(), torch.full((len(which),), math.nan)

    def play(self, moves: Tensor) -> None:
        for row, move in enumerate(moves.tolist()):
            if move < 0:
                continue
            if move != int(self.asked[row]):
                self.engines[row].play(self.turn[row], move)
            self.turn[row] = -self.turn[row]
        self.asked.fill_(-1)

    def close(self) -> None:
        self.stack.close()


def folder(cfg: MinigoConfig) -> Path:
    if cfg.data.path is None:
        raise UserError("this preset has no data: it starts from nothing, against random games")
    return Path(cfg.data.path).expanduser()


def target_path(cfg: MinigoConfig) -> Path:
    return folder(cfg) / "target.pt"


def start_path(cfg: MinigoConfig) -> Path:
    return folder(cfg) / "start.pt"


def start_generations(cfg: MinigoConfig) -> list[Path]:
    """Folders of games that the start brings along, the oldest first."""
    found = [path for path in (folder(cfg) / "games").iterdir() if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))


def load_start(cfg: MinigoConfig, step: Any) -> int:
    """Puts the starting checkpoint into `step`: weights, momentum, steps taken. Returns its network's number."""
    net, notes = model.load(start_path(cfg), cfg.size, step.ranks.device)
    try:
        step.model.load_state_dict(net.state_dict())
        state = torch.load(folder(cfg) / "optimizer.pt", map_location=step.ranks.device, weights_only=True)
        step.optimizer.load_state_dict(state)
    except (OSError, RuntimeError, KeyError, ValueError, EOFError) as error:
        raise UserError(f"the start in {folder(cfg)} doesn't fit this preset: {error}. Make it anew: mlperf-fast "
                        "prepare minigo") from error  # fmt: skip
    step.count = step.read_at = int(notes["step"])
    return int(notes["number"])


def picture(cfg: MinigoConfig, result: Result) -> dict[str, Any]:
    """A game for the report: its last board, a row a line of X, O and dots, and how each move's player saw Black."""
    board = new_games(1, cfg.size)
    for move in result.moves:
        board.play([move])
    rows = ["".join(".XO"[stone] for stone in row) for row in board.stones()[0].tolist()]  # -1, White, is the last
    return {
        "black": result.black, "white": result.white, "score": result.score, "moves": len(result.moves), "board": rows,
        "win_rates": [round((1 + value) / 2, 3) if value == value else None for value in result.values],
    }  # fmt: skip
