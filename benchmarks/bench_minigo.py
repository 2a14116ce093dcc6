"""minigo: the network's answers, and a move's readouts in many games at once, search and network together.

network      folded        workloads.minigo.Inference: batch norms in the convolutions, both heads in one product
             eager         model(x) of the same network in plain PyTorch, NCHW, in evaluation
             torch compile of `eager`
readouts     cpp           workloads.minigo.Search and Inference, as self-play reads a full move; the demo's network
             open_spiel    OpenSpiel's MCTSBot in Python, game by game, whose evaluator asks the same network
self-play    cpp           rounds of workloads.minigo.SelfPlay, 64 games in flight
What isn't the network's share of self-play is the search's and Python's: it stands below.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlperf_fast.workloads.minigo.board import PLANES, Games
from mlperf_fast.workloads.minigo.inference import Inference
from mlperf_fast.workloads.minigo.judge import by_network, read
from mlperf_fast.workloads.minigo.model import DualNet, initialise
from mlperf_fast.workloads.minigo.presets import MinigoConfig, demo, gnugo_9x9
from mlperf_fast.workloads.minigo.search import Search
from mlperf_fast.workloads.minigo.selfplay import SelfPlay

from . import command
from .bench_go import midgame
from .competitors import compiled, library
from .measure import Candidate, Local, Row, compare

DEVICES = ("cpu", "cuda")
GAMES, READOUTS = 16, 32  # of the readouts' row
ROUNDS = 16  # of self-play in one call


@dataclass(frozen=True)
class Case:
    batch: int
    size: int
    width: int
    blocks: int

    def shape(self) -> str:
        return f"{self.batch} of {self.size}x{self.size}, {self.blocks} blocks of {self.width}"

    def flops(self) -> int:
        points, w = self.size**2, self.width
        convs = 9 * w * (PLANES + 2 * self.blocks * w) + 3 * w
        heads = 2 * points * (points + 1) + points * w + w
        return 2 * self.batch * (points * convs + heads)


CASES = [Case(256, 6, 32, 2), Case(128, 9, 64, 6), Case(64, 19, 64, 6)]
QUICK_CASES = [Case(8, 6, 8, 1)]


class Plain(nn.Module):
    """The network as one would write it, for what folding gains."""

    def __init__(self, size: int, width: int, blocks: int) -> None:
        super().__init__()
        self.stem = conv_norm(PLANES, width, 3)
        self.blocks = nn.ModuleList(
            nn.ModuleList([conv_norm(width, width, 3), conv_norm(width, width, 3)]) for _ in range(blocks)
        )
        self.policy_conv, self.policy = conv_norm(width, 2, 1), nn.Linear(2 * size**2, size**2 + 1)
        self.value_conv, self.hidden = conv_norm(width, 1, 1), nn.Linear(size**2, width)
        self.value = nn.Linear(width, 1)

    def forward(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.stem(planes.float()))
        for block in self.blocks:
            first, second = block.children()
            x = F.relu(second(F.relu(first(x))) + x)
        policy = self.policy(F.relu(self.policy_conv(x)).flatten(1)).softmax(1)
        value = self.value(F.relu(self.hidden(F.relu(self.value_conv(x)).flatten(1))))
        return policy, torch.tanh(value)[:, 0]


def conv_norm(into: int, out: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(into, out, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(out))


def measure(chosen: Namespace) -> Iterator[Row]:
    device = torch.device(chosen.device)
    for case in QUICK_CASES if chosen.quick else CASES:
        yield network_row(case, chosen, device)
    if device.type == "cpu":
        yield from played(chosen)


def network_row(case: Case, chosen: Namespace, device: torch.device) -> Row:
    net = DualNet(case.size, case.width, case.blocks, device).eval()
    initialise(net, 1)
    plain = Plain(case.size, case.width, case.blocks).to(device).eval()
    planes = torch.randint(2, (case.batch, PLANES, case.size, case.size), dtype=torch.uint8)
    judge, there = Inference(net), planes.to(device)

    def eager(number: int) -> object:
        with torch.no_grad():
            return plain(there)

    candidates: dict[str, Candidate | str] = {
        "folded": Local(lambda number: judge(planes)),
        "eager": Local(eager),
        "torch compile": compiled(chosen, lambda: without_grad(torch.compile(plain), there)),
    }
    results = compare(candidates, command.effort(chosen))
    return Row("network", case.shape(), "fp32", chosen.threads, 0, case.flops(), "gemm", results, "folded", {})


def without_grad(function: Callable, planes: Tensor) -> Callable[[int], object]:
    def call(number: int) -> object:
        with torch.no_grad():
            return function(planes)

    return call


def played(chosen: Namespace) -> Iterator[Row]:
    cfg = demo()
    net = DualNet(cfg.size, cfg.model.width, cfg.model.blocks).eval()
    initialise(net, 1)
    games, judge = midgame(2 if chosen.quick else GAMES, cfg.size), Inference(net)
    candidates: dict[str, Candidate | str] = {
        "cpp": Local(searched(games.copy(), judge)),
        "open_spiel": library("open_spiel", chosen.device, lambda: open_spiel(games, cfg.komi, judge)),
    }
    results = compare(candidates, command.effort(chosen))
    shape = f"{READOUTS} in each of {len(games)} of {cfg.size}x{cfg.size}"
    yield Row("readouts", shape, "fp32", chosen.threads, 0, 0, "none", results, "cpp", {})

    for preset in (demo,) if chosen.quick else (demo, gnugo_9x9):
        yield selfplay_row(preset(), chosen)


def selfplay_row(cfg: MinigoConfig, chosen: Namespace) -> Row:
    net = DualNet(cfg.size, cfg.model.width, cfg.model.blocks).eval()
    initialise(net, 1)
    watched, board = Watched(Inference(net)), f"{cfg.size}x{cfg.size}"
    play = SelfPlay(cfg, replace(cfg.play, cache_mb=0), watched, seed=1)  # type: ignore[arg-type]
    results = compare({"cpp": Local(lambda number: [play.round(0) for _ in range(ROUNDS)])}, command.effort(chosen))
    watched.seconds, began, games_done = 0.0, time.perf_counter(), 0
    for _ in range(4 if chosen.quick else 800):
        games_done += len(play.round(0))
    whole = time.perf_counter() - began
    facts = {
        f"self-play at {board}, share of time outside the network": round(1 - watched.seconds / whole, 3),
        f"self-play at {board}, games a second": round(games_done / whole, 2),
    }
    shape = f"{ROUNDS} rounds of {cfg.play.games} games of {board}"
    return Row("self-play", shape, "fp32", chosen.threads, 0, 0, "none", results, "cpp", facts)


class Watched:
    """A network whose time is taken."""

    def __init__(self, judge: Inference) -> None:
        self.judge, self.device, self.seconds = judge, judge.device, 0.0

    def submit(self, planes: Tensor) -> Callable:
        began = time.perf_counter()
        answer = self.judge(planes)
        self.seconds += time.perf_counter() - began
        return lambda: answer


def searched(games: Games, judge: Inference) -> Callable[[int], object]:
    search = Search(games)

    def call(number: int) -> object:
        search.reset()
        search.start([READOUTS] * len(games), [True] * len(games))
        read(search, by_network(judge))
        return search.choose()

    return call


def open_spiel(games: Games, komi: float, judge: Inference) -> Callable[[int], object]:
    """The same positions: its states have the stones, which were played in turn, with passes for whoever has fewer."""
    import pyspiel
    from open_spiel.python.algorithms import mcts

    size = games.size
    game = pyspiel.load_game("go", {"board_size": size, "komi": komi})

    class Network(mcts.Evaluator):  # type: ignore[misc]
        def __init__(self) -> None:
            self.planes = torch.zeros(1, PLANES, size, size, dtype=torch.uint8)
            self.last: tuple[object, object] = (None, None)  # asked for its policy, then for its value

        def ask(self, state: object) -> tuple[Tensor, Tensor]:
            history = state.history()  # type: ignore[attr-defined]
            if self.last[0] != history:
                self.last = history, self.judged(state)
            return self.last[1]  # type: ignore[return-value]

        def judged(self, state: object) -> tuple[Tensor, Tensor]:
            observed = torch.tensor(state.observation_tensor()).view(-1, size, size)  # type: ignore[attr-defined]
            self.planes[0, :2] = observed[:2].to(torch.uint8)
            return judge(self.planes)

        def evaluate(self, state: object) -> list[float]:
            value = float(self.ask(state)[1][0])
            return [value, -value]

        def prior(self, state: object) -> list[tuple[int, float]]:
            policy = self.ask(state)[0][0].tolist()
            return [(action, policy[min(action, size**2)]) for action in state.legal_actions()]  # type: ignore[attr-defined]

    states = [state_of(game, stones.flatten().tolist()) for stones in games.stones()]
    bot = mcts.MCTSBot(game, 2.0, READOUTS, Network(), solve=False)
    return lambda number: [bot.mcts_search(state) for state in states]


def state_of(game: object, stones: list[int]) -> object:
    state, sides = game.new_initial_state(), (1, -1)  # type: ignore[attr-defined]
    left = {side: [point for point, stone in enumerate(stones) if stone == side] for side in sides}
    turn = 0
    while left[1] or left[-1]:
        own = left[sides[turn]]
        action = own.pop() if own else len(stones)
        state.apply_action(action if action in state.legal_actions() else len(stones))
        turn = 1 - turn
        if state.is_terminal():
            break
    return state


if __name__ == "__main__":
    sys.exit(command.main("minigo"))
