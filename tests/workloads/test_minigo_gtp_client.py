"""Other engines over GTP, in all the ways that they fail; time on the clock; points by their names."""

import os
import sys
import time

import pytest

from mlperf_fast.errors import UserError
from mlperf_fast.workloads.minigo import sgf, vertices
from mlperf_fast.workloads.minigo.board import BLACK, WHITE
from mlperf_fast.workloads.minigo.clock import Clock
from mlperf_fast.workloads.minigo.gtp_client import Engine


def python(code):
    return [sys.executable, "-I", "-S", "-c", code]


ECHO = "import sys\nfor line in sys.stdin: print('{answer}', flush=True)"


@pytest.mark.parametrize(
    ("command", "call", "message"),
    [
        (["/nowhere/engine"], "name", "can't be started: No such file or directory"),
        ([os.devnull], "name", "can't be started: Permission denied"),
        (python("import sys; sys.exit('no licence')"), "name", "; it wrote: no licence"),
        (python("import sys; sys.stdin.readline(); sys.exit('lost it')"), "name", "ended instead of answering 'name'"),
        (python(ECHO.format(answer="hello")), "name", "answered 'hello' to 'name'; expected = or ?"),
        (python(ECHO.format(answer="= Z99\\n")), "genmove", "answered 'Z99' to genmove; expected a point"),
        (python(ECHO.format(answer="=")), "name", "didn't answer 'name' within 0.6 s"),
        (python("import time; time.sleep(60)"), "name", "didn't answer 'name' within 0.6 s"),
        (python("print('=' * 3_000_000)"), "name", "answered more than 1,048,576 bytes"),
        (python(ECHO.format(answer="? not today\\n")), "name", "refuses 'name': not today"),
    ],
)
def test_an_engine_that_fails_is_named(command, call, message):
    start = time.monotonic()
    with pytest.raises(UserError, match="the engine") as raised, Engine(command, timeout=0.6) as engine:
        engine.genmove(BLACK) if call == "genmove" else engine.name()
    assert message in str(raised.value)
    assert command[0] in str(raised.value)
    assert time.monotonic() - start < 5


def test_a_stopped_engine_stays_stopped():
    engine = Engine(python(ECHO.format(answer="hm")), timeout=5)
    with pytest.raises(UserError, match="answered 'hm'"):
        engine.name()
    with pytest.raises(UserError, match="was stopped"):
        engine.name()
    engine.quit()
    assert engine.process.returncode is not None


def test_an_engine_that_resigns_and_ends_lines_as_windows_does():
    with Engine(python(ECHO.format(answer="=  resign\\r\\n\\r")), timeout=5) as engine:
        assert engine.genmove(WHITE) is None
        assert engine.send("anything") == "resign"


def test_time_is_shared_out():
    assert Clock().seconds(BLACK, 0, 81) is None
    assert Clock(0, 1, 0).seconds(BLACK, 0, 81) is None, "so GTP says that there is no limit"
    clock = Clock(main=60)
    first = clock.seconds(BLACK, 0, 81)
    assert 1 < first < 60 / 20
    assert clock.seconds(BLACK, 60, 81) > first, "fewer moves to come"
    assert clock.seconds(BLACK, 500, 81) < 60 / 4
    clock.used(BLACK, 59.9)
    assert 0 <= clock.seconds(BLACK, 40, 81) < 0.1
    assert clock.seconds(WHITE, 0, 81) == first
    clock = Clock(10, 20, 4)
    assert clock.seconds(BLACK, 0, 81) == pytest.approx(5 - 0.1), "the extra time is safe to use"
    clock.used(BLACK, 11)
    assert clock.left[BLACK] == (20, 4)
    for _ in range(3):
        clock.used(BLACK, 5)
    assert clock.left[BLACK] == (5, 1)
    clock.used(BLACK, 4)
    assert clock.left[BLACK] == (20, 4)
    clock.told(BLACK, 3, 2)
    assert clock.seconds(BLACK, 0, 81) == pytest.approx(1.4)
    clock = Clock()
    clock.told(WHITE, 0.05, 0)
    assert clock.seconds(WHITE, 0, 81) == 0


def test_points_by_their_names():
    assert [vertices.vertex(move, 19) for move in (0, 18, 342, 360, 361, 8)] == [
        "A19",
        "T19",
        "A1",
        "T1",
        "pass",
        "J19",
    ]
    for size in (5, 9, 19):
        assert [vertices.move(vertices.vertex(move, size).lower(), size) for move in range(size**2 + 1)] == list(
            range(size**2 + 1)
        )
    assert sgf.letters(vertices.move("D4", 19), 19) == "dp"
