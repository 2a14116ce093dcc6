"""A game judged move by move: what is a mistake, what is written down, and what is refused."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from sgfmill import sgf as sgfmill

from mlperf_fast import cli
from mlperf_fast.workloads.minigo import analyze as analysis
from mlperf_fast.workloads.minigo import model, picture, sgf
from mlperf_fast.workloads.minigo.board import BLACK, WHITE
from mlperf_fast.workloads.minigo.judge import by_playouts

# Who plays E3 takes what the other has there, ten stones or four, and the board. Black doesn't.
BLUNDER = (
    "(;SZ[5]KM[0.5]PB[A <b> & c]PW[[red\\]x]RE[W+R]C[a game \\] of two]AB[ac][bc][cc][dc]"
    "AW[aa][ba][ca][da][ea][ab][bb][cb][db][eb][ad][bd][cd][dd]PL[B];B[ee];W[ec]C[saved])"
)
SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "minigo" / "gnugo_9x9"


def judged(text, readouts=150, **options):
    [record] = sgf.parse(text)
    return record, analysis.analyze(record, by_playouts, readouts, **options)


@pytest.fixture(scope="module")
def blunder():
    return judged(BLUNDER)


def call(capsys, *arguments):
    code = cli.main(["analyze", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_a_blunder_is_found(blunder):
    _, positions = blunder
    assert [(p.number, p.colour, p.played) for p in positions] == [(0, BLACK, 24), (1, WHITE, 14), (2, BLACK, None)]
    first = positions[0]
    assert first.preferred == 14
    assert first.line[0] == 14
    assert first.win_rate > 0.5
    assert first.lost > 0.3
    assert positions[1].preferred == 14
    assert analysis.mistakes(positions) == [first]


def test_the_end_is_counted_and_a_third_pass_is_none():
    _, positions = judged("(;SZ[5]KM[0.5];B[cc];W[];B[];W[])", 20)
    assert [p.win_rate for p in positions[3:]] == [1, 1]
    assert [p.preferred for p in positions[3:]] == [None, None]
    assert positions[-1].lost == 0


def test_two_moves_of_one_side_on_end():
    _, positions = judged("(;SZ[5]KM[0.5];B[cc];B[bb];B[dd])", 20)
    assert [p.colour for p in positions] == [BLACK, BLACK, BLACK, WHITE]
    assert all(p.preferred is not None for p in positions)


def test_a_game_read_in_parts_is_judged_the_same(monkeypatch):
    text = "(;SZ[6];B[cc];W[dd];B[cd];W[dc];B[cb])"
    _, whole = judged(text, 16)
    monkeypatch.setattr(analysis, "MOST_NODES", 40)
    assert judged(text, 16)[1] == whole
    assert judged(text, 16, seed=1)[1] != whole


def test_sgfmill_reads_the_comments(blunder):
    record, positions = blunder
    text = sgf.write(analysis.annotated(record, positions))
    game = sgfmill.Sgf_game.from_string(text)
    nodes = list(game.main_sequence_iter())
    assert [node.get_move() for node in nodes[1:]] == [("b", (0, 4)), ("w", (2, 4))]
    assert game.get_player_name("w") == "[red]x"
    comments = [node.get("C") for node in nodes]
    assert comments[0].startswith("a game ] of two\n\nBlack wins ")
    assert "move 1, Black E1: lost " in comments[0]
    assert re.search(r"Lost \d+%; the search prefers E3 ", comments[1])
    assert comments[2].startswith("saved\n\nBlack wins ")
    [again] = sgf.parse(text)
    assert (again.moves, again.black, again.info) == (record.moves, record.black, record.info)


def test_the_picture(blunder):
    record, positions = blunder
    root = ElementTree.fromstring(picture.picture(record, positions))
    name = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{name}title").text == "Black: A <b> & c, White: [red]x, W+R"
    circles = [circle.get("class") for circle in root.iter(f"{name}circle")]
    assert (circles.count("B"), circles.count("W"), circles.count("mistake")) == (1, 15, 1)
    [line] = root.iter(f"{name}polyline")
    heights = [float(point.split(",")[1]) for point in line.get("points").split()]
    rates = [1 - (height - picture.TOP) / picture.PLOT_HEIGHT for height in heights]
    assert rates == pytest.approx([p.win_rate for p in positions], abs=1e-3)
    assert "prefers-color-scheme: dark" in root.find(f"{name}style").text
    record.info["PB"] = "bell \x07 and \x1b[31m"
    ElementTree.fromstring(picture.picture(record, positions))


def test_the_command(capsys, tmp_path):
    path, out, svg = tmp_path / "game.sgf", tmp_path / "out.sgf", tmp_path / "out.svg"
    path.write_text(BLUNDER + "(;SZ[9])")
    code, text, errors = call(capsys, path, "--readouts", 150, "--out", out, "--svg", svg)
    assert code == 0
    assert "holds 2 games; the first is judged" in errors
    assert "judged by random games" in text
    assert "the biggest mistakes" in text
    assert "move 1, Black E1: lost " in text
    assert out.read_bytes().startswith(b"(;")
    assert svg.read_text().startswith("<svg ")
    path.write_text("(;SZ[5];B[cc])")
    code, text, _ = call(capsys, path, "--readouts", 8, "--json", "--komi", 3.5)
    found = json.loads(text)
    assert (code, found["komi"], found["size"]) == (0, 3.5, 5)
    assert [p["played"] for p in found["positions"]] == ["C3", None]
    assert 0 < found["positions"][0]["black_win_rate"] < 1


def test_a_network_judges_boards_of_its_size(capsys, tmp_path):
    torch.manual_seed(0)
    net, path = tmp_path / "5x5.pt", tmp_path / "game.sgf"
    model.save(model.DualNet(5, width=8, blocks=1), net, own_eyes=0)
    path.write_text("(;SZ[5]KM[0.5];B[cc];W[bb])")
    code, text, _ = call(capsys, path, "--checkpoint", net, "--readouts", 20)
    assert code == 0
    assert f"judged by the network {net}; 20 readouts a position, komi 0.5" in " ".join(text.split())
    path.write_text("(;SZ[9];B[cc])")
    code, _, errors = call(capsys, path, "--checkpoint", net)
    assert code == 2
    assert "was played on 9 lines, the network plays on 5" in errors


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("", [], "holds no game"),
        ("(;SZ[5];B[aa];W[aa])", [], "game.sgf: move 2, White at aa: the point is occupied"),
        ("(;SZ[5];B[aa])", ["--komi", "nan"], "komi"),
        ("(;SZ[5];B[aa])", ["--readouts", "0"], "--readouts is 0; expected 1 to 1,000,000"),
        ("(;SZ[5];B[aa])", ["--checkpoint", "game.sgf"], "is no network"),
        ("(;SZ[5];B[aa])", ["--checkpoint", "absent.pt"], "there is no network"),
        ("(;SZ[5];B[aa])", ["--out", "nowhere/x.sgf"], "its folder doesn't exist"),
        ("(;SZ[5];B[aa])", ["--svg", "."], "is a folder; name the file"),
    ],
)
def test_a_mistake_gets_one_message(capsys, tmp_path, monkeypatch, text, more, message):
    monkeypatch.chdir(tmp_path)
    Path("game.sgf").write_text(text)
    code, _, errors = call(capsys, "game.sgf", "--readouts", "2", *more)
    assert code == 2
    assert message in errors
    assert [path.name for path in tmp_path.iterdir()] == ["game.sgf"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of real games isn't here")
def test_real_games():
    for path in sorted(SHARED.glob("*.sgf"))[:3]:
        record = sgf.read(path)[0]
        positions = analysis.analyze(record, by_playouts, 2, name=path.name)
        assert len(positions) == len(record.moves) + 1
        ElementTree.fromstring(picture.picture(record, positions))
        assert sgf.parse(sgf.write(analysis.annotated(record, positions)))[0].moves == record.moves
