"""Writes a run's result log: `:::MLLOG` records, made by mlperf-logging, appended so that no crash can spoil them.

Each record reaches the file by exactly one write of one full line, so a killed process leaves whole records; a write
that the system cuts short or refuses is taken back, and what was in the file stays valid. mlperf-logging itself logs
through `logging`, which hides errors of its handlers, can be switched off from outside, and prints to stdout; here
it only makes the line.
"""

import contextlib
import fcntl
import logging
import math
import operator
import os
import re
import secrets
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlperf_fast.errors import UserError
from mlperf_fast.submission.records import TOKEN, read_records
from mlperf_fast.suite import BENCHMARKS, DIVISIONS, STATUSES

DEMO_ORG = "mlperf_fast demo, no submitter"

# A record's metadata names its caller relative to the folder that holds the package, so the same line of code has the
# same name on every machine (the official seed check compares file, line and seed of the runs).
_ROOT = re.escape(str(Path(__file__).parents[2]))  # mlperf-logging uses it as a regular expression

# The official convergence check finds these keys by looking for the word anywhere in a record, and takes any record
# that holds it for the real one.
_WORDS = ("global_batch_size", "eval_accuracy", "eval_error", "submission_benchmark")


class RunLog:
    """The log of one run, for rank 0 (`open_log` decides). Methods may be called from any thread.

    path: a new file; UserError if it exists, so that two runs can't share one. resume_at: the `offset` that a
    checkpoint stored: the existing file is continued behind that many bytes, and what lies behind them (records of the
    time after the checkpoint) is moved to the end of `<path>.cut`. UserError if the file is shorter or that place is
    no end of a line. The file is locked while it is open.

    `start`, `end` and `event` write one record with the caller's file and line. value: anything JSON can hold; numpy
    and torch scalars are converted. Before anything is written, TypeError for what can't be encoded and ValueError for
    NaN in another place than the value of eval_accuracy, where it is the honest result of a diverged run (infinity is
    a setting that the rules know, such as an unlimited gradient norm). UserError if the disk is full or fails.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume_at: int | None = None) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._lines = _Lines("mlperf_fast.runlog")  # made, not fetched by name: no handlers, no parent, no doubles
        # Frames between the library and the caller: start/end/event, then _record.
        self._mllog = _library()(logger=self._lines, default_stack_offset=3, root_dir=_ROOT)
        self._has_seed = False
        self._offset = 0
        self._fd = _open(self.path, new=resume_at is None)
        if resume_at is not None:
            try:
                self._resume(resume_at)
            except BaseException:
                self.close()
                raise

    @property
    def offset(self) -> int:
        """Bytes written: what a checkpoint stores and `resume_at` takes."""
        return self._offset

    def start(self, key: str, value: Any = None, metadata: Any = None, time_ms: int | None = None) -> None:
        """Begins an interval, such as run_start."""
        self._record(self._mllog.start, key, value, metadata, time_ms)

    def end(self, key: str, value: Any = None, metadata: Any = None, time_ms: int | None = None) -> None:
        """Ends an interval, such as run_stop (which also brings the file to the disk)."""
        self._record(self._mllog.end, key, value, metadata, time_ms)

    def event(self, key: str, value: Any = None, metadata: Any = None, time_ms: int | None = None) -> None:
        """One point in time, such as eval_accuracy."""
        self._record(self._mllog.event, key, value, metadata, time_ms)

    def sync(self) -> None:
        """Returns when all records are on the disk. UserError if the disk refuses."""
        with self._lock:
            self._sync()

    def close(self) -> None:
        """Ends the log; a second call does nothing."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _record(self, write: Any, key: str, value: Any, metadata: Any, time_ms: int | None) -> None:
        if not isinstance(key, str) or not key:
            raise TypeError(f"the key of a record is {key!r}; expected a name")
        value = _plain(value, key, nan_allowed=key == "eval_accuracy")
        metadata = _plain(metadata, f"the metadata of {key}")
        if not isinstance(metadata, dict | None):
            raise TypeError(f"the metadata of {key} is a {type(metadata).__name__}; expected a mapping or nothing")
        if metadata and not metadata.keys().isdisjoint(("file", "lineno")):
            raise ValueError(f"the metadata of {key} may not hold file or lineno: they name the caller")
        if time_ms is not None:
            time_ms = operator.index(time_ms)
        with self._lock:
            if self._fd < 0:
                raise ValueError(f"{self.path} is closed; {key} can't be logged any more")
            if key == "seed" and self._has_seed:
                raise ValueError(f"{self.path} has its seed; a run has one, which all its processes share")
            write(key, value, metadata=metadata, time_ms=time_ms)
            line = self._lines.take()
            if line.count(TOKEN) > 1:
                raise ValueError(f"{key} may not hold {TOKEN!r}: readers would take it for the start of a record")
            for word in _WORDS:
                if word in line and word != key:
                    raise ValueError(f"the record of {key} may not hold the word {word}: it is looked up by that word")
            data = f"{line}\n".encode("ascii")
            _append(self._fd, self.path, data, self._offset)
            self._offset += len(data)
            self._has_seed |= key == "seed"
            if key == "run_stop":
                self._sync()

    def _sync(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise UserError(f"{self.path}: the disk refuses to store it ({error.strerror}); check the disk") from error
        with contextlib.suppress(OSError):  # the folder's entry too; not every file system can
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _resume(self, at: int) -> None:
        size = os.fstat(self._fd).st_size
        if not 0 <= at <= size:
            raise UserError(
                f"{self.path} has {size} bytes, fewer than the {at} of the checkpoint: they don't belong together"
            )
        if at and os.pread(self._fd, 1, at - 1) != b"\n":
            raise UserError(
                f"{self.path}: byte {at} is within a record: the log and the checkpoint don't belong together"
            )
        if at < size:
            # First stored there, then removed here: killed in between, a record is in both files, not in none.
            cut = self.path.with_name(self.path.name + ".cut")
            fd = os.open(cut, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                _append(fd, cut, os.pread(self._fd, size - at, at), os.fstat(fd).st_size)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.ftruncate(self._fd, at)
        self._offset = at
        self._has_seed = any(record.key == "seed" for record in read_records(self.path)[0])


def _library() -> Any:
    """mlperf-logging's logger. Imported by who writes a log alone: a profile or a benchmark runs without it."""
    try:
        from mlperf_logging.mllog.mllog import MLLogger
    except ImportError as error:
        raise UserError(f"a run's log is written by mlperf-logging, which can't be imported ({error}): "
                        "pip install mlperf-logging") from None  # fmt: skip
    return MLLogger


class NullLog:
    """Takes what RunLog takes and writes nothing: the log of every rank but 0."""

    offset = 0

    def start(self, key: str, value: Any = None, metadata: Any = None, time_ms: int | None = None) -> None:
        """Nothing."""

    end = event = start

    def sync(self) -> None:
        """Nothing."""

    close = sync

    def __enter__(self) -> "NullLog":
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing."""


Log = RunLog | NullLog


def open_log(path: str | os.PathLike[str], rank: int, *, resume_at: int | None = None) -> Log:
    """RunLog(path, resume_at=...) on rank 0; on other ranks a log that writes nothing (and touches no file)."""
    return RunLog(path, resume_at=resume_at) if rank == 0 else NullLog()


def draw_seed() -> int:
    """A seed for one run from the system's source of entropy, in [0, 2**31): every generator takes it.

    The rules allow no hand-picked seeds. Rank 0 draws it and shares it.
    """
    return secrets.randbits(31)


def log_seed(log: Log, seed: int) -> None:
    """Logs the run's one seed. All workloads log it here: the seed check compares file, line and value of the runs."""
    log.event("seed", seed)


def submission_division(division: str | None, *, is_demo: bool) -> str:
    """The division to log. A demo is always open: UserError for a closed one. Without a choice a run that is no demo
    isn't guessed at: UserError."""
    if is_demo:
        if division not in (None, "open"):
            raise UserError(f"a demo is always logged as division open, never as {division}; leave the division out")
        return "open"
    if division not in DIVISIONS:
        raise UserError(f"division is {division!r}; expected closed or open")
    return division


def log_submission(
    log: Log,
    benchmark: str,
    *,
    is_demo: bool,
    division: str | None,
    status: str,
    org: str | None,
    platform: str,
) -> None:
    """Logs the five submission records. All arguments are checked on every rank, before anything is written.

    benchmark: our folder name (retinanet is logged as ssd). status: cloud, onprem, preview or research. A demo is
    open, its platform begins with "demo: ", and without `org` it says that it has no submitter.
    """
    if benchmark not in BENCHMARKS:
        raise UserError(f"benchmark is {benchmark!r}; expected one of {', '.join(BENCHMARKS)}")
    division = submission_division(division, is_demo=is_demo)
    if status not in STATUSES:
        raise UserError(f"status is {status!r}; expected one of {', '.join(STATUSES)}")
    if is_demo:
        org, platform = org or DEMO_ORG, f"demo: {platform}"
    for name, text in (("org", org), ("platform", platform)):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"submission {name} is {text!r}; expected a name")
    log.event("submission_benchmark", BENCHMARKS[benchmark].log_name)
    log.event("submission_org", org)
    log.event("submission_division", division)
    log.event("submission_status", status)
    log.event("submission_platform", platform)


def tracked_stats(log: Log, *, step: float, samples: int, seconds: float, **others: float) -> None:
    """Logs the throughput since the last such record, in samples/s. step: in the unit of the run's `epoch_num`."""
    if not seconds > 0:
        raise ValueError(f"{samples} samples in {seconds} s is no throughput; expected a positive time")
    log.event("tracked_stats", {"throughput": samples / seconds, **others}, {"step": step})


class _Lines(logging.Logger):
    """What mlperf-logging logs to: keeps its line for us. It reports what it can't encode as an error line."""

    taken: list[tuple[int, str]]

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.taken = []

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        self.taken.append((level, str(msg)))

    def take(self) -> str:
        """The line of one record."""
        taken, self.taken = self.taken, []
        if len(taken) != 1 or taken[0][0] != logging.INFO:
            raise RuntimeError(f"mlperf-logging made no record: {'; '.join(text.strip() for _, text in taken)}")
        return taken[0][1]


def _plain(value: Any, what: str, *, nan_allowed: bool = False, depth: int = 0) -> Any:
    """The value in JSON's own types. Scalars of numpy and torch are known by `item` and an empty shape."""
    if hasattr(value, "item") and not tuple(getattr(value, "shape", (1,))):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if math.isnan(value) and not nan_allowed:
            raise ValueError(f"{what} is NaN; only eval_accuracy may be")
        return value
    if depth < 16:
        if isinstance(value, Mapping):
            if not all(isinstance(name, str) for name in value):
                raise TypeError(f"{what} has a name that is no string")
            return {n: _plain(v, f"{what}.{n}", nan_allowed=nan_allowed, depth=depth + 1) for n, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [_plain(v, f"an item of {what}", nan_allowed=nan_allowed, depth=depth + 1) for v in value]
    raise TypeError(
        f"{what} is a {type(value).__name__}; expected what JSON can hold, not too deep (scalars, lists, ...)"
    )


def _open(path: Path, *, new: bool) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | (os.O_CREAT | os.O_EXCL if new else 0), 0o644)
    except FileExistsError:
        raise UserError(f"{path} exists: another run wrote it; choose another folder, or resume that run") from None
    except FileNotFoundError:
        missing = "its folder doesn't exist: make it first" if new else "there is no such log to resume"
        raise UserError(f"{path}: {missing}") from None
    except OSError as error:
        raise UserError(f"{path} can't be opened for writing: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UserError(f"{path} is no regular file; a log must be one")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path} is being written by another process; resume a run only once") from None
        except OSError:
            pass  # file systems without locks exist on clusters; a new file is ours alone even there
    except BaseException:
        os.close(fd)
        raise
    return fd


def _append(fd: int, path: Path, data: bytes, size: int) -> None:
    """Appends data to the file of that size by one write, or leaves the file as it was and raises UserError."""
    cause: OSError | None = None
    try:
        written = os.write(fd, data)
        if written == len(data):
            return
        reason = f"the system took {written} of {len(data)} bytes; the disk or its quota is full"
    except OSError as error:
        cause, reason = error, error.strerror or str(error)
    kept = f"the {size} bytes before it are whole"
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        kept += f", but what was written of it couldn't be taken back ({error.strerror})"
    raise UserError(
        f"{path}: a record couldn't be written ({reason}); {kept}; make room, then resume the run"
    ) from cause
