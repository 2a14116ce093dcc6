"""Reads the `:::MLLOG` records of a result file, whatever its bytes, and says what is wrong with which line.

The official parser (mlperf-logging, mlp_parser) decides what a record is, and this reader sees the same ones: the
file is Latin-1, lines end in LF, CR or CRLF, a record is what follows the last token of a line. It differs where the
official one can't be used on any file: that one ends in a traceback for a record that is no object or lacks a field,
loses the line numbers, and takes time with the square of a line's length (80 KB: three seconds).
"""

import io
import json
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TOKEN = ":::MLLOG "
MAX_BYTES = 50 * 2**20  # the official repository checker refuses larger files
FORMAT_SOURCE = "mlperf-logging, mlp_parser for ruleset 2.0.0"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `line` counts from 1, `None` for the file as a whole.

    severity: "error" (the log doesn't pass) or "warning" (a reviewer should look; the verdict stands).
    source: where the rule is written.
    """

    rule: str
    line: int | None
    message: str
    source: str
    severity: str = "error"


@dataclass(frozen=True, slots=True)
class Record:
    """One `:::MLLOG` record. time_ms: milliseconds since 1970. line: counts from 1."""

    line: int
    time_ms: float
    key: str
    value: Any
    metadata: dict[str, Any]


def read_records(path: str | os.PathLike[str]) -> tuple[list[Record], list[Finding]]:
    """The records of the file in its order, and findings (rule `file` or `record/...`) on what couldn't be read.

    A record with a faulty field is kept with an empty one in its place, so that later checks see the key. Never raises
    for what a file is or holds.
    """
    text = _read(path)
    if isinstance(text, Finding):
        return [], [text]
    records: list[Record] = []
    findings: list[Finding] = []
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        at = line.rfind(TOKEN)
        if at < 0:
            if TOKEN.strip() in line:
                findings.append(_fault("token", number, "the token ':::MLLOG' isn't followed by a space: not seen"))
            continue
        if line.count(TOKEN) > 1:
            findings.append(_fault("two-on-a-line", number, "two records on one line: checkers see the last one only"))
        cut = not line.endswith("\n")  # only the last line can lack its end, as a file cut within a record does
        record, faults = _parse(number, line[at + len(TOKEN) :].rstrip(), cut)
        findings += faults
        if record is not None:
            records.append(record)
    if not records and not findings:
        what = f"none of its {len(text):,} bytes is a record (':::MLLOG {{...}}')" if text else "the file is empty"
        findings.append(Finding("file", None, f"{what}: is this a result log?", FORMAT_SOURCE))
    return records, findings


def shown(value: Any, limit: int = 80) -> str:
    """A value from a log for a message: JSON in plain ASCII (nothing a terminal would obey), cut to `limit`."""
    try:
        text = json.dumps(value[: limit + 1] if isinstance(value, str) else value)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}..."


def is_number(value: Any) -> bool:
    """A JSON number that is neither NaN nor infinite (true and false aren't numbers)."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _fault(rule: str, line: int, message: str) -> Finding:
    return Finding(f"record/{rule}", line, message, FORMAT_SOURCE)


def _read(path: str | os.PathLike[str]) -> str | Finding:
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):  # before opening: a pipe would wait for a writer
            what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
            return Finding("file", None, f"this is {what}; expected a result log such as result_0.txt", FORMAT_SOURCE)
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        reason = error.strerror if isinstance(error, OSError) else error
        return Finding("file", None, f"can't be read: {reason}", FORMAT_SOURCE)
    if len(data) > MAX_BYTES:
        message = f"larger than {MAX_BYTES // 2**20} MiB, which a submission may not hold: keep other output apart"
        return Finding("file", None, message, "mlperf-logging, repo_checker")
    return data.decode("latin-1")


def _parse(line: int, text: str, cut: bool) -> tuple[Record | None, list[Finding]]:
    try:
        fields = json.loads(text)
    except RecursionError:
        return None, [_fault("json", line, "nested too deeply to be read")]
    except ValueError as error:
        if cut:
            return None, [_fault("cut", line, "the file ends within this record")]
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "a number that is too long"
        return None, [_fault("json", line, f"not valid JSON ({reason}): {shown(text)}")]
    if not isinstance(fields, dict):
        return None, [_fault("fields", line, f"expected an object, found {shown(fields)}")]
    faults = list(_field_faults(line, fields))
    key, metadata, time_ms = fields.get("key"), fields.get("metadata"), fields.get("time_ms")
    return Record(
        line=line,
        time_ms=float(time_ms) if time_ms is not None and _is_time(time_ms) else math.nan,
        key=key if isinstance(key, str) else "",
        value=fields.get("value"),
        metadata=metadata if isinstance(metadata, dict) else {},
    ), faults


def _is_time(value: Any) -> bool:
    return is_number(value) and 0 <= value < 2**63


def _field_faults(line: int, fields: dict[str, Any]) -> Iterator[Finding]:
    missing = [name for name in ("key", "value", "time_ms", "metadata") if name not in fields]
    if missing:
        yield _fault("fields", line, f"the record of {shown(fields.get('key'))} has no {', no '.join(missing)}")
    if "key" in fields and not isinstance(fields["key"], str):
        yield _fault("fields", line, f"key is {shown(fields['key'])}; expected a string")
    if "metadata" in fields and not isinstance(fields["metadata"], dict):
        yield _fault("fields", line, f"metadata is {shown(fields['metadata'])}; expected an object")
    if "time_ms" in fields and not _is_time(fields["time_ms"]):
        yield _fault("fields", line, f"time_ms is {shown(fields['time_ms'])}; expected milliseconds since 1970")
