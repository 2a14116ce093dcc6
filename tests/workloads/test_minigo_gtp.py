"""GTP from both sides: what the protocol says, what may come in, and whole games between processes."""

import io
import os
import re
import shlex
import shutil
import sys
import tempfile
import time

import pytest
import torch
from simple_go import from_diagram

from mlperf_fast import __version__
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.minigo import model, vertices
from mlperf_fast.workloads.minigo.board import BLACK, LEGAL, WHITE, new_games
from mlperf_fast.workloads.minigo.gtp import COMMANDS, Lines, Server, serve
from mlperf_fast.workloads.minigo.gtp_client import Engine
from mlperf_fast.workloads.minigo.judge import by_playouts
from mlperf_fast.workloads.minigo.player import Player

READOUTS = 8


def a_server(size=5, komi=0.5, readouts=READOUTS, **options):
    return Server(lambda size, komi: Player(size, komi, by_playouts, readouts, **options), size, komi)


def talk(server, text):
    """The answers to these lines, each without the empty line that ends it."""
    out = io.StringIO()
    with tempfile.TemporaryFile() as file:
        file.write(text if isinstance(text, bytes) else text.encode())
        file.seek(0)
        serve(server, Lines(file.fileno()), out)
    *answers, rest = out.getvalue().split("\n\n")
    assert rest == ""
    assert all(answer[0] in "=?" for answer in answers)
    return answers


def put(server, diagram, to_move=BLACK):
    simple = from_diagram(diagram)
    black, white = ([simple.number(point) for point, found in simple.stones.items() if found == side] for side in "BW")
    server.player.begin(black, white, to_move)
    return server


def stones(server):
    return server.player.games.stones()[0].flatten().tolist()


# The protocol ------------------------------------------------------------------------------------------------------


def test_answers_as_the_protocol_has_them():
    text = (
        "\n# nothing\n  \n1 protocol_version\nname\n7\tversion # why\r\nknown_command\tplay\r\n"
        "8 known_command pla\x07y\n9 known_command fly\n10 fly to a3\nkomi\n11\nquit\nname\n"
    )
    assert talk(a_server(), text) == [
        "=1 2",
        "= mlperf_fast",
        f"=7 {__version__}",
        "= true",
        "=8 true",
        "=9 false",
        "?10 unknown command",
        "? syntax error: 0 arguments, expected 1",
        "=",
    ], "and after quit nothing"


def test_every_command_of_the_protocol_is_listed():
    [answer] = talk(a_server(), "list_commands")
    listed = answer.removeprefix("= ").splitlines()
    assert listed == list(COMMANDS)
    demanded = "protocol_version name version known_command list_commands quit boardsize clear_board komi play genmove"
    assert set(demanded.split()) <= set(listed)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("boardsize", "? syntax error: 0 arguments, expected 1"),
        ("boardsize nine", "? boardsize not an integer"),
        ("boardsize 4", "? unacceptable size"),
        ("boardsize 20", "? unacceptable size"),
        ("boardsize 99999999999999999999", "? boardsize not an integer"),
        ("komi half", "? komi not a float"),
        ("komi nan", "? unacceptable komi"),
        ("komi 1e9", "? unacceptable komi"),
        ("play", "? syntax error: 0 arguments, expected 2"),
        ("play black", "? syntax error: 1 arguments, expected 2"),
        ("play red a1", "? invalid color or coordinate"),
        ("play black i3", "? invalid color or coordinate"),
        ("play black f1", "? invalid color or coordinate"),
        ("play black a0", "? invalid color or coordinate"),
        ("play black a6", "? invalid color or coordinate"),
        ("play black a²", "? invalid color or coordinate"),
        ("play black 11", "? invalid color or coordinate"),
        ("play black resign", "? invalid color or coordinate"),
        ("play black c3", "? illegal move: the point is occupied"),
        ("genmove", "? syntax error: 0 arguments, expected 1"),
        ("genmove me", "? invalid color or coordinate"),
        ("fixed_handicap 2", "? invalid number of stones"),  # the board is too small
        ("fixed_handicap two", "? invalid number of stones"),
        ("set_free_handicap a1", "? bad vertex list"),
        ("set_free_handicap a1 a1", "? bad vertex list"),
        ("set_free_handicap a1 pass", "? bad vertex list"),
        ("set_free_handicap a1 b2", "? board not empty"),
        ("final_status_list", "? syntax error: 0 arguments, expected 1"),
        ("final_status_list happy", "? syntax error: expected alive, seki or dead"),
        ("loadsgf", "? syntax error: expected a file name"),
        ("loadsgf /nowhere.sgf", "? cannot load file: /nowhere.sgf: can't be read: No such file or directory"),
        ("loadsgf /nö.sgf", "? cannot load file: /nö.sgf: can't be read: No such file or directory"),
        ("time_settings 1 2", "? syntax error: 2 arguments, expected 3"),
        ("time_settings -1 2 3", "? syntax error: expected numbers"),
        ("time_left black", "? syntax error: 1 arguments, expected 3"),
        ("time_left green 1 2", "? invalid color or coordinate"),
        ("lz-analyze soon", "? syntax error: expected numbers"),
    ],
)
def test_what_is_refused_changes_nothing(line, answer):
    server = a_server()
    server.player.play(BLACK, 12)
    assert talk(server, f"{line}\nname\n") == [answer, "= mlperf_fast"]
    assert stones(server) == [0] * 12 + [1] + [0] * 12
    assert (server.player.size, server.player.komi, server.player.moves) == (5, 0.5, [(BLACK, 12)])


def test_garbage_is_answered_line_by_line():
    garbage = bytes(range(256)) + b"\n\xff\xfe\x00play\n" + b"x" * 100_000 + b"\n" + "９ name\n".encode() + b"12 \r\n"
    answers = talk(a_server(), garbage + b"name")  # the last line needs no end
    assert answers[-1] == "= mlperf_fast"
    assert all(answer.startswith("?") for answer in answers[:-1])
    assert len(answers) >= 4


@pytest.mark.parametrize(
    ("diagram", "moves", "reason"),
    [
        (". X . . . / X . . . . / . . . . . / . . . . . / . . . . .", "w a5", "it would be suicide"),
        (". X O . . / X O . O . / . X O . . / . . . . . / . . . . .", "b c4 w b4", "ko: it would take back at once"),
        (
            ". . . O . / X X O O . / . X O . . / . X O . . / . X O . .",  # two are sent, one returns
            "w b5 b pass w a5 b c5 w b5",
            "superko: this board was there before",
        ),
    ],
)
def test_what_the_rules_forbid(diagram, moves, reason):
    server = put(a_server(), diagram.replace("/", "\n"))
    words = moves.split()
    lines = "".join(f"play {colour} {point}\n" for colour, point in zip(words[::2], words[1::2], strict=True))
    *allowed, last = talk(server, lines)
    assert allowed == ["="] * len(allowed)
    assert last == f"? illegal move: {reason}"


def test_undo_takes_back_stones_captures_and_what_superko_knows():
    server = put(a_server(), ". X O . . \n X O . O . \n . X O . . \n . . . . . \n . . . . .")
    before = stones(server)
    assert talk(server, "undo\nplay b c4\nplay w b4\nundo") == ["? cannot undo", "=", "? illegal move: " + KO, "="]
    assert stones(server) == before
    assert talk(server, "play b c4\nplay b a1\nplay b b1\nundo\nundo\nplay w b4")[-1] == "? illegal move: " + KO
    assert talk(server, "play w a1\nplay b e1\nundo\nplay w b4") == ["=", "=", "=", "="]
    assert server.player.to_move == BLACK


KO = "ko: it would take back at once"


def test_after_two_passes_play_may_go_on():
    server = a_server()
    assert talk(server, "play b c3\nplay w pass\nplay b pass\nplay w pass\nplay b c3\nplay b a1\nplay w b2") == [
        "=", "=", "=", "=", "? illegal move: the point is occupied", "=", "=",
    ]  # fmt: skip
    assert len(server.player.moves) == 6
    assert server.player.passes == 0
    assert talk(server, "undo\nundo\nundo\nundo\nundo\nfinal_score")[-1] == "= B+24.5"
    assert stones(server) == [0] * 12 + [1] + [0] * 12


def test_moves_out_of_turn():
    server = a_server(7)
    answers = talk(server, "play b d4\nplay b c3\ngenmove b\ngenmove b\ngenmove w\nshowboard")
    assert answers[:2] == ["=", "="]
    points = [vertices.move(answer.removeprefix("= "), 7) for answer in answers[2:5]]
    assert [colour for colour, _ in server.player.moves] == [BLACK, BLACK, BLACK, BLACK, WHITE]
    assert [stones(server)[point] for point in points] == [1, 1, -1]


def test_the_board_as_text():
    server = a_server()
    [_, _, _, answer] = talk(server, "play b a5\nplay w c3\nkomi 3.5\nshowboard")
    assert answer.splitlines() == [
        "= ",
        "   A B C D E",
        " 5 X . . . . 5",
        " 4 . . . . . 4",
        " 3 . . O). . 3",
        " 2 . . . . . 2",
        " 1 . . . . . 1",
        "   A B C D E",
        "Black to move, komi 3.5, move 3",
        "Captured by X: 0, by O: 0",
    ]


def test_score_and_dead_stones():
    server = put(a_server(), ". X . O . \n X X X X X \n . . . . . \n O O O O O \n . O . O .")
    text = "final_score\nfinal_status_list alive\nfinal_status_list dead\nfinal_status_list seki\nkomi 0\nfinal_score"
    alive = "B5 A4 B4 C4 D4 E4\nA2 B2 C2 D2 E2 B1 D1"
    assert talk(server, text) == ["= W+0.5", f"= {alive}", "= D5", "=", "=", "= 0"]


def test_handicap():
    lines = "fixed_handicap 9\nclear_board\nfixed_handicap 7\nfixed_handicap 2\n"
    lines += "boardsize 8\nfixed_handicap 5\nplace_free_handicap 9\n"
    spec = "D4 Q16 D16 Q4 D10 Q10 K4 K16 K10"  # the protocol's own table
    nine, _, seven, again, _, *even = talk(a_server(19), lines)
    assert set(nine.split()[1:]) == set(spec.split())
    assert set(seven.split()[1:]) == {*spec.split()[:6], "K10"}
    assert again == "? board not empty"
    assert even[0] == "? invalid number of stones"
    assert set(even[1].split()[1:]) == {"C3", "F6", "C6", "F3"}
    server = a_server(9)
    assert talk(server, "set_free_handicap a1 J9 c3\nundo") == ["=", "? cannot undo"]
    assert server.player.to_move == WHITE
    assert sum(stones(server)) == 3


def test_loading_a_game(tmp_path):
    path = tmp_path / "a game.sgf"
    path.write_text("(;SZ[7]KM[2.5]AB[aa];B[bb];W[cc];B[dd])")
    server = a_server()
    assert talk(server, f"loadsgf {path} 3\nundo\nplay w c5\nfinal_score") == ["=", "=", "=", "= W+1.5"]
    assert (server.player.size, server.player.komi) == (7, 2.5)
    assert [move for _, move in server.player.moves] == [8, 16]
    talk(server, f"loadsgf {path}")
    assert len(server.player.moves) == 3
    talk(server, f"loadsgf {path} 0")
    assert server.player.moves == []
    path.write_text("(;SZ[5];B[aa];W[aa])")
    assert talk(server, f"loadsgf {path}")[0].endswith("move 2, White at aa: the point is occupied")
    assert server.player.size == 7


# Play --------------------------------------------------------------------------------------------------------------


def test_passes_when_nothing_is_left_or_the_count_has_won():
    settled = ". X . X . \n X X X X X \n X X X X X \n O O O O O \n . O . O ."
    server = put(a_server(), settled)
    assert talk(server, "reg_genmove b\nreg_genmove w") == ["= pass", "= pass"]
    server = put(a_server(), ". . . . . \n X X X X . \n . . . . . \n . O . . . \n . . . . .")
    assert talk(server, "play w pass\nreg_genmove b\nkomi 24.5\nreg_genmove b")[1] == "= pass"
    assert talk(server, "reg_genmove b") != ["= pass"], "by a komi of 24.5 Black has lost so far"


def test_gives_up_only_when_it_is_told_to():
    lost = ". X . X . \n X X X X X \n . . . . . \n . . O . . \n . . . . ."  # by 15 points at best
    assert talk(put(a_server(komi=-20, resign=0.2), lost, WHITE), "genmove w") == ["= resign"]
    assert talk(put(a_server(komi=-20), lost, WHITE), "genmove w") != ["= resign"]


def test_takes_what_is_in_atari():
    """Ten white stones: by any count the game."""
    server = put(a_server(readouts=200), "O O O O O \n O O O O O \n X X X X . \n . X . . . \n . . . . .")
    assert talk(server, "genmove b") == ["= E3"]
    best = server.player.reading
    assert best is server.player.search, "the tree is kept"


def test_the_same_seed_plays_the_same_game():
    games = []
    for seed in (1, 1, 2):
        games.append(talk(a_server(seed=seed), "genmove b\ngenmove w\n" * 6))
    assert games[0] == games[1] != games[2]


def test_candidates_and_the_line_that_is_expected():
    player = Player(5, 0.5, by_playouts, 200, seed=3)
    move = player.think(BLACK)
    found = player.candidates()
    assert found[0].move == move
    assert [one.visits for one in found] == sorted((one.visits for one in found), reverse=True)
    visits = int(player.reading.roots().own_visits[0])
    assert 200 <= visits < 204, "the last batch may have more leaves than were asked for"
    assert sum(one.visits for one in found) == visits - 1, "the first visit was the root's own"
    assert found[0].prior == pytest.approx(1 / 26)
    games = new_games(1, 5)
    assert found[0].line[0] == move
    assert 2 <= len(found[0].line) <= 12
    for point in found[0].line:
        assert games.play([point]).tolist() == [LEGAL]
    player.play(BLACK, move)
    assert player.candidates()[0].move == found[0].line[1], "what was read below the move is kept"
    assert 0 < player.win_rate() < 1
    assert player.search.line(0, 25 if move != 25 else 0, 0) == []


def test_an_analysis_goes_on_until_the_next_command():
    into, out = os.pipe()
    answers = io.StringIO()

    class Watched(Lines):
        """The next command comes after the third line."""

        def waits(self, seconds=0):
            if answers.getvalue().count("info move") >= 3 * found:
                os.write(out, b"5 name\nquit\n")
            return super().waits(seconds)

    server, found = a_server(), 26
    os.write(out, b"play b c3\n4 lz-analyze w interval 1\n")
    serve(server, Watched(into), answers)
    os.close(into), os.close(out)
    played, analysis, name, end = answers.getvalue().split("\n\n")[:4]
    assert (played, name, end) == ("=", "=5 mlperf_fast", "=")
    first, *lines = analysis.splitlines()
    assert first == "=4"
    assert len(lines) >= 2
    one = r"info move (?:[A-E][1-5]|pass) visits \d+ winrate \d+ prior \d+ order (\d+) pv (?:(?:[A-E][1-5]|pass) ?)+"
    for line in lines:
        assert re.fullmatch(f"(?:{one} ?)+", line)
        assert [int(order) for order in re.findall(r"order (\d+)", line)] == list(range(line.count("info")))
    visits = [sum(map(int, re.findall(r"visits (\d+)", line))) for line in lines]
    assert visits == sorted(visits)
    assert stones(server) == [0] * 12 + [1] + [0] * 12


# Time --------------------------------------------------------------------------------------------------------------


def test_short_of_time_it_reads_less():
    server = a_server(9, readouts=1_000_000)
    start = time.monotonic()
    talk(server, "time_settings 1 0 0\ngenmove b\ntime_left w 0 0\nreg_genmove w")
    assert time.monotonic() - start < 5
    assert 1 <= int(server.player.reading.roots().own_visits[0]) < 1_000_000
    assert len(server.player.moves) == 1


# Other engines -----------------------------------------------------------------------------------------------------


def play_a_game(black, white, size, komi, most=400):
    """Two engines and a referee; returns the board at the end."""
    games = new_games(1, size)
    engines = {BLACK: black, WHITE: white}
    for engine in engines.values():
        engine.boardsize(size), engine.clear(), engine.komi(komi)
    colour = BLACK
    while games.facts().passes[0] < 2:
        move = engines[colour].genmove(colour)
        if move is None:
            break
        assert games.play([move], [colour]).tolist() == [LEGAL]
        engines[-colour].play(colour, move)
        colour = -colour
        assert games.facts().moves[0] < most
    return games


def ours(*arguments):
    environment = ["env", "OMP_NUM_THREADS=1"]
    return [*environment, sys.executable, "-m", "mlperf_fast", "gtp", "--readouts", "12", *arguments]


def test_a_game_between_two_processes(tmp_path):
    """One with a network, one without."""
    torch.manual_seed(0)
    path = tmp_path / "5x5.pt"
    model.save(model.DualNet(5, width=8, blocks=1), path, komi=3.5)
    with (
        Engine(ours("--checkpoint", str(path), "--resign", "0")) as network,
        Engine(ours("--size", "9", "--resign", "0")) as playouts,
    ):
        assert network.name() == f"mlperf_fast {__version__}"
        assert "komi 3.5" in network.send("showboard")
        assert "\n 9 ." in playouts.send("showboard")
        with pytest.raises(UserError, match="unacceptable size"):
            network.send("boardsize 9")
        games = play_a_game(playouts, network, 5, 0.5)
        assert games.facts().moves[0] > 2
        lead = float(games.scores(0.5)[0])
        score = f"{'B' if lead > 0 else 'W'}+{abs(lead):g}"
        assert network.send("final_score") == playouts.send("final_score") == score
    assert network.process.returncode == playouts.process.returncode == 0
    assert "plays by the network" in network.told
    assert "random games" in playouts.told


@pytest.mark.skipif(shutil.which("gnugo") is None, reason="GNU Go isn't installed: apt install gnugo")
def test_a_game_against_gnu_go():
    rules = shlex.split("gnugo --mode gtp --level 1 --chinese-rules --positional-superko --seed 1")
    server = a_server(7, readouts=60)
    with Engine(rules) as gnugo:
        gnugo.boardsize(7), gnugo.clear(), gnugo.komi(8.5)
        talk(server, "boardsize 7\nkomi 8.5")
        while server.player.passes < 2:
            [answer] = talk(server, "genmove b")
            gnugo.play(BLACK, vertices.move(answer.removeprefix("= "), 7))
            if server.player.passes < 2:
                move = gnugo.genmove(WHITE)
                if move is None:
                    break
                assert server.player.play(WHITE, move) == LEGAL
        assert len(server.player.moves) > 10
        shown = gnugo.send("list_stones black").split()
        assert sorted(vertices.move(text, 7) for text in shown) == [i for i, x in enumerate(stones(server)) if x == 1]
