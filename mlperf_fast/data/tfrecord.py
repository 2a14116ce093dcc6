"""TFRecord files of tf.train.Example, read and written without TensorFlow.

A record is its length (uint64), the length's checksum, the payload and its checksum, all little-endian. The payload is
a protocol buffer: Example{1: Features{1: map entry{1: name, 2: Feature{1: BytesList, 2: FloatList, 3: Int64List}}}}.
"""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlperf_fast import _C
from mlperf_fast.data.files import replaced
from mlperf_fast.errors import UserError

LARGEST = 1 << 26  # bytes; BERT's records have about 2,500, ImageNet's 110,000 in the mean and 16 million at most
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # the wire types


def records(path: Path) -> Iterator[bytes]:
    """The payloads of a file, their checksums compared. UserError names file, record and byte of the first fault."""
    return (payload for _, payload in records_at(path))


def records_at(path: Path) -> Iterator[tuple[int, bytes]]:
    """As `records`, each with the byte of the file at which the payload begins."""
    at = number = 0
    with open(path, "rb") as file:
        while head := file.read(12):
            where = f"{path}: record {number} at byte {at:,}"
            if len(head) < 12:
                raise UserError(f"{where}: the file ends in its header: get the file again")
            length, check = struct.unpack("<QI", head)
            if check != masked_crc(head[:8]):
                raise UserError(f"{where}: the checksum of its length is wrong: no TFRecord file, or a damaged one")
            if length > LARGEST:
                raise UserError(f"{where}: {length:,} bytes, more than an example can have")
            payload = file.read(length + 4)
            if len(payload) < length + 4:
                raise UserError(f"{where}: cut short, {len(payload):,} of {length + 4:,} bytes: get the file again")
            data = payload[:-4]
            if struct.unpack("<I", payload[-4:])[0] != masked_crc(data):
                raise UserError(f"{where}: the checksum of its content is wrong: a damaged file, get it again")
            yield at + 12, data
            at += 16 + length
            number += 1


def count_records(path: Path) -> int:
    """How many records a file has, by the lengths alone; UserError if it ends within one."""
    size, at, number = path.stat().st_size, 0, 0
    with open(path, "rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(8)
            at += 16 + (struct.unpack("<Q", head)[0] if len(head) == 8 else size)
            if at > size:
                raise UserError(f"{path}: cut short in record {number}: get the file again")
            number += 1
    return number


def masked_crc(data: bytes | memoryview) -> int:
    value = crc(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc(data: bytes | memoryview) -> int:
    """CRC-32C."""
    return _C.crc32c(np.frombuffer(data, np.uint8).ctypes.data, len(data))


def example(payload: bytes) -> dict[str, Any]:
    """The features of a tf.train.Example by name: an int64 or float32 array, or a list of bytes. ValueError if it is
    none."""
    found = {}
    for field, features in parts(payload):
        for _, entry in parts(features) if field == 1 else ():
            name, value = "", np.zeros(0, dtype=np.int64)
            for number, part in parts(entry):
                if number == 1:
                    name = part.decode()
                else:
                    value = feature(part)
            found[name] = value
    return found


def feature(data: bytes) -> Any:
    for field, values in parts(data):
        if field == 1:
            return [part for _, part in parts(values)]
        if field == 3:
            return np.concatenate([varints(part) for _, part in parts(values)] or [np.zeros(0, np.int64)])
        if field == 2:
            return np.frombuffer(b"".join(part for _, part in parts(values)), dtype="<f4")
    return np.zeros(0, dtype=np.int64)


def parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(field number, content) of each field of a message. A number's content is its own bytes."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        wire = key & 7
        if wire == BYTES:
            size, at = varint(data, at)
        elif wire == VARINT:
            size = varint(data, at)[1] - at
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data):
            raise ValueError("a field that ends behind its message")
        yield key >> 3, data[at : at + size]
        at += size


def varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, where it ends)."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number without an end")
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7


def varints(data: bytes) -> np.ndarray:
    """int64 [n], the numbers of a packed list."""
    octets = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(octets < 128)
    if len(octets) and (not len(ends) or ends[-1] != len(octets) - 1):
        raise ValueError("a number without an end")
    if len(ends) == len(octets):
        return octets.astype(np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    if sizes.max() > 10:
        raise ValueError("a number of more than 64 bits")
    values = np.zeros(len(ends), dtype=np.uint64)
    for k in range(int(sizes.max())):
        has = sizes > k
        values[has] |= (octets[starts[has] + k] & np.uint8(127)).astype(np.uint64) << np.uint64(7 * k)
    return values.view(np.int64)


def write(path: Path, examples: Iterable[dict[str, Any]]) -> None:
    """Writes features by name, int64 or float32 arrays or bytes, as TensorFlow does."""
    with replaced(path) as file:
        for features in examples:
            file.write(framed(encoded_example(features)))


def framed(payload: bytes) -> bytes:
    """A record: the payload between its length and the checksums."""
    head = struct.pack("<Q", len(payload))
    return b"".join((head, struct.pack("<I", masked_crc(head)), payload, struct.pack("<I", masked_crc(payload))))


def encoded_example(features: dict[str, Any]) -> bytes:
    entries = []
    for name, values in features.items():
        if isinstance(values, bytes):
            kind, content = 1, message(1, values)
        elif values.dtype.kind == "f":
            kind, content = 2, message(1, values.astype("<f4").tobytes())
        else:
            kind, content = 3, message(1, b"".join(map(encoded, values.tolist())))
        entries.append(message(1, message(1, name.encode()) + message(2, message(kind, content))))
    return message(1, b"".join(entries))


def message(field: int, content: bytes) -> bytes:
    return encoded(field << 3 | BYTES) + encoded(len(content)) + content


def encoded(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
