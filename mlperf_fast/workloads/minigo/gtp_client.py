"""Another engine, over the Go Text Protocol: GNU Go, or this one as a second process.

    with Engine(["gnugo", "--mode", "gtp", "--chinese-rules"]) as engine:
        engine.boardsize(9)
        engine.komi(7.5)
        engine.clear()
        engine.play(BLACK, 40)
        move = engine.genmove(WHITE)        # None: it resigns

Moves are board.py's numbers. Whatever goes wrong is a UserError that names the engine: it isn't there, it ends, it
refuses, it answers what is no answer, or nothing within `timeout`; but for a refusal the engine is stopped then.
"""

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Sequence
from types import TracebackType
from typing import IO

from mlperf_fast.errors import UserError
from mlperf_fast.workloads.minigo import vertices
from mlperf_fast.workloads.minigo.board import BLACK
from mlperf_fast.workloads.minigo.vertices import vertex

MOST_BYTES = 1 << 20  # of one answer


class Engine:
    def __init__(self, command: Sequence[str], timeout: float = 60.0) -> None:
        """command: the program and its arguments; no shell reads them. timeout: seconds for each answer."""
        self.command, self.timeout, self.size = list(command), timeout, 19
        self.rest = b""  # that was read behind the last answer
        self.told = ""  # of a stopped engine the last line on standard error
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (stop() closes it)
        try:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, bufsize=0
            )
        except OSError as error:
            self.errors.close()
            raise UserError(
                f"the engine {command[0]!r} can't be started: {error.strerror}. Expected an installed program that "
                "speaks GTP, such as: gnugo --mode gtp"
            ) from None
        assert self.process.stdin
        assert self.process.stdout
        self.pipes = self.process.stdin, self.process.stdout
        self.into, self.out = (pipe.fileno() for pipe in self.pipes)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.quit()

    # Commands -------------------------------------------------------------------------------------------------------

    def name(self) -> str:
        return f"{self.send('name')} {self.send('version')}".strip()

    def boardsize(self, size: int) -> None:
        self.send(f"boardsize {size}")
        self.size = size

    def komi(self, komi: float) -> None:
        self.send(f"komi {komi:g}")

    def clear(self) -> None:
        self.send("clear_board")

    def play(self, colour: int, move: int) -> None:
        self.send(f"play {'B' if colour == BLACK else 'W'} {vertex(move, self.size)}")

    def genmove(self, colour: int) -> int | None:
        """The move, which the engine has played on its own board; None: it resigns."""
        answer = self.send(f"genmove {'B' if colour == BLACK else 'W'}")
        if answer.lower() == "resign":
            return None
        if (move := vertices.move(answer, self.size)) is None:
            raise self._failed(f"answered {answer[:60]!r} to genmove; expected a point of the board, pass or resign")
        return move

    def send(self, command: str) -> str:
        """Any command, and the engine's answer to it, without its mark. UserError for a `?`."""
        if self.errors.closed:
            raise UserError(f"the engine {' '.join(self.command)!r} was stopped{self.told}")
        end = time.monotonic() + self.timeout
        try:
            os.write(self.into, f"{command}\n".encode())
        except BrokenPipeError:
            raise self._failed(f"has ended before {command!r}") from None
        answer = self._answer(command, end)
        text = answer[1:].strip()
        if answer.startswith("?"):
            raise UserError(f"the engine {self.command[0]!r} refuses {command!r}: {text[:200] or 'no reason given'}")
        return text

    def _answer(self, command: str, end: float) -> str:
        """Up to the empty line."""
        while True:
            self.rest = self.rest.replace(b"\r", b"").lstrip(b"\n")
            answer, mark, rest = self.rest.partition(b"\n\n")
            text = answer.decode("utf-8", "replace")
            if text and text[0] not in "=?":
                raise self._failed(
                    f"answered {text.strip()[:60]!r} to {command!r}; expected = or ? first, as GTP has it"
                )
            if mark:
                self.rest = rest
                return text
            if len(self.rest) > MOST_BYTES:
                raise self._failed(f"answered more than {MOST_BYTES:,} bytes to {command!r}")
            if not select.select([self.out], [], [], max(0.0, end - time.monotonic()))[0]:
                raise self._failed(f"didn't answer {command!r} within {self.timeout:g} s")
            if not (read := os.read(self.out, 1 << 16)):
                raise self._failed(f"ended instead of answering {command!r}")
            self.rest += read

    def _failed(self, what: str) -> UserError:
        """The error to raise, once the engine is stopped, with the end of what it wrote to standard error."""
        self.stop()
        return UserError(f"the engine {' '.join(self.command)!r} {what}{self.told}")

    # Ending ---------------------------------------------------------------------------------------------------------

    def quit(self, seconds: float = 5.0) -> None:
        """Lets the engine end by itself, or stops it after so long. Does nothing the second time."""
        if self.errors.closed:
            return
        try:
            os.write(self.into, b"quit\n")
            self.pipes[0].close()
            self.process.wait(seconds)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            pass
        self.stop()

    def stop(self) -> None:
        if self.errors.closed:
            return
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in self.pipes:
            pipe.close()
        self.errors.seek(max(0, self.errors.seek(0, os.SEEK_END) - 2000))
        lines = self.errors.read().decode("utf-8", "replace").strip().splitlines()
        self.told = f"; it wrote: {lines[-1][:200]}" if lines else ""
        self.errors.close()
