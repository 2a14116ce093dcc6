"""A competitor in a process of its own, so that it can have another environment or another allocator.

One JSON object a line, on the child's stdin and stdout:

    {"do": "prepare", "case": {...}}            -> {"version": "..."}  builds what `case` describes
    {"do": "run", "first": 3, "calls": 2}       -> {"wall": s, "cpu": s}  runs inputs 3 and 4; the child times itself
    {"do": "close"}                             ends the child
    any of them                                 -> {"error": "..."} when it went wrong

The parent asks for one sample at a time, which keeps the measurement interleaved. Only the standard library is used:
a child's environment may lack everything else, this package too. So a child is started by this file's path,

    VENV/bin/python .../peer.py peer_fbgemm

which makes a package of the folder it lies in and runs the module named.
"""

import ctypes
import importlib.util
import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# The same values as tune_malloc in csrc/memory.cpp; glibc's numbers for mallopt and madvise.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, MADV_HUGEPAGE = -1, -2, -3, 14
HUGE_PAGE = 2 << 20


class PeerError(Exception):
    """The child could not do what it was asked; the message is for the table."""


class Peer:
    """The parent's side. Once `prepare` has returned, `sample` measures."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        # Python's own search path must not leak into another environment's interpreter.
        inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**inherited, **(environment or {})},
        )

    def prepare(self, **case: Any) -> str:
        """Builds the case; returns the version of what is measured."""
        return self._ask({"do": "prepare", "case": case})["version"]

    def sample(self, first: int, calls: int) -> tuple[float, float]:
        """Wall and process CPU seconds of `calls` calls, on the inputs first, first + 1 ..."""
        answer = self._ask({"do": "run", "first": first, "calls": calls})
        return answer["wall"], answer["cpu"]

    def close(self) -> None:
        if self.process.poll() is None and self.process.stdin:
            self.process.stdin.close()
        self.process.wait(timeout=30)

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            status = self.process.wait(timeout=30)
            raise PeerError(f"its process ended with status {status}; what it wrote is above") from None
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer


def measure_calls(
    function: Callable[[int], object], first: int, calls: int, synchronize: Callable[[], object]
) -> tuple[float, float]:
    """Wall and process CPU seconds (all threads) of `calls` calls, from an idle device until it is idle again."""
    synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(first, first + calls):
        function(number)
    synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def serve(
    prepare: Callable[[dict[str, Any]], tuple[Callable[[int], object], str]],
    synchronize: Callable[[], object] = lambda: None,
) -> None:
    """The child's side. `prepare(case)` returns the function to time, called with the input's number, and a version.
    `synchronize()` waits for the device that it uses."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not end up among the answers
    function: Callable[[int], object] = print
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if message["do"] == "prepare":
                function, version = prepare(message["case"])
                answer: dict[str, Any] = {"version": version}
            elif message["do"] == "run":
                wall, cpu = measure_calls(function, message["first"], message["calls"], synchronize)
                answer = {"wall": wall, "cpu": cpu}
            else:
                return
        except Exception as error:  # the parent puts it into its table: one bad peer must not end the others
            answer = {"error": f"{type(error).__name__}: {first_line(error)}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def tune_malloc() -> bool:
    """What importing mlperf_fast does to its own process, for one that can't import it. False where not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1
        for name, value in ((M_MMAP_THRESHOLD, 0x7FFFFFFF), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 64 << 20))
    )


def advise_huge_pages(address: int, size: int) -> bool:
    """As `advise_huge_pages` in csrc/memory.cpp: the inner whole 2 MiB pages only."""
    first = -(-address // HUGE_PAGE) * HUGE_PAGE
    last = (address + size) // HUGE_PAGE * HUGE_PAGE
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is None or last <= first:
        return False
    return madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), ctypes.c_int(MADV_HUGEPAGE)) == 0


def command(python: str | Path, module: str) -> list[str]:
    """Runs a module of this folder under another environment's `python`."""
    return [str(python), __file__, module]


def run_module(name: str) -> None:
    """Runs `name` of this folder as __main__, in a package made of the folder, which need not be installed."""
    folder = Path(__file__).parent
    sys.path[:] = [entry for entry in sys.path if Path(entry) != folder]  # its module names would hide others'
    spec = importlib.util.spec_from_file_location(
        "benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = sys.modules["benchmarks"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    runpy.run_module(f"benchmarks.{name}", run_name="__main__")


if __name__ == "__main__":
    run_module(sys.argv[1])
