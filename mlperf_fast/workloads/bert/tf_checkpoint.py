"""TensorFlow's checkpoints ("bundles", format V2), read without TensorFlow.

    model.ckpt.index                   a sorted table: each tensor's name, type, shape, place and checksum
    model.ckpt.data-00000-of-00001     the tensors' bytes, little-endian; one file a shard

The table is LevelDB's: blocks of sorted keys, one more block that says where those are, and a footer. A key leaves out
what it shares with the one before it. Key "" holds the bundle's header, every other key a tensor, both as protocol
buffers. TensorFlow as published writes plain blocks; Google's own, which wrote BERT's, compresses them by snappy.
Sources: LevelDB's doc/table_format.md; Snappy's format_description.txt; TensorFlow's tensor_bundle.h,
tensor_bundle.proto and types.proto.
"""

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from mlperf_fast.data.tfrecord import masked_crc, parts, varint
from mlperf_fast.errors import UserError

MAGIC = 0xDB4775248B80FB57
FOOTER = 48  # bytes: two places of at most 20 bytes together with padding, and the magic number
TRAILER = 5  # bytes behind a block: its compression and its checksum
PLAIN, SNAPPY = 0, 1
NEWEST_READER = 1  # of the bundle's format; a header may ask for a later one
# Bounds on a hostile index; BERT-large's with all optimizer slots has 17,371 bytes, 1,197 tensors, names of 70 letters.
LARGEST_INDEX, MOST_TENSORS, LONGEST_NAME = 1 << 22, 100_000, 1024
# The numbers of types that may lie in a checkpoint, with bytes an element; strings have no fixed size.
TYPES = {
    1: ("float32", 4), 2: ("float64", 8), 3: ("int32", 4), 4: ("uint8", 1), 5: ("int16", 2), 6: ("int8", 1),
    7: ("string", 0), 9: ("int64", 8), 10: ("bool", 1), 14: ("bfloat16", 2), 19: ("float16", 2),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor is: `size` bytes from `offset` on of data file `shard` of `shards`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    shards: int
    offset: int
    size: int
    crc32c: int  # of its bytes, masked as in TFRecords


def prefix_of(path: Path) -> Path:
    """The checkpoint's own name, from that or from the name of one of its files."""
    return path.with_name(re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path.name))


def read_index(path: Path) -> dict[str, Entry]:
    """The tensors of a checkpoint by name, sorted; `path` as for `prefix_of`. Reads only the .index file.

    UserError names what is wrong with a file that is none, damaged, or written in a way that isn't read here.
    """
    prefix = prefix_of(path)
    file = prefix.with_name(prefix.name + ".index")
    try:
        size = file.stat().st_size
        if size > LARGEST_INDEX:
            raise UserError(f"{file}: {size:,} bytes, more than a checkpoint's index can have")
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; a TensorFlow checkpoint has such a file") from None
    try:
        return tensors(data)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None


def read_tensor(path: Path, entry: Entry) -> np.ndarray:
    """float32 [entry.shape], its checksum compared; `path` as for `prefix_of`. UserError for other types."""
    prefix = prefix_of(path)
    file = prefix.with_name(f"{prefix.name}.data-{entry.shard:05d}-of-{entry.shards:05d}")
    where = f"{file}: tensor {entry.name}"
    if entry.dtype != "float32":
        raise UserError(f"{where} is of type {entry.dtype}; weights must be float32")
    try:
        available = file.stat().st_size
        if entry.offset + entry.size > available:
            raise UserError(
                f"{where} ends at byte {entry.offset + entry.size:,} of {available:,}: the file is cut short, or "
                "belongs to another index: get both again"
            )
        values = np.fromfile(file, dtype="<f4", count=entry.size // 4, offset=entry.offset)
    except OSError as error:
        raise UserError(f"{where} can't be read: {error.strerror}") from None
    if masked_crc(values.view(np.uint8).data) != entry.crc32c:
        raise UserError(f"{where}: its checksum is wrong: a damaged file, get it again")
    return values.reshape(entry.shape)


# The table: ValueError says what is wrong -----------------------------------------------------------------------------


def tensors(data: bytes) -> dict[str, Entry]:
    """The entries of an index file's content."""
    if len(data) < FOOTER or struct.unpack("<Q", data[-8:])[0] != MAGIC:
        raise ValueError("no index of a TensorFlow checkpoint, or one that is cut short: the last 8 bytes are wrong")
    at, size, next_ = place(data[-FOOTER:-8], 0)
    block(data, at, size)  # the table of tables is empty; its checksum is compared all the same
    at, size, _ = place(data[-FOOTER:-8], next_)
    found: dict[str, Entry] = {}
    shards, last = 0, b""
    end = 0
    for _, handle in entries(block(data, at, size)):
        at, size, _ = place(handle, 0)
        if at < end:
            raise ValueError("its blocks overlap")
        end = at + size
        for key, value in entries(block(data, at, size)):
            if not shards:
                if key:
                    raise ValueError("the bundle's header is missing")
                shards = header(value)
                continue
            if key <= last:
                raise ValueError("its names aren't sorted")
            last = key
            if key.startswith(b"\0"):
                raise ValueError("a variable is saved in slices (a partitioned one), which isn't read here")
            if len(found) == MOST_TENSORS:
                raise ValueError(f"more than {MOST_TENSORS:,} tensors")
            try:
                found[key.decode()] = entry(key.decode(), value, shards)
            except ValueError as error:  # UnicodeDecodeError is one
                raise ValueError(f"tensor {key.decode(errors='backslashreplace')!r}: {error}") from None
    if not shards:
        raise ValueError("the bundle's header is missing")
    check_places(found)
    return found


def place(data: bytes, at: int) -> tuple[int, int, int]:
    """(offset, size) of a block, and where the two numbers end."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return offset, size, at


def block(data: bytes, at: int, size: int) -> bytes:
    """The content of a block, its checksum compared, not compressed any more."""
    end = at + size
    if end + TRAILER > len(data) - FOOTER:
        raise ValueError(f"a block at byte {at:,} with {size:,} bytes reaches behind the file's end")
    compression, check = struct.unpack("<BI", data[end : end + TRAILER])
    if masked_crc(data[at : end + 1]) != check:
        raise ValueError(f"the checksum of the block at byte {at:,} is wrong: a damaged file, get it again")
    if compression == SNAPPY:
        return unsnapped(data[at:end])
    if compression != PLAIN:
        raise ValueError(f"the block at byte {at:,} has the unknown compression {compression}")
    return data[at:end]


def unsnapped(data: bytes) -> bytes:
    """What Snappy compressed: literal bytes, and copies of bytes that are already out."""
    whole, at = varint(data, 0)
    if whole > LARGEST_INDEX:
        raise ValueError(f"a block of {whole:,} bytes, more than an index can have")
    out = bytearray()
    while at < len(data):
        tag = data[at]
        kind, at = tag & 3, at + 1
        if kind == 0:
            size, more = tag >> 2, max(0, (tag >> 2) - 59)  # 60 to 63 say that the size follows, in 1 to 4 bytes
            if more:
                size = int.from_bytes(data[at : at + more], "little")
            at += more
            out += data[at : at + size + 1]
            at += size + 1
        else:
            more = (1, 2, 4)[kind - 1]
            size, back = 1 + (tag >> 2), int.from_bytes(data[at : at + more], "little")
            if kind == 1:  # three bits of the tag are the size, the upper three belong to the distance
                size, back = 4 + (tag >> 2 & 7), back | tag >> 5 << 8
            at += more
            if not 0 < back <= len(out):
                raise ValueError("a damaged block: a copy of bytes before its start")
            piece = out[-back:]  # shorter than the copy where it repeats itself
            out += (piece * (size // back + 1))[:size]
        if len(out) > whole or at > len(data):
            break
    if len(out) != whole or at != len(data):
        raise ValueError(f"a damaged block: {len(out):,} bytes come out of it instead of {whole:,}")
    return bytes(out)


def entries(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of a block, in order. Behind them stand the offsets of the keys that leave out nothing."""
    count = int.from_bytes(content[-4:], "little")
    end = len(content) - 4 * (count + 1)
    if len(content) < 4 or end < 0:
        raise ValueError(f"a block of {len(content)} bytes can't have {count:,} restarts")
    at, key = 0, b""
    while at < end:
        shared, at = varint(content, at)
        own, at = varint(content, at)
        size, at = varint(content, at)
        if shared > len(key) or shared + own > LONGEST_NAME or at + own + size > end:
            raise ValueError("an entry doesn't fit into its block: a damaged file")
        key = key[:shared] + content[at : at + own]
        yield key, content[at + own : at + own + size]
        at += own + size


# Its protocol buffers -------------------------------------------------------------------------------------------------


def number(content: bytes) -> int:
    value, end = varint(content, 0)
    if end != len(content):
        raise ValueError("a field isn't a number")
    return value


def header(data: bytes) -> int:
    """How many data files the checkpoint has. BundleHeaderProto{1: shards, 2: endianness, 3: {2: oldest reader}}."""
    shards = 0
    for field, content in parts(data):
        if field == 1:
            shards = number(content)
        elif field == 2 and number(content):
            raise ValueError("written on a big-endian machine, which isn't read here")
        elif field == 3:
            oldest = max((number(part) for name, part in parts(content) if name == 2), default=0)
            if oldest > NEWEST_READER:
                raise ValueError(f"written for readers of version {oldest} and later; this one has {NEWEST_READER}")
    if not 0 < shards <= 99_999:
        raise ValueError(f"the header names {shards:,} data files")
    return shards


def entry(name: str, data: bytes, shards: int) -> Entry:
    """BundleEntryProto{1: type, 2: shape, 3: shard, 4: offset, 5: size, 6: crc32c, 7: slices}, zeros left out."""
    kind = shard = offset = size = crc = 0
    shape: tuple[int, ...] = ()
    for field, content in parts(data):
        if field == 1:
            kind = number(content)
        elif field == 2:
            shape = dimensions(content)
        elif field == 3:
            shard = number(content)
        elif field == 4:
            offset = number(content)
        elif field == 5:
            size = number(content)
        elif field == 6:
            if len(content) != 4:
                raise ValueError("its checksum has no 4 bytes")
            crc = int.from_bytes(content, "little")
        elif field == 7:
            raise ValueError("saved in slices (a partitioned variable), which isn't read here")
    dtype, itemsize = TYPES.get(kind, (f"number {kind}", 0))
    if shard >= shards:
        raise ValueError(f"lies in data file {shard:,}, of {shards:,}")
    if offset + size >= 1 << 63:
        raise ValueError(f"lies at byte {offset:,}, {size:,} bytes")
    if itemsize and math.prod(shape) * itemsize != size:
        raise ValueError(f"{size:,} bytes can't hold {dtype} {list(shape)}")
    return Entry(name, dtype, shape, shard, shards, offset, size, crc)


def dimensions(data: bytes) -> tuple[int, ...]:
    """TensorShapeProto{2: Dim{1: size}, 3: rank unknown}; a size of 0 is left out."""
    shape: list[int] = []
    for field, content in parts(data):
        if field == 2:
            shape.append(max((number(part) for name, part in parts(content) if name == 1), default=0))
        elif field == 3 and number(content):
            raise ValueError("its shape is unknown")
    if len(shape) > 32 or math.prod(max(size, 1) for size in shape) >= 1 << 60:
        raise ValueError(f"{list(shape[:4])}, {len(shape)} dimensions: no array has such a shape")
    return tuple(shape)


def check_places(found: dict[str, Entry]) -> None:
    order = sorted((e for e in found.values() if e.size), key=lambda e: (e.shard, e.offset))
    for a, b in pairwise(order):
        if a.shard == b.shard and a.offset + a.size > b.offset:
            raise ValueError(f"tensors {a.name} and {b.name} overlap in data file {a.shard}")
