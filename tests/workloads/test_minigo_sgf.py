"""SGF in and out: by hand, against sgfmill, over real games where a folder of them is there, and what is refused."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from numerics import EXAMPLES

from mlperf_fast.errors import UserError
from mlperf_fast.workloads.minigo.board import BLACK, WHITE
from mlperf_fast.workloads.minigo.sgf import Record, parse, read, replay, write

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "minigo"
FILES = sorted(SHARED.rglob("*.sgf"))


def one(text, name="SGF"):
    [record] = parse(text, name)
    return record


def test_a_small_game():
    record = one("(;GM[1]FF[4]SZ[5]KM[0.5]PB[A \\] b]RE[B+24.5]C[hello];B[cc]C[centre];W[];B[tt])")
    assert record.size == 5
    assert record.komi == 0.5
    assert record.moves == [(BLACK, 12), (WHITE, 25), (BLACK, 25)]
    assert record.info == {"PB": "A ] b"}
    assert record.comments == {0: "hello", 1: "centre"}
    assert record.lead == 24.5
    games = replay(record)
    assert games.scores(record.komi).tolist() == [record.lead]
    assert games.facts().passes.tolist() == [2]


def test_columns_come_before_rows():
    assert one("(;SZ[9];B[ab])").moves == [(BLACK, 1 * 9 + 0)]
    assert one("(;SZ[19];B[sa])").moves == [(BLACK, 18)]


def test_set_up_and_handicap():
    record = one("(;SZ[9]HA[2]KM[0]AB[cc][gg]\n;W[ee])")
    assert (record.black, record.white, record.to_move) == ([2 * 9 + 2, 6 * 9 + 6], [], WHITE)
    assert record.info == {"HA": "2"}
    record = one("(;SZ[9]AB[aa:cb]AW[ii]AE[ba]PL[B])")
    assert record.black == [0, 2, 9, 10, 11]
    assert (record.white, record.to_move) == ([80], BLACK)
    assert one("(;SZ[9]AB[aa])").to_move == WHITE
    assert one("(;SZ[9];AB[aa];AW[bb];PL[W];W[cc])").white == [10]
    assert replay(one("(;SZ[9];B[aa];B[bb];W[cc])")).stones().sum() == 1  # two black moves on end


def test_the_main_line_is_the_first_of_the_variations():
    record = one("(;SZ[9];B[aa](;W[bb](;B[cc];W[dd])(;B[ee]))(;W[ff];B[gg]))")
    assert [move for _, move in record.moves] == [0, 10, 20, 30]


def test_what_stands_around_and_between():
    text = "\ufeffFrom: someone\n\n( ;\nGM [1]\tSZ\n[9] ; B [a\na] ;\nW[bb]Comment[zz]\n)\n(;SZ[5];B[aa])\n"
    first, second = parse(text)
    assert [move for _, move in first.moves] == [0, 10]
    assert second.size == 5
    assert first.comments == {2: "zz"}
    record = one("(;FF[3]GaMe[1]SiZe[9];White[bb])")  # FF[3]'s long names: lower-case letters don't count
    assert (record.size, record.moves) == (9, [(WHITE, 10)])


def test_character_sets():
    name = "井山裕太"
    for charset in ("UTF-8", "Shift_JIS", "GB18030"):
        assert one(f"(;CA[{charset}]PB[{name}])".encode(charset)).info == {"PB": name}
    assert one(f"(;PB[{name}])".encode()).info == {"PB": name}
    assert one("(;PB[Gérard])".encode("latin-1")).info == {"PB": "Gérard"}
    assert one(b"(;CA[UTF-8]PB[\xff]SZ[9])").size == 9, "a wrong byte in a name doesn't cost the game"


@pytest.mark.parametrize(
    ("result", "lead"),
    [("B+3.5", 3.5), ("W+12", -12), ("W+0.50", -0.5), ("0", 0), ("Draw", 0), ("jigo", 0), ("B+Resign", None),
     ("W+", None), ("", None), ("Void", None), ("?", None), ("B+T", None)],
)  # fmt: skip
def test_results(result, lead):
    assert Record(result=result).lead == lead


texts = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]) | st.sampled_from("[]\\;:()\n"), max_size=20
)


@EXAMPLES
@given(data=st.data(), size=st.integers(5, 19))
def test_what_is_written_reads_the_same(data, size):
    points = data.draw(st.lists(st.integers(0, size**2 - 1), unique=True, max_size=30))
    moves = data.draw(st.lists(st.tuples(st.sampled_from([BLACK, WHITE]), st.integers(0, size**2)), max_size=40))
    split = len(points) // 2
    # Text without trailing space: what surrounds RE and KM doesn't count.
    record = Record(
        size=size,
        komi=data.draw(st.sampled_from([None, 0.0, 6.5, 7.5, -3.0])),
        black=sorted(points[:split]),
        white=sorted(points[split:]),
        to_move=moves[0][0] if moves else data.draw(st.sampled_from([BLACK, WHITE])) if points else BLACK,
        moves=moves,
        result=data.draw(st.sampled_from(["", "B+3.5", "W+Resign", "0"])),
        info=data.draw(st.dictionaries(st.sampled_from(["PB", "PW", "RU", "GC"]), texts)),
        comments={k: v for k, v in data.draw(st.dictionaries(st.integers(0, len(moves)), texts)).items() if v},
    )
    text = write(record)
    assert one(text) == record
    assert one(text.encode()) == record
    assert max(map(len, re.findall(r"(?:;[BW]\[\w*\]){2,}", text)), default=0) <= 60


def test_sgfmill_reads_what_is_written_and_writes_what_is_read():
    sgfmill = pytest.importorskip("sgfmill.sgf", reason="sgfmill isn't installed")
    record = Record(
        size=13, komi=6.5, black=[0, 14], white=[28], to_move=WHITE, result="W+3.5", info={"PB": "a]b\\", "PW": "ü"},
        moves=[(WHITE, 5), (BLACK, 169), (WHITE, 168)], comments={2: "x\ny"},
    )  # fmt: skip
    game = sgfmill.Sgf_game.from_string(write(record))
    assert (game.get_size(), game.get_komi(), game.get_winner()) == (13, 6.5, "w")
    assert game.get_player_name("b") == "a]b\\"
    assert game.get_player_name("w") == "ü"
    black, white, _ = game.get_root().get_setup_stones()
    assert black == {(12, 0), (11, 1)}  # rows from the bottom
    assert white == {(10, 2)}
    moves = [node.get_move() for node in game.get_main_sequence()[1:]]
    assert moves == [("w", (12, 5)), ("b", None), ("w", (0, 12))]
    assert game.get_main_sequence()[2].get("C") == "x\ny"
    assert one(game.serialise()) == record


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_real_games_replay_as_in_sgfmill(path):
    sgfmill = pytest.importorskip("sgfmill.sgf", reason="sgfmill isn't installed")
    boards = pytest.importorskip("sgfmill.boards")
    [record] = read(path)
    oracle = boards.Board(record.size)
    game = sgfmill.Sgf_game.from_bytes(path.read_bytes())
    for node in game.get_main_sequence():
        colour, move = node.get_move()
        if move is not None:
            oracle.play(*move, colour)
    rows = reversed(range(record.size))  # sgfmill counts them from the bottom
    stones = [
        [{None: 0, "b": BLACK, "w": WHITE}[oracle.get(row, column)] for column in range(record.size)] for row in rows
    ]
    assert replay(record, path.name).stones()[0].tolist() == stones
    again = one(write(record))
    assert (again.moves, again.komi, again.result) == (record.moves, record.komi, record.result)


@pytest.mark.skipif(not FILES, reason=f"{SHARED} holds no games")
def test_real_games_give_their_results():
    """Players take dead stones off by agreement, we only those in pass-alive regions. So what was counted by area must
    be our score wherever all stones are pass-alive; and it is in more games, whose dead stones were taken."""
    same, settled = 0, 0
    for path in FILES:
        [record] = read(path)
        by_area = record.info.get("RU") in ("Chinese", "Tromp/Taylor", "New Zealand")
        games = replay(record)
        if not by_area or record.lead is None or games.facts().passes[0] < 2:
            continue
        agrees = games.scores(record.komi).tolist() == [record.lead]
        same += agrees
        if (games.pass_alive()[games.stones() != 0] != 0).all():
            settled += 1
            assert agrees, path.name
    assert settled >= 2
    assert same >= 22


# What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no game; expected SGF"),
        ("plain words", "holds no game"),
        ("(;SZ[9](;B[aa])", "ends inside a game: the file is cut off"),
        ("(;SZ[9];B[aa", "ends inside a game: the file is cut off"),
        ("(;SZ[9];B[aa]C[a \\]", "ends inside a game"),
        ("(;SZ[9]((;B[aa])))", "line 1: a variation without a node"),
        ("(;SZ[9]\n;B[aa]\n;*[bb])", r"line 3: found '\*\[bb\]\)', expected a node, a property or a value"),
        ("(;[aa])", "line 1: a value without a property"),
        ("(;GM[3]SZ[9])", r"GM\[3\] is another game; expected GM\[1\], Go"),
        ("(;SZ[4])", "a board of 4 lines; expected 5 to 19"),
        ("(;SZ[25])", "a board of 25 lines; expected 5 to 19"),
        ("(;SZ[9:13])", r"SZ\[9:13\]: expected a square board"),
        ("(;SZ[nine])", r"SZ\[nine\]: expected a square board"),
        ("(;SZ[9]KM[six])", r"KM\[six\] isn't a number"),
        ("(;SZ[9]KM[nan])", r"KM\[nan\] isn't a number"),
        ("(;SZ[9];B[jj])", r"move 1: B\[jj\]: expected two letters of a to i"),
        ("(;SZ[9];B[aa];W[a])", r"move 2: W\[a\]: expected two letters"),
        ("(;SZ[9]AB[aa:zz])", r"AB\[aa:zz\]: expected two letters"),
        ("(;SZ[9];B[aa]W[bb])", "move 2: one node has moves of both colours"),
        ("(;SZ[9];B[aa];AB[cc])", "node 2 sets stones up after move 1"),
        ("(" + ";" * 100_001 + ")", "a game of more than 100,000 nodes"),
        ("(;CA[utf-99]SZ[9])", r"CA\[utf-99\] names no known character set"),
    ],
)
def test_refused(text, message):
    with pytest.raises(UserError, match=f"^some.sgf: .*({message})"):
        parse(text.encode(), "some.sgf")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(;SZ[9];B[aa];W[aa])", "move 2, White at aa: the point is occupied"),
        ("(;SZ[9]AB[ab][ba];W[aa])", "move 1, White at aa: it would be suicide"),
        ("(;SZ[5]AB[ba][ab][bc]AW[ca][bb][db][cc];B[cb];W[bb])", "move 2, White at bb: ko"),
        ("(;SZ[9];B[];W[];B[];W[aa])", "move 4, White at aa: two passes ended the game"),
        ("(;SZ[9]AB[ab][ba]AW[aa])", "makes a chain without liberties"),
    ],
)
def test_moves_that_the_rules_forbid(text, message):
    with pytest.raises(UserError, match=f"^some.sgf: .*{message}"):
        replay(one(text), "some.sgf")


def test_files(tmp_path):
    path = tmp_path / "a.sgf"
    with pytest.raises(UserError, match=r"a\.sgf: can't be read: No such file"):
        read(path)
    path.write_bytes(b"(;SZ[9]C[" + b" " * 10_000_000 + b"])")
    with pytest.raises(UserError, match=r"a\.sgf: more than 10,000,000 bytes"):
        read(path)
    path.write_text(write(Record(size=9, moves=[(BLACK, 0)])), encoding="utf-8")
    assert read(str(path))[0].moves == [(BLACK, 0)]


def test_deep_and_long_files_take_no_recursion():
    deep = "(;SZ[9]" + "(;B[aa]" * 50_000 + ")" * 50_001
    assert len(one(deep).moves) == 50_000
    with pytest.raises(UserError, match="cut off"):
        one("(;C[" + "\\]" * 100_000)
