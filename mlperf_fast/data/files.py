"""Files that are whole or absent, now and after a crash; a folder that one process prepares at a time."""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from mlperf_fast.errors import UserError


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path`, all at once, when the block ends without an exception."""
    new = path.with_name(path.name + ".new")
    try:
        with open(new, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes) -> None:
    """Writes a small file so that a reader, now or after a crash, finds the old or the new content, whole."""
    with replaced(path) as file:
        file.write(data)


def append(path: Path, content: np.ndarray) -> None:
    data = np.ascontiguousarray(content).reshape(-1).view(np.uint8).data
    with open(path, "ab", buffering=0) as file:
        while data:
            data = data[file.write(data) :]


def cut(path: Path, size: int) -> None:
    """Drops what lies behind `size` bytes: it was written after the last commit."""
    if path.exists():
        os.truncate(path, size)


def sync(path: Path) -> None:
    if path.exists():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def checksum(path: Path) -> str:
    """The sha256 of a file's content."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """Holds the work folder; the lock ends with the process, however that ends."""
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is preparing into {work.parent} at this moment: wait for it") from None
        yield


@contextmanager
def clear_file_errors(out: Path, last: str = "day") -> Iterator[None]:
    """An OSError as a UserError; `last` names what the work goes on after when it is started again."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename or out}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = f"{out}: the disk is full. Free some space"
        raise UserError(f"{what}. The same command goes on after the last finished {last}") from None


def require_own(out: Path, ours: set[str], begun: set[str]) -> None:
    """UserError if `prepare` can't write to the folder `out` without something being lost.

    ours: names that it writes. begun: those of them without which it wrote nothing there.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out must name a folder that is new or empty")
    there = {path.name for path in out.iterdir()} if out.exists() else set()
    foreign = there - ours or (there if not there & begun else set())
    if foreign:
        raise UserError(
            f"{out} holds other files ({', '.join(sorted(foreign)[:5])}); --out must name a folder that is new, empty, "
            "or left by an interrupted prepare"
        )
