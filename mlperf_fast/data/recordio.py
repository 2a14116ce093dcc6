"""MXNet's RecordIO files with image headers (.rec) and their indexes (.idx), read and written without MXNet.

A record is the magic number, a word of 3 bits `part` and 29 bits length, the payload, and zeros up to a multiple of 4
bytes, all little-endian. A payload that holds the magic number at a multiple of 4 bytes, as a few of ImageNet's do by
chance, is split there into several parts (1: first, 2: middle, 3: last; 0: whole), and the number itself is left out.
An image's payload is u32 flag, f32 label, u64 id, u64 id2; where flag > 0, that many f32 labels; then the JPEG.
The index has a line "key TAB offset" for each record.
"""

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlperf_fast.data.files import replace_file, replaced
from mlperf_fast.errors import UserError

MAGIC = 0xCED7230A
HEADER = struct.Struct("<IfQQ")
WHOLE, FIRST, MIDDLE, LAST = range(4)


class Record(NamedTuple):
    payload: bytes
    start: int  # where the payload begins in the file; in one piece only if parts == 1
    parts: int
    end: int  # where the next record begins


class Image(NamedTuple):
    label: float
    key: int
    skip: int  # bytes of the payload before the image
    data: bytes


def read_record(data: np.ndarray, at: int, path: Path) -> Record:
    """The record at byte `at` of a file mapped as uint8; UserError if there is none, or not a whole one."""
    pieces: list[bytes] = []
    start = at + 8
    while True:
        head = data[at : at + 8].tobytes()
        if len(head) < 8:
            raise UserError(f"{path}: the file ends at byte {at:,}, within or before a record: get the file again")
        magic, word = struct.unpack("<II", head)
        part, length = word >> 29, word & (1 << 29) - 1
        if magic != MAGIC:
            raise UserError(f"{path}: no record begins at byte {at:,}: no RecordIO file, or the index isn't its own")
        if (part in (WHOLE, FIRST)) != (not pieces) or part > LAST:
            raise UserError(f"{path}: the record at byte {start - 8:,} has its parts in disorder: a damaged file")
        piece = data[at + 8 : at + 8 + length].tobytes()
        if len(piece) < length:
            raise UserError(f"{path}: cut short in the record at byte {start - 8:,}: get the file again")
        pieces.append(piece)
        at += 8 + -(-length // 4) * 4
        if part in (WHOLE, LAST):
            return Record(struct.pack("<I", MAGIC).join(pieces), start, len(pieces), at)


def image(payload: bytes) -> Image:
    """The parts of an image's payload. ValueError if it has none, or several labels."""
    if len(payload) < HEADER.size:
        raise ValueError(f"a payload of {len(payload)} bytes has no image header")
    flag, label, key, _ = HEADER.unpack_from(payload)
    if flag > 1:
        raise ValueError(f"{flag} labels: a classification set has one an image")
    skip = HEADER.size + 4 * flag
    if flag:
        label = struct.unpack_from("<f", payload, HEADER.size)[0]
    return Image(label, key, skip, payload[skip:])


def read_index(path: Path) -> dict[int, int]:
    """The byte at which each record begins, by its key, in the file's order."""
    found: dict[int, int] = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no readable index ({error}): expected lines of key, tab, byte offset") from None
    for number, line in enumerate(lines, 1):
        try:
            key, offset = (int(word) for word in line.split("\t"))
        except ValueError:
            raise UserError(
                f"{path}: line {number} is {line[:80]!r}: expected a key, a tab and a byte offset"
            ) from None
        if key in found:
            raise UserError(f"{path}: line {number}: the key {key} is there twice")
        found[key] = offset
    return found


def offsets(rec: Path, idx: Path) -> dict[int, int]:
    """As `read_index`, compared with the records: each must be in the index once, and nothing else.

    It reads the record's heads only. UserError where the index belongs to another file.
    """
    listed = read_index(idx)
    data = np.memmap(rec, dtype=np.uint8, mode="r") if rec.stat().st_size else np.zeros(0, np.uint8)
    at, starts = 0, []
    while at < len(data):
        magic, word = struct.unpack("<II", data[at : at + 8].tobytes().ljust(8, b"\0"))
        if magic != MAGIC:
            raise UserError(f"{rec}: no record begins at byte {at:,}: no RecordIO file, or a damaged one")
        if word >> 29 in (WHOLE, FIRST):
            starts.append(at)
        at += 8 + -(-(word & (1 << 29) - 1) // 4) * 4
    if at > len(data):
        raise UserError(f"{rec}: cut short in its last record: get the file again")
    if sorted(listed.values()) != starts:
        wrong = sorted(set(listed.values()) ^ set(starts))
        what = f"; the first difference is at byte {wrong[0]:,}" if wrong else ""
        raise UserError(
            f"{idx} isn't the index of {rec}: {len(listed):,} entries for {len(starts):,} records{what}. Get the .idx "
            "that was made with the .rec"
        )
    return listed


def read_list(path: Path) -> dict[int, tuple[float, str]]:
    """im2rec's .lst file: label and path of each image by its key."""
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            key, label, name = line.split("\t")
            found[int(key)] = (float(label), name)
        except ValueError:
            raise UserError(f"{path}: line {number} is {line[:80]!r}: expected key, label and path, by tabs") from None
    return found


def write(rec: Path, idx: Path, images: Iterable[tuple[int, int, bytes]]) -> None:
    """Writes (key, label, JPEG) as im2rec does."""
    lines = []
    with replaced(rec) as file:
        for key, label, data in images:
            lines.append(f"{key}\t{file.tell()}\n")
            file.write(encoded(HEADER.pack(0, label, key, 0) + data))
    replace_file(idx, "".join(lines).encode())


def encoded(payload: bytes) -> bytes:
    """A payload as a record, in several parts where it holds the magic number."""
    words = np.frombuffer(payload, dtype="<u4", count=len(payload) // 4)
    cuts = (4 * np.flatnonzero(words == MAGIC)).tolist()
    out: list[bytes] = []
    at = 0
    for end in (*cuts, len(payload)):
        last = end == len(payload) and len(out) == len(cuts)
        part = (LAST if last else MIDDLE) if at else (WHOLE if last else FIRST)
        piece = payload[at:end]
        out.append(struct.pack("<II", MAGIC, part << 29 | len(piece)) + piece + bytes(-len(piece) % 4))
        at = end + 4
    return b"".join(out)
