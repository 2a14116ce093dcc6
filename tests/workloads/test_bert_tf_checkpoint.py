"""TensorFlow's checkpoints: read as TensorFlow wrote them, and what is said of damaged and hostile ones."""

import struct
from pathlib import Path

import numpy as np
import pytest
import tf_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_fast.errors import UserError
from mlperf_fast.workloads.bert.tf_checkpoint import MAGIC, prefix_of, read_index, read_tensor, unsnapped

# What tf.compat.v1.train.Saver of TensorFlow 2.21 wrote of these three variables.
TENSORFLOW = {
    "bert/embeddings/word": np.arange(6, dtype=np.float32).reshape(2, 3) / 4,
    "bert/embeddings/work": np.float32(-1.5),
    "global_step": np.int64(28252),
}
TENSORFLOW_INDEX = bytes.fromhex(
    "00000608011a020801001413626572742f656d62656464696e67732f776f72640801120812020802120208032818354dc9c03713010d6b08"
    "0112002018280435422c3216000b0d676c6f62616c5f7374657008091200201c28083596055fc900000000010000000029c9a22600000000"
    "0100000000c0f2a1b00001026800670000000001000000008aa856966c08790e000000000000000000000000000000000000000000000000"
    "00000000000000000000000057fb808b247547db"
)
TENSORFLOW_DATA = bytes.fromhex("000000000000803e0000003f0000403f0000803f0000a03f0000c0bf5c6e000000000000")


def random_tensors(seed=0, count=100):
    rng = np.random.default_rng(seed)
    shapes = [(), (0, 3), (1,), (7,), (3, 4), (2, 1, 5)]
    found = {f"bert/encoder/layer_{i}/kernel": rng.standard_normal(shapes[i % 6]).astype("f4") for i in range(count)}
    return {**found, "global_step": np.int64(7), "häufig": np.float32(2)}


def index_of(path: Path, content: bytes) -> Path:
    path.with_name(path.name + ".index").write_bytes(content)
    return path


def indexed(path, *pairs, header=None, **options):
    """An index of these pairs and a header."""
    content = [(b"", tf_bundle.header() if header is None else header), *pairs]
    return index_of(path, tf_bundle.table(content, **options))


def one(path, dtype="float32", shape=(2,), offset=0, size=8, crc=0, shard=0, more=b""):
    """An index of one tensor, named a."""
    return indexed(path, (b"a", tf_bundle.entry(dtype, shape, offset, size, crc, shard) + more))


def check_same(path, tensors):
    found = read_index(path)
    assert list(found) == sorted(tensors)
    for name, value in tensors.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype.name, value.shape)
        if value.dtype == np.float32:
            read = read_tensor(path, found[name])
            assert read.shape == value.shape
            assert read.tobytes() == value.tobytes()


# What is right --------------------------------------------------------------------------------------------------------


def test_what_tensorflow_wrote(tmp_path):
    path = index_of(tmp_path / "model.ckpt-28252", TENSORFLOW_INDEX)
    (tmp_path / "model.ckpt-28252.data-00000-of-00001").write_bytes(TENSORFLOW_DATA)
    check_same(path, TENSORFLOW)


def test_our_writer_writes_as_tensorflow_does(tmp_path):
    tf_bundle.write(tmp_path / "x", TENSORFLOW)
    assert (tmp_path / "x.index").read_bytes() == TENSORFLOW_INDEX
    assert (tmp_path / "x.data-00000-of-00001").read_bytes() == TENSORFLOW_DATA


@pytest.mark.parametrize("per_block", [1, 7, 1000])
@pytest.mark.parametrize("compression", [0, 1])
@pytest.mark.parametrize("shards", [1, 3])
def test_blocks_shards_and_snappy(tmp_path, per_block, compression, shards):
    tensors = random_tensors()
    tf_bundle.write(tmp_path / "m.ckpt", tensors, shards, per_block=per_block, compression=compression)
    check_same(tmp_path / "m.ckpt", tensors)


def test_any_file_of_a_checkpoint_names_it():
    for name in ("x/m.ckpt-12", "x/m.ckpt-12.index", "x/m.ckpt-12.meta", "x/m.ckpt-12.data-00003-of-00010"):
        assert prefix_of(Path(name)) == Path("x/m.ckpt-12")


def test_snappy_by_its_description():
    assert unsnapped(b"\x00") == b""
    assert unsnapped(b"\x03\x08abc") == b"abc"
    assert unsnapped(b"\x0a\x08abc" + b"\x0d\x03") == b"abcabcabca"  # a copy that repeats itself: 7 bytes from 3 back
    assert unsnapped(b"\x06\x08abc" + b"\x0a\x03\x00") == b"abcabc"
    assert unsnapped(b"\x06\x08abc" + b"\x0b\x03\x00\x00\x00") == b"abcabc"
    long = bytes(range(256)) * 5
    for tag in (b"\xf4\xff\x04", b"\xf8\xff\x04\x00", b"\xfc\xff\x04\x00\x00"):  # sizes of 2, 3 and 4 bytes
        assert unsnapped(b"\x80\x0a" + tag + long) == long
    assert unsnapped(b"\x84\x0a" + b"\xf4\xff\x04" + long + b"\x81\x00") == long + long[-1024 : -1024 + 4]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a number without an end"),
        (b"\x80" * 20, "a number without an end"),
        (b"\x05\x08abc", "3 bytes come out of it instead of 5"),
        (b"\x02\x08abc", "3 bytes come out of it instead of 2"),
        (b"\x03\x08ab", "2 bytes come out of it instead of 3"),
        (b"\x03\xf0", "0 bytes come out of it instead of 3"),
        (b"\x07\x08abc\x01", "a copy of bytes before its start"),
        (b"\x07\x08abc\x01\x04", "a copy of bytes before its start"),
        (b"\x07\x01\x01", "a copy of bytes before its start"),
        (b"\xff\xff\xff\x7f\x00", "more than an index can have"),
    ],
)
def test_damaged_snappy(data, message):
    with pytest.raises(ValueError, match=message):
        unsnapped(data)


# What is wrong --------------------------------------------------------------------------------------------------------


def test_every_cut_and_every_flipped_bit_of_an_index_is_noticed(tmp_path):
    tf_bundle.write(tmp_path / "m", {"a/b": np.zeros(3, "f4"), "a/c": np.ones((2, 2), "f4")}, per_block=2)
    whole = (tmp_path / "m.index").read_bytes()
    for size in range(len(whole)):
        with pytest.raises(UserError, match=r"m\.index: "):
            read_index(index_of(tmp_path / "m", whole[:size]))
    good = read_index(index_of(tmp_path / "m", whole))
    # Between the footer's places and its magic number bits mean nothing: padding, and its first byte's predecessor may
    # say that a number goes on with it.
    padding = len(whole) - 48 + len(whole[-48:-8].rstrip(b"\0"))
    harmless = {8 * padding - 1, *range(8 * padding, 8 * len(whole) - 64)}
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        index_of(tmp_path / "m", bytes(damaged))
        if bit in harmless:
            assert read_index(tmp_path / "m") == good
        else:
            with pytest.raises(UserError, match=r"m\.index: "):
                read_index(tmp_path / "m")


def footer(*places):
    return b"".join(places).ljust(40, b"\0") + struct.pack("<Q", MAGIC)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no index of a TensorFlow checkpoint"),
        (b"\0" * 200, "no index of a TensorFlow checkpoint"),
        (footer(b"\xff" * 40), "a number without an end"),
        (footer(tf_bundle.place(0, 0)), "reaches behind the file's end"),
        (footer(tf_bundle.place(0, 1 << 62), tf_bundle.place(0, 1)), "4,611,686,018,427,387,904 bytes reaches behind"),
        (footer(tf_bundle.place(1 << 63, 5), tf_bundle.place(0, 1)), "reaches behind the file's end"),
        (tf_bundle.table([(b"", tf_bundle.header())], compression=2), "the unknown compression 2"),
        (tf_bundle.table([]), "the bundle's header is missing"),
        (tf_bundle.table([(b"a", b"")]), "the bundle's header is missing"),
        (tf_bundle.table([(b"", b"")]), "the header names 0 data files"),
        (tf_bundle.table([(b"", tf_bundle.header(shards=-1))]), "the header names 18,446,744,073,709,551,615 data"),
        (tf_bundle.table([(b"", tf_bundle.header(big_endian=1))]), "written on a big-endian machine"),
        (tf_bundle.table([(b"", tf_bundle.header(oldest=2))]), "for readers of version 2 and later; this one has 1"),
        (tf_bundle.table([(b"", b"\x0a\x05ab")]), "a field that ends behind its message"),
        (tf_bundle.table([(b"", b"\x0b\x05ab")]), "wire type 3"),
    ],
)
def test_a_wrong_table(tmp_path, content, message):
    with pytest.raises(UserError, match=rf"m\.index: .*{message}"):
        read_index(index_of(tmp_path / "m", content))


def with_blocks(*contents):
    """An index file of data blocks with this content."""
    out, places = b"", []
    for content in contents:
        places.append(tf_bundle.place(len(out), len(content)))
        out += content + b"\0" + struct.pack("<I", tf_bundle.checksum(content + b"\0"))
    for content in (tf_bundle.block([]), tf_bundle.block([(b"z%d" % i, where) for i, where in enumerate(places)])):
        places.append(tf_bundle.place(len(out), len(content)))
        out += content + b"\0" + struct.pack("<I", tf_bundle.checksum(content + b"\0"))
    return out + footer(*places[-2:])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a block of 0 bytes can't have 0 restarts"),
        (b"\0\0\0", "a block of 3 bytes"),
        (b"\0\0\0\0\xff\xff\xff\xff", "a block of 8 bytes can't have 4,294,967,295 restarts"),
        (b"\x00\x80" + b"\x01\0\0\0" * 2, "a number without an end|doesn't fit"),
        (b"\x01\x00\x00" + b"\0\0\0\0\x01\0\0\0", "doesn't fit into its block"),
        (b"\x00\x00\x50" + b"\0\0\0\0\x01\0\0\0", "doesn't fit into its block"),
        (b"\x00\xff\xff\xff\xff\xff\xff\xff\x7f\x00" + b"\0\0\0\0\x01\0\0\0", "doesn't fit into its block"),
    ],
)
def test_a_wrong_block(tmp_path, content, message):
    with pytest.raises(UserError, match=rf"m\.index: .*({message})"):
        read_index(index_of(tmp_path / "m", with_blocks(tf_bundle.block([(b"", tf_bundle.header())]), content)))


def test_blocks_may_not_be_read_twice(tmp_path):
    content = tf_bundle.block([(b"", tf_bundle.header())])
    out = content + b"\0" + struct.pack("<I", tf_bundle.checksum(content + b"\0"))
    first, places = tf_bundle.place(0, len(content)), []
    for content in (tf_bundle.block([]), tf_bundle.block([(b"a", first), (b"b", first)])):
        places.append(tf_bundle.place(len(out), len(content)))
        out += content + b"\0" + struct.pack("<I", tf_bundle.checksum(content + b"\0"))
    with pytest.raises(UserError, match="its blocks overlap"):
        read_index(index_of(tmp_path / "m", out + footer(*places)))


VALUE = tf_bundle.entry("float32", (), 0, 4, 0)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([b"b", b"a"], "its names aren't sorted"),
        ([b"a", b"a"], "its names aren't sorted"),
        ([b"a", b""], "its names aren't sorted"),
        ([b"\0part\0\1"], "saved in slices"),
        ([b"x" * 1025], "doesn't fit into its block"),
        ([b"\xff\xfe"], r"tensor '\\\\xff\\\\xfe': 'utf-8'"),
        ([b"a", b"b"], "tensors a and b overlap in data file 0"),
    ],
)
def test_wrong_names_and_places(tmp_path, names, message):
    with pytest.raises(UserError, match=rf"m\.index: .*{message}"):
        read_index(indexed(tmp_path / "m", *((name, VALUE) for name in names)))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"size": 12}, r"12 bytes can't hold float32 \[2\]"),
        ({"size": -8}, "lies at byte 0, 18,446,744,073,709,551,608 bytes"),
        ({"offset": -1}, "lies at byte 18,446,744,073,709,551,615"),
        ({"shape": (-1,)}, "no array has such a shape"),
        ({"shape": (1 << 40, 1 << 40)}, "no array has such a shape"),
        ({"shape": (0, 1 << 62), "size": 0}, "no array has such a shape"),
        ({"shape": (1,) * 40}, "40 dimensions: no array has such a shape"),
        ({"shard": 1}, "lies in data file 1, of 1"),
        ({"shard": -1}, "lies in data file 18,446,744,073,709,551,615, of 1"),
        ({"more": tf_bundle.field(7, b"")}, "saved in slices"),
        ({"more": tf_bundle.field(2, tf_bundle.field(3, 1))}, "its shape is unknown"),
        ({"more": tf_bundle.field(6, b"12345")}, "its checksum has no 4 bytes"),
        ({"more": tf_bundle.field(4, b"abc")}, "a field isn't a number"),
        ({"more": b"\x08"}, "a number without an end"),
    ],
)
def test_a_wrong_entry(tmp_path, fault, message):
    with pytest.raises(UserError, match=rf"m\.index: tensor 'a': .*{message}"):
        read_index(one(tmp_path / "m", **fault))


def test_files_that_are_none(tmp_path):
    with pytest.raises(
        UserError, match=r"m\.index: No such file or directory; a TensorFlow checkpoint has such a file"
    ):
        read_index(tmp_path / "m")
    (tmp_path / "m.index").mkdir()
    with pytest.raises(UserError, match=r"m\.index: Is a directory"):
        read_index(tmp_path / "m")
    with open(tmp_path / "large.index", "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(UserError, match="1,073,741,824 bytes, more than a checkpoint's index can have"):
        read_index(tmp_path / "large")


@pytest.mark.parametrize(
    ("dtype", "size"), [("float16", 4), ("float64", 16), ("int64", 16), (14, 4), (7, 999), (77, 5)]
)
def test_weights_are_float32(tmp_path, dtype, size):
    path = one(tmp_path / "m", dtype=dtype, size=size)
    name = {14: "bfloat16", 7: "string", 77: "number 77"}.get(dtype, dtype)
    with pytest.raises(UserError, match=f"tensor a is of type {name}; weights must be float32"):
        read_tensor(path, read_index(path)["a"])


def test_data_that_is_missing_cut_or_damaged(tmp_path):
    path = tmp_path / "m"
    tf_bundle.write(path, {"a": np.arange(4, dtype="f4"), "b": np.arange(9, dtype="f4")}, shards=2)
    found = read_index(path)
    second = tmp_path / "m.data-00001-of-00002"
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"data-00001-of-00002: tensor b ends at byte 36 of 35: the file is cut short"):
        read_tensor(path, found["b"])
    second.unlink()
    with pytest.raises(UserError, match=r"data-00001-of-00002: tensor b can't be read: No such file"):
        read_tensor(path, found["b"])
    first = tmp_path / "m.data-00000-of-00002"
    content = first.read_bytes()
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        first.write_bytes(damaged)
        with pytest.raises(UserError, match="tensor a: its checksum is wrong"):
            read_tensor(path, found["a"])


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_hostile_index_gives_a_user_error_or_is_read(tmp_path_factory, data):
    """Bytes anywhere replaced, checksums mended: whatever comes is one error, never another exception."""
    path = tmp_path_factory.mktemp("hostile") / "m"
    content = bytearray(tf_bundle.block([(b"", tf_bundle.header()), (b"a", VALUE), (b"ab", VALUE[:-2])]))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    index_of(path, with_blocks(bytes(content)))
    try:
        found = read_index(path)
    except UserError:
        return
    assert all(e.size < 1 << 63 and e.shard == 0 for e in found.values())
