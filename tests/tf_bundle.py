"""TensorFlow checkpoints made from the format's description, whole or with a planted fault. Shares nothing with the
reader: its own numbers, checksums and Snappy. `tests/workloads/test_bert_tf_checkpoint.py` compares a file with
TensorFlow's own, byte for byte."""

import struct

import numpy as np

NUMBERS = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "float16": 19}
TABLE = np.arange(256, dtype=np.uint32)
for _ in range(8):
    TABLE = TABLE >> 1 ^ np.where(TABLE & 1, np.uint32(0x82F63B78), np.uint32(0))
TABLE = TABLE.tolist()


def checksum(data):
    """CRC-32C, rotated and shifted as in TFRecords and LevelDB."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % (1 << 32)


def number(value):
    """A varint; a negative value as its 64-bit complement."""
    value %= 1 << 64
    if value < 128:
        return bytes([value])
    return bytes([value % 128 + 128]) + number(value // 128)


def field(key, value):
    """A number, left out when it is 0, or bytes."""
    if isinstance(value, int):
        return number(key * 8) + number(value) if value else b""
    return number(key * 8 + 2) + number(len(value)) + value


def header(shards=1, big_endian=0, producer=1, oldest=0):
    return field(1, shards) + field(2, big_endian) + field(3, field(1, producer) + field(2, oldest))


def entry(dtype, shape, offset, size, crc, shard=0):
    kind = NUMBERS.get(dtype, dtype)
    dims = b"".join(field(2, field(1, n)) for n in shape)
    return (field(1, kind) + field(2, dims) + field(3, shard) + field(4, offset) + field(5, size)
            + number(6 * 8 + 5) + struct.pack("<I", crc))  # fmt: skip


def block(pairs, every=16):
    """(key, value) pairs in order, keys without what they share with the key before, but for each 16th."""
    out, restarts, last = b"", [], b""
    for i, (key, value) in enumerate(pairs):
        shared = 0
        if i % every == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += number(shared) + number(len(key) - shared) + number(len(value)) + key[shared:] + value
        last = key
    restarts = restarts or [0]
    return out + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def snappy(data):
    """Literals and, of what came just before, copies of all three kinds."""
    out, at = number(len(data)), 0
    while at < len(data):
        size, back = 0, 0
        for distance in range(1, min(at, 300) + 1):
            run = 0
            while run < 60 and at + run < len(data) and data[at + run] == data[at + run - distance]:
                run += 1
            if run > size:
                size, back = run, distance
        if 4 <= size <= 11:
            out += bytes([1 | size - 4 << 2 | back >> 8 << 5, back & 0xFF])
        elif size >= 12:
            wide = at % 2  # either width will do
            out += bytes([(2 + wide) | size - 1 << 2]) + back.to_bytes(2 + 2 * wide, "little")
        else:
            size = min(70 if at % 3 else 1, len(data) - at)
            long = size > 60
            out += (bytes([60 << 2, size - 1]) if long else bytes([size - 1 << 2])) + data[at : at + size]
        at += size
    return out


def place(offset, size):
    return number(offset) + number(size)


def table(pairs, per_block=1000, compression=0):
    """An index file of (key, value) pairs."""
    out, index = b"", []

    def add(content):
        nonlocal out
        content = snappy(content) if compression == 1 else content
        where = place(len(out), len(content))
        stored = content + bytes([compression])
        out += stored + struct.pack("<I", checksum(stored))
        return where

    for i in range(0, len(pairs), per_block):
        chunk = pairs[i : i + per_block]
        last = chunk[-1][0]
        if i + per_block >= len(pairs) and b"" < last < b"\xff":
            last = bytes([last[0] + 1])  # the shortest key behind the last one
        index.append((last, add(block(chunk))))
    places = add(block([])) + add(block(index, every=1))
    return out + places.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def write(prefix, tensors, shards=1, **options):
    """Writes a checkpoint of arrays by name; tensor i of the sorted names goes to shard i % shards."""
    files = [bytearray() for _ in range(shards)]
    pairs = [(b"", header(shards))]
    for i, name in enumerate(sorted(tensors)):
        value, file = np.asarray(tensors[name]), files[i % shards]
        data = value.tobytes()
        made = entry(value.dtype.name, value.shape, len(file), len(data), checksum(data), i % shards)
        pairs.append((name.encode(), made))
        file += data
    for i, file in enumerate(files):
        prefix.with_name(f"{prefix.name}.data-{i:05d}-of-{shards:05d}").write_bytes(file)
    prefix.with_name(prefix.name + ".index").write_bytes(table(pairs, **options))
