"""One run as a process of its own, which ends when the process that started it does."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Seconds that a run has to end after each signal: with SIGINT it closes its log.
STOPPING = ((signal.SIGINT, 60.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 60.0))


class Run:
    """`mlperf-fast ARGUMENTS` in a new process, or `nproc` of them by torchrun; what it says is in folder/output.txt.

    It inherits the file descriptor `lock`. Ctrl-C of a terminal doesn't reach it: `stop` does.
    """

    def __init__(self, arguments: Sequence[str], nproc: int, folder: Path, lock: int) -> None:
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc), "-m"]
        command = [sys.executable, "-m", *(torchrun if nproc > 1 else []), "mlperf_fast", *arguments]
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "output.txt", "wb") as output:  # a file, no pipe: nobody has to read it for the run to go on
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                pass_fds=(lock,), preexec_fn=_die_with(os.getpid()),
            )  # fmt: skip

    def code(self, within: float = 0.0) -> int | None:
        """The exit code, waiting so many seconds for it; None while it goes on."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            return None


def stop(run: Run) -> None:
    """Ends a run, if it hasn't: gently, so that its log says aborted, then less so. Further Ctrl-C hasten it."""
    for number, patience in STOPPING:
        with suppress(KeyboardInterrupt):
            if run.code() is not None:
                return
            with suppress(ProcessLookupError):
                if number == signal.SIGKILL:
                    os.killpg(run.process.pid, number)
                else:
                    run.process.send_signal(number)
            run.code(within=patience)


def _die_with(parent: int):
    """What the new process does before anything else: it asks for SIGINT when `parent` dies, however that does."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs inherit that it is ignored
        if libc:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT)
            if os.getppid() != parent:  # it died before it was asked
                os._exit(1)

    return prepare
