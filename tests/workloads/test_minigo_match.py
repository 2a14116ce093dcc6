"""Matches: who has which colour, who wins, what is kept of the games, and how sure a win rate is."""

import math
import shutil
import sys

import pytest
import torch
from small_minigo import settings

from mlperf_fast.config import from_preset
from mlperf_fast.errors import UserError
from mlperf_fast.loop.dist import Ranks
from mlperf_fast.workloads.minigo import evaluation, sgf
from mlperf_fast.workloads.minigo.board import BLACK, WHITE, new_games
from mlperf_fast.workloads.minigo.inference import Inference
from mlperf_fast.workloads.minigo.judge import by_network, by_playouts
from mlperf_fast.workloads.minigo.match import Reader, Result, Tally, interval, play_match, tally
from mlperf_fast.workloads.minigo.match import sgf as as_sgf
from mlperf_fast.workloads.minigo.model import DualNet, initialise
from mlperf_fast.workloads.minigo.presets import PRESETS

ALONE = Ranks(0, 1, torch.device("cpu"))


def config(*more):
    return from_preset(PRESETS["demo"], "demo", [part for part in settings(*more) if part != "--set"])[0]


def network(cfg, seed=1):
    net = DualNet(cfg.size, cfg.model.width, cfg.model.blocks)
    initialise(net, seed)
    return net.eval()


def by_chance(cfg, readouts, games, seed=1):
    return Reader(cfg, by_playouts, readouts, games, seed, f"{readouts} a move")


def test_the_first_half_is_black_and_results_are_the_boards():
    cfg = config()
    first, second = by_chance(cfg, 6, 5, 1), by_chance(cfg, 3, 5, 2)
    results = play_match(cfg, first, second, 5)
    assert [(r.black, r.white) for r in results] == [("6 a move", "3 a move")] * 3 + [("3 a move", "6 a move")] * 2
    for result in results:
        game = new_games(1, 5)
        for move in result.moves:
            assert game.play([move]).tolist() == [0]
        assert game.facts().passes.tolist() == [2]
        assert result.score == float(game.scores(cfg.komi)[0])
        assert len(result.values) == len(result.moves)
    counted = tally(results)
    assert (counted.black_games, counted.white_games) == (3, 2)
    assert counted.black_wins == sum(r.score > 0 for r in results[:3])
    assert counted.white_wins == sum(r.score < 0 for r in results[3:])


def test_more_random_games_a_move_win():
    """The opponent's strength is the number of its readouts."""
    cfg = config()
    strong = tally(play_match(cfg, by_chance(cfg, 40, 12, 1), by_chance(cfg, 2, 12, 2), 12))
    assert strong.win_rate > 0.7


def test_a_match_comes_from_its_seeds():
    cfg = config()

    def match(seed):
        own = Reader(cfg, by_network(Inference(network(cfg))), 4, 2, seed, "own")
        return [r.moves for r in play_match(cfg, own, by_chance(cfg, 2, 2, seed), 2)]

    assert match(1) == match(1)
    assert match(1) != match(2)


def test_an_illegal_move_is_its_players_fault():
    class Stubborn:
        name = "stubborn"

        def choose(self, which):
            return torch.zeros(len(which), dtype=torch.int32), torch.zeros(len(which))

        def play(self, moves):
            """Nothing."""

        def close(self):
            """Nothing."""

    cfg = config()
    with pytest.raises(UserError, match="stubborn chose move 0, but the point is occupied"):
        play_match(cfg, Stubborn(), Stubborn(), 2)


def test_a_draw_is_nobodys_win():
    assert Result("a", "b", 0.0).winner == 0
    assert tally([Result("a", "b", 0.0), Result("b", "a", 0.0)]) == Tally(0, 1, 0, 1)


@pytest.mark.parametrize(
    ("wins", "games", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (128, 256, 0.4392, 0.5608)],
)
def test_the_interval_is_wilsons(wins, games, low, high):
    found = interval(wins, games)
    assert found == pytest.approx((low, high), abs=2e-4)


def test_games_are_kept_as_sgf():
    cfg = config()
    result = play_match(cfg, by_chance(cfg, 4, 1), by_chance(cfg, 4, 1, 2), 1)[0]
    record = sgf.parse(as_sgf(cfg, result))[0]
    assert [move for _, move in record.moves] == result.moves
    assert [colour for colour, _ in record.moves][:3] == [BLACK, WHITE, BLACK]
    assert record.komi == 0.5
    assert record.info["PB"] == "4 a move"
    assert record.result[:2] == ("B+" if result.score > 0 else "W+")
    assert any("Black wins" in text for text in record.comments.values())


def test_the_picture_is_the_last_board():
    cfg = config()
    result = play_match(cfg, by_chance(cfg, 4, 1), by_chance(cfg, 4, 1, 2), 1)[0]
    found = evaluation.picture(cfg, result)
    record = sgf.parse(as_sgf(cfg, result))[0]
    stones = sgf.replay(record).stones()[0]
    for row, text in zip(stones.tolist(), found["board"], strict=True):
        assert [{".": 0, "X": BLACK, "O": WHITE}[point] for point in text] == row
    assert len(found["win_rates"]) == found["moves"] == len(result.moves)
    assert all(rate is None or 0 <= rate <= 1 for rate in found["win_rates"])
    assert evaluation.picture(cfg, Result("a", "b", 1.0, [0], [math.nan]))["win_rates"] == [None]


def test_an_evaluation_is_a_match_of_all_its_games():
    cfg = config("match.games=7")
    counted, results = evaluation.evaluate(cfg, ALONE, network(cfg), 3)
    assert counted.black_games + counted.white_games == len(results) == 7
    assert counted == tally(results)


def test_a_program_that_speaks_gtp_can_be_the_opponent():
    """Ours, in a process a game: each gets the moves of the other, and the games end as the board says."""
    program = f"{sys.executable} -m mlperf_fast gtp --size 5 --readouts 2 --resign 0"
    cfg = config("match.opponent=gtp", "match.games=2", "match.readouts=4", f"match.command={program}")
    counted, results = evaluation.evaluate(cfg, ALONE, network(cfg), 3)
    assert counted.black_games == counted.white_games == 1
    assert results[0].white.startswith("mlperf_fast")
    for result in results:
        game = new_games(1, 5)
        for move in result.moves:
            assert game.play([move]).tolist() == [0]
        assert game.facts().passes.tolist() == [2]
        assert any(math.isnan(value) for value in result.values), "what a program thinks isn't known"


def test_a_program_that_gives_up_has_lost():
    program = f"{sys.executable} -m mlperf_fast gtp --size 5 --readouts 2 --resign 100"
    cfg = config("match.opponent=gtp", "match.games=2", "match.readouts=4", f"match.command={program}")
    counted, results = evaluation.evaluate(cfg, ALONE, network(cfg), 3)
    assert counted == Tally(1, 1, 1, 1)
    assert [result.score for result in results] == [1, -1]
    assert all(result.resigned for result in results)
    assert sgf.parse(as_sgf(cfg, results[1]))[0].result == "W+R"


@pytest.mark.skipif(shutil.which("gnugo") is None, reason="needs GNU Go: apt install gnugo")
def test_gnu_go_can_be_the_opponent():
    command = PRESETS["gnugo_9x9"]().match.command
    cfg = config(
        "match.opponent=gtp", "match.games=2", "match.readouts=4", f"match.command={command}", "play.own_eyes=true"
    )
    counted, results = evaluation.evaluate(cfg, ALONE, network(cfg), 3)
    assert counted.win_rate == 0, "nothing was learned yet"
    assert results[0].white.startswith("GNU Go")


def test_a_program_that_cant_play_is_named():
    for command, said in (("", "set match.command"), ("/nowhere/engine --gtp", "can't be started")):
        cfg = config("match.opponent=gtp", f"match.command={command}", "match.games=1")
        with pytest.raises(UserError, match=said):
            evaluation.evaluate(cfg, ALONE, network(cfg), 3)
