"""Reads the `:::MLLOG` records of a result file, whatever its bytes, and says what is wrong with which line.

The official parser (mlperf-logging, mlp_parser) decides what a record is, and this reader sees the same ones: the
file is Latin-1, lines end in LF, CR or CRLF, a record is what follows the last token of a line. It differs where the
official one can't be used on any file: that one ends in a traceback for a record that is no object or lacks a field,
loses the line numbers, and takes time with the square of a line's length (80 KB: three seconds).
"""

import json
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TOKEN = ":::MLLOG "
_TOKEN = TOKEN.encode()
_MARK = _TOKEN.strip()
MAX_RECORD = 2**20  # bytes; real ones have some hundred
# Of one file; real ones have some thousand records. With MAX_BYTES they bound what a hostile file can take of memory.
MAX_RECORDS = 250_000
MAX_FAULTS = 5_000
MAX_BYTES = 50 * 2**20  # the official repository checker refuses larger files
FORMAT_SOURCE = "mlperf-logging, mlp_parser for ruleset 2.0.0"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `line` counts from 1, `None` for the file as a whole.

    severity: "error" (it doesn't pass), "warning" (a reviewer should look; the verdict stands), or "dropped" (an error
    in one of the few logs of a benchmark that may fail, since they leave the score).
    source: where the rule is written. file: where it was found.
    """

    rule: str
    line: int | None
    message: str
    source: str
    severity: str = "error"
    file: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """One `:::MLLOG` record. time_ms: milliseconds since 1970. line: counts from 1."""

    line: int
    time_ms: float
    key: str
    value: Any
    metadata: dict[str, Any]


def read_records(path: str | os.PathLike[str]) -> tuple[list[Record], list[Finding]]:
    """The records of the file in its order, and findings on what couldn't be read: rule `file` (no log that anyone can
    read), `log/empty` (none of it is a record) or `record/...`.

    A record with a faulty field is kept with an empty one in its place, so that later checks see the key. Never raises
    for what a file is or holds.
    """
    data = _read(path)
    if isinstance(data, Finding):
        return [], [data]
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    records: list[Record] = []
    findings: list[Finding] = []
    number, begin = 1, 0  # of the last line that was looked at: its number, and the offset of its first byte
    at = data.find(_MARK)
    while at >= 0:  # lines without the mark are only counted: a log may be drowned in other output
        last, begin = begin, max(data.rfind(b"\n", begin, at) + 1, begin)
        number += data.count(b"\n", last, begin)
        end = data.find(b"\n", at)
        # Only the last line can lack its end, as a file that was cut within a record does.
        record, faults = _read_line(number, data[begin : end if end >= 0 else len(data)], cut=end < 0)
        findings += faults
        if record is not None:
            records.append(record)
        if len(records) > MAX_RECORDS or len(findings) > MAX_FAULTS:
            what = f"{MAX_FAULTS:,} faults" if len(findings) > MAX_FAULTS else f"{MAX_RECORDS:,} records"
            findings.append(_fault("many", number, f"more than {what}: the rest of the file isn't read"))
            break
        at = data.find(_MARK, end) if end >= 0 else -1
    if not records and not findings:
        what = f"none of its {len(data):,} bytes is a record (':::MLLOG {{...}}')" if data else "the file is empty"
        findings.append(Finding("log/empty", None, f"{what}: is this a result log?", FORMAT_SOURCE))
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


def _read(path: str | os.PathLike[str]) -> bytes | Finding:
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
    return data


def _read_line(number: int, line: bytes, *, cut: bool) -> tuple[Record | None, list[Finding]]:
    at = line.rfind(_TOKEN)
    if at < 0:
        return None, [_fault("token", number, "the token ':::MLLOG' isn't followed by a space: not seen")]
    if len(line) - at > MAX_RECORD:
        return None, [_fault("long", number, f"a record of {len(line) - at:,} bytes: at most {MAX_RECORD:,} are read")]
    record, faults = _parse(number, line[at + len(_TOKEN) :].decode("latin-1").rstrip(), cut)
    if line.find(_TOKEN) != at:
        faults = [_fault("two-on-a-line", number, "two records on one line: checkers see the last one only"), *faults]
    return record, faults


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
    key, metadata, time_ms = fields.get("key"), fields.get("metadata"), fields.get("time_ms")
    if isinstance(key, str) and isinstance(metadata, dict) and _is_time(time_ms) and "value" in fields:
        return Record(line, float(time_ms), key, fields["value"], metadata), []  # type: ignore[arg-type]
    return Record(
        line=line,
        time_ms=float(time_ms) if _is_time(time_ms) else math.nan,  # type: ignore[arg-type]
        key=key if isinstance(key, str) else "",
        value=fields.get("value"),
        metadata=metadata if isinstance(metadata, dict) else {},
    ), list(_field_faults(line, fields))


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
