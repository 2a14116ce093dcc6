"""go: random games from the empty board, against OpenSpiel's rollouts; and what the network's input costs.

cpp              board.Games.playouts: no own eye is filled, positional superko, the area at the end
cpp, any move    each legal move equally likely, the pass too, for at most 2 size² moves: OpenSpiel's rollouts
open_spiel       pyspiel.MCTSBot with RandomRolloutEvaluator(1), in C++: a rollout a simulation, after a short walk down
                 its tree. It ends a game in which a board comes back, and takes no dead stones off
Moves in batches, driven from Python as a learner would: the legal moves, one of them drawn for each game, played, and
the network's input, 32 times from the empty board.
cpp              board.Games and torch
pgx              the same by JAX, each step compiled for the batch; its input has 17 planes
Below: 13 planes, with the legal moves they need, and the area with pass-alive regions, for games in their middle; and
the tree search of many games from the empty board, its network a uniform prior and the value 0: what is left is ours.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator

import torch

from mlperf_fast.workloads.minigo.board import Games, new_games
from mlperf_fast.workloads.minigo.search import Search

from . import command
from .competitors import library
from .measure import Candidate, Local, Row, Timing, compare

DEVICES = ("cpu",)
PLAYOUTS = {9: 64, 19: 8}  # in one call
POSITIONS = 256
SEARCHES = {9: 256, 19: 64}  # games at once
READOUTS = 64  # of each game in one call
MOVES = 32  # likewise


def measure(chosen: Namespace) -> Iterator[Row]:
    for size in (9,) if chosen.quick else PLAYOUTS:
        count = 2 if chosen.quick else PLAYOUTS[size]
        empty = new_games(1, size)
        candidates: dict[str, Candidate | str] = {
            "cpp": Local(playouts(empty, count, own_eyes=False)),
            "cpp, any move": Local(playouts(empty, count, own_eyes=True)),
            "open_spiel": library("open_spiel", chosen.device, lambda s=size, n=count: open_spiel(s, n)),
        }
        results = compare(candidates, command.effort(chosen))
        lengths = {
            f"moves a game at {size}x{size}, {name}": round(
                float(empty.playouts(200, 0, own_eyes=eyes)[0].float().mean()), 1
            )
            for name, eyes in (("cpp", False), ("cpp, any move", True))
        }
        yield row("random games", f"{count} of {size}x{size}", chosen, results, lengths)
    for size in (9,) if chosen.quick else PLAYOUTS:
        n = 4 if chosen.quick else POSITIONS
        candidates = {
            "cpp": Local(moves(new_games(n, size))),
            "pgx": library("pgx", chosen.device, lambda s=size, n=n: pgx_moves(n, s, chosen.threads)),
        }
        results = compare(candidates, command.effort(chosen))
        yield row("moves in batches", f"{MOVES} in each of {n} of {size}x{size}", chosen, results, {})
    for size in (9,) if chosen.quick else PLAYOUTS:
        games = midgame(4 if chosen.quick else POSITIONS, size)
        for name, call in (("planes", games.planes), ("area", lambda g=games: g.scores(7.5))):
            results = compare({"cpp": Local(lambda number, call=call: call())}, command.effort(chosen))
            yield row(name, f"{len(games)} of {size}x{size}", chosen, results, {})
    for size in (9,) if chosen.quick else SEARCHES:
        search = Search(new_games(4 if chosen.quick else SEARCHES[size], size))
        results = compare({"cpp": Local(lambda number, search=search: searched(search))}, command.effort(chosen))
        leaves, timing = searched(search), results["cpp"]
        rate = round(leaves / timing.ms * 1e3) if isinstance(timing, Timing) else None
        facts = {f"leaves a call at {size}x{size}": leaves, f"leaves a second at {size}x{size}": rate}
        yield row(f"search, {READOUTS} readouts", f"{len(search)} of {size}x{size}", chosen, results, facts)


def row(name: str, shape: str, chosen: Namespace, results: dict, facts: dict) -> Row:
    return Row(name, shape, "integers", chosen.threads, 0, 0, "none", results, "cpp", facts)


def playouts(empty: Games, count: int, *, own_eyes: bool) -> Callable[[int], object]:
    limit = 2 * empty.size**2 if own_eyes else None
    return lambda number: empty.playouts(count, 0, first=count * number, max_moves=limit, own_eyes=own_eyes)


def searched(search: Search) -> int:
    """Reads each game anew; returns how many leaves the network was asked for."""
    n, moves = len(search), search.games.size**2 + 1
    policies, values = torch.full((n * search.options.leaves, moves), 1 / moves), torch.zeros(n * search.options.leaves)
    search.reset()
    search.start([READOUTS] * n, [True] * n)
    leaves = 0
    while count := len(search.leaves()):
        search.take(policies[:count], values[:count])
        leaves += count
    return leaves


def midgame(n: int, size: int) -> Games:
    """Games after so many random moves as leave a third of the board empty."""
    games, draw = new_games(n, size), torch.Generator().manual_seed(0)
    for _ in range(size**2 * 2 // 3):
        stones = games.legal()[:, :-1].float() + 1e-9  # a draw that isn't legal is left out
        games.play(torch.multinomial(stones, 1, generator=draw)[:, 0])
    return games


def moves(empty: Games) -> Callable[[int], object]:
    draw = torch.Generator().manual_seed(0)

    def call(number: int) -> object:
        games = empty.copy()
        for _ in range(MOVES):
            legal = games.legal()
            games.play((torch.rand(legal.shape, generator=draw) * legal).argmax(1))
            games.planes()
        return games

    return call


def pgx_moves(n: int, size: int, threads: int) -> Callable[[int], object]:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, list(cores)[:threads])  # XLA starts a thread for each core that it sees; no option says so
    try:
        import jax
        import pgx

        env = pgx.make(f"go_{size}x{size}")
        empty = jax.jit(jax.vmap(env.init))(jax.random.split(jax.random.PRNGKey(0), n))

        @jax.jit
        def move(state, key):  # type: ignore[no-untyped-def]
            legal = jax.numpy.log(state.legal_action_mask.astype(jax.numpy.float32))
            return jax.vmap(env.step)(state, jax.random.categorical(key, legal))

        def call(number: int) -> object:
            state = empty
            for key in jax.random.split(jax.random.PRNGKey(number), MOVES):
                state = move(state, key)
            return state.observation.block_until_ready()

        call(0)
    finally:
        os.sched_setaffinity(0, cores)
    return call


def open_spiel(size: int, count: int) -> Callable[[int], object]:
    import pyspiel

    game = pyspiel.load_game("go", {"board_size": size, "komi": 7.5})
    rollout, exploration, megabytes, solve, seed, verbose = (
        pyspiel.RandomRolloutEvaluator(1, 0),
        2.0,
        1000,
        False,
        0,
        False,
    )
    bot = pyspiel.MCTSBot(game, rollout, exploration, count, megabytes, solve, seed, verbose)
    state = game.new_initial_state()
    return lambda number: bot.mcts_search(state)


if __name__ == "__main__":
    sys.exit(command.main("go"))
