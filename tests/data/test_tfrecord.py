"""Lists of bytes in records, and where they lie; numbers and damaged files are in test_bert_shards.py."""

import struct

import numpy as np
import pytest

from mlperf_fast.data import tfrecord
from mlperf_fast.errors import UserError


def test_bytes_and_numbers_of_an_image(tmp_path):
    path = tmp_path / "train-00000-of-00001"
    jpegs = [b"\xff\xd8" + bytes(n) for n in (0, 127, 128, 300_000)]
    tfrecord.write(path, [{"image/encoded": data, "image/class/label": np.array([i])} for i, data in enumerate(jpegs)])
    whole = path.read_bytes()
    for i, (at, payload) in enumerate(tfrecord.records_at(path)):
        found = tfrecord.example(payload)
        assert found["image/encoded"] == [jpegs[i]]
        assert found["image/class/label"].tolist() == [i]
        assert whole[at : at + len(payload)] == payload
    assert tfrecord.count_records(path) == 4


def test_the_bytes_are_those_of_the_format():
    entry = b"\x0a\x01a\x12\x06\x0a\x04\x0a\x02hi"  # key "a", Feature{bytes_list{"hi"}}
    features = b"\x0a" + bytes([len(entry)]) + entry
    assert tfrecord.encoded_example({"a": b"hi"}) == b"\x0a" + bytes([len(features)]) + features
    assert tfrecord.feature(b"\x0a\x06\x0a\x02hi\x0a\x00") == [b"hi", b""]


def test_a_length_that_no_record_has(tmp_path):
    head = struct.pack("<Q", 1 << 40)
    path = tmp_path / "part"
    path.write_bytes(head + struct.pack("<I", tfrecord.masked_crc(head)) + bytes(8))
    with pytest.raises(UserError, match="1,099,511,627,776 bytes, more than an example can have"):
        list(tfrecord.records(path))
