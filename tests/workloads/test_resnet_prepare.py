"""`prepare` and `verify`: the three raw forms, byte for byte, an interrupted run, and each kind of bad input."""

import io
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason="needs Pillow: pip install 'mlperf_fast[resnet]'")

import resnet_images
from PIL import Image

from mlperf_fast.data import jpeg, recordio, tfrecord
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.resnet import prepare as prepare_module
from mlperf_fast.workloads.resnet.dataset import EVAL, TRAIN, Images, read_meta, write_meta
from mlperf_fast.workloads.resnet.prepare import prepare
from mlperf_fast.workloads.resnet.verify import verify

N, M, CLASSES = resnet_images.TRAIN, resnet_images.EVAL, resnet_images.CLASSES
SHARED = Path(__file__).parents[3] / "shared" / "data" / "resnet"


def content(out):
    """(label, JPEG) of each image of both parts, sorted."""
    meta = read_meta(out)
    parts = [Images(out, meta, part) for part in (TRAIN, EVAL)]
    return [sorted((int(i.index["label"][k]), i.read(k).tobytes()) for k in range(len(i))) for i in parts]


WANTED = [
    sorted((label, data) for _, label, data in resnet_images.samples(count, first)) for count, first in ((N, 0), (M, N))
]


@pytest.fixture
def folders(tmp_path):
    resnet_images.write_folders(tmp_path / "raw")
    return tmp_path / "raw"


def example(data, label):
    """A record as the reference's packing writes it, with boxes."""
    return {
        "image/encoded": data,
        "image/class/label": np.array([label + 1]),
        "image/class/synset": b"n0",
        "image/object/bbox/xmin": np.array([0.25], np.float32),
        "image/object/bbox/label": np.array([label + 1]),
    }


@pytest.fixture
def shards(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for part, count, first, files in (("train", N, 0, 3), ("validation", M, N, 2)):
        made = [example(data, label) for _, label, data in resnet_images.samples(count, first)]
        for i in range(files):
            tfrecord.write(raw / f"{part}-{i:05d}-of-{files:05d}", made[i::files])
    return raw


@pytest.fixture
def recs(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for part, count, first in (("train", N, 0), ("val", M, N)):
        made = resnet_images.samples(count, first)
        recordio.write(raw / f"{part}.rec", raw / f"{part}.idx", made)
        lines = [f"{number}\t{label:.6f}\t{CLASSES[label]}/{number}.JPEG\n" for number, label, _ in made]
        (raw / f"{part}.lst").write_text("".join(lines))
    return raw


# What comes out -------------------------------------------------------------------------------------------------------


def test_class_folders_become_shards_of_the_same_bytes(folders, tmp_path):
    said = []
    meta = prepare(folders, tmp_path / "out", shard_mb=0.02, progress=said.append)
    assert content(tmp_path / "out") == WANTED
    assert meta == read_meta(tmp_path / "out") or list(meta.class_names) == read_meta(tmp_path / "out").class_names
    assert list(meta.class_names) == list(CLASSES)
    assert (meta.train_samples, meta.eval_samples) == (N, M)
    assert meta.train_classes == [10, 10, 9, 9, 9]
    assert len(meta.train) > 1
    assert f"train: {N} images of 5 classes, 9 to 10 each" in said
    for name, count in {**meta.train, **meta.validation}.items():
        features = [tfrecord.example(payload) for payload in tfrecord.records(tmp_path / "out" / name)]
        assert len(features) == count
        for f in features:
            (data,), (name_of_file,) = f["image/encoded"], f["image/filename"]
            label = int(f["image/class/label"][0]) - 1
            assert (
                folders / ("train" if "train" in name else "val") / CLASSES[label] / name_of_file.decode()
            ).read_bytes() == data
            assert f["image/class/synset"] == [CLASSES[label].encode()]
            assert (int(f["image/height"][0]), int(f["image/width"][0]), 3) == jpeg.header(data)
    labels = Images(tmp_path / "out", meta, TRAIN).index["label"].tolist()
    assert labels != sorted(labels), "the images are to be in random order"
    assert verify(tmp_path / "out").source == meta.source


@pytest.mark.parametrize("form", ["shards", "recs"])
def test_packed_files_are_used_where_they_are(form, tmp_path, request):
    raw = request.getfixturevalue(form)
    meta = prepare(raw, tmp_path / "out")
    assert content(tmp_path / "out") == WANTED
    assert meta.format == {"shards": "tfrecord", "recs": "recordio"}[form]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["meta.json", "train.npy", "validation.npy"]
    assert meta.classes == 5
    assert verify(tmp_path / "out") == read_meta(tmp_path / "out")


def test_shards_may_lie_in_folders_of_their_own(shards, tmp_path):
    for part in ("train", "validation"):
        (shards / part).mkdir()
        for path in shards.glob(f"{part}-*"):
            path.rename(shards / part / path.name)
    prepare(shards, tmp_path / "out")
    assert content(tmp_path / "out") == WANTED


def with_magic(data):
    """The JPEG with a comment that holds RecordIO's magic number."""
    return data[:2] + b"\xff\xfe\x00\x20--" + struct.pack("<I", recordio.MAGIC) * 7 + data[2:]


def test_an_image_that_holds_recordios_magic_number(recs, tmp_path):
    """It lies in several parts of the file, so that it can't be mapped in one piece."""
    made = [(n, label, with_magic(data)) for n, label, data in resnet_images.samples(N)]
    recordio.write(recs / "train.rec", recs / "train.idx", made)
    meta = prepare(recs, tmp_path / "out")
    images = Images(tmp_path / "out", meta, TRAIN)
    assert (images.index["parts"] > 1).any()
    assert content(tmp_path / "out")[0] == sorted((label, data) for _, label, data in made)


def read_by_dali(reader, count):
    """(label, bytes) of all records by a reader of DALI's own; reader(fn, types) gives the bytes and the label."""
    dali = pytest.importorskip("nvidia.dali", reason="needs DALI: pip install 'mlperf_fast[dali]'")
    import nvidia.dali.fn as fn
    import nvidia.dali.types as types

    @dali.pipeline_def(batch_size=count, num_threads=1, device_id=None)
    def pipe():
        return reader(fn, types)

    built = pipe()
    built.build()
    data, labels = built.run()
    return sorted((int(np.array(labels[i]).item()), np.array(data[i]).tobytes()) for i in range(count))


def test_dalis_own_reader_reads_what_was_packed(folders, tmp_path):
    """Another reader of TFRecords, with the index that it wants."""
    meta = prepare(folders, tmp_path / "out")
    (name,) = meta.train
    path, index = tmp_path / "out" / name, tmp_path / "index"
    lines = [f"{at - 12} {len(payload) + 16}\n" for at, payload in tfrecord.records_at(path)]
    index.write_text("".join(lines))

    def reader(fn, types):
        import nvidia.dali.tfrecord as tfrec

        features = {
            "image/encoded": tfrec.FixedLenFeature((), tfrec.string, ""),
            "image/class/label": tfrec.FixedLenFeature([1], tfrec.int64, -1),
        }
        found = fn.readers.tfrecord(path=[str(path)], index_path=[str(index)], features=features)
        return found["image/encoded"], found["image/class/label"]

    assert [(label - 1, data) for label, data in read_by_dali(reader, N)] == WANTED[0]


def test_dalis_own_reader_reads_our_recordio(recs):
    """Also the records that hold the magic number, and so have several parts."""
    made = [(n, label, with_magic(data) if n % 2 else data) for n, label, data in resnet_images.samples(N)]
    recordio.write(recs / "train.rec", recs / "train.idx", made)

    def reader(fn, types):
        return tuple(fn.readers.mxnet(path=[str(recs / "train.rec")], index_path=[str(recs / "train.idx")]))

    assert read_by_dali(reader, N) == sorted((label, data) for _, label, data in made)


def test_workers_and_restarts_change_no_byte(folders, tmp_path, monkeypatch):
    prepare(folders, tmp_path / "one", shard_mb=0.005)
    prepare(folders, tmp_path / "two", shard_mb=0.005, workers=3)
    pack_shard, left = prepare_module.pack_shard, [2, 2, 99]

    def dying(shard):
        left[0] -= 1
        if left[0] < 0:
            left.pop(0)
            raise KeyboardInterrupt
        return pack_shard(shard)

    monkeypatch.setattr(prepare_module, "pack_shard", dying)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            prepare(folders, tmp_path / "three", shard_mb=0.005)
    with pytest.raises(UserError, match="holds unfinished work with other settings"):
        prepare(folders, tmp_path / "three", shard_mb=0.02)
    prepare(folders, tmp_path / "three", shard_mb=0.005)
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert len(files) > 5
    for other in ("two", "three"):
        assert {path.name: path.read_bytes() for path in (tmp_path / other).iterdir()} == files


def test_what_was_made_is_verified_and_not_made_again(folders, tmp_path):
    said = []
    prepare(folders, tmp_path / "out")
    before = (tmp_path / "out/train.npy").stat().st_mtime_ns
    prepare(folders, tmp_path / "out", progress=said.append)
    assert "was prepared before from the same files" in said[0]
    assert (tmp_path / "out/train.npy").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds another data set"):
        prepare(folders, tmp_path / "out", shorter_side=20)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").touch()
    with pytest.raises(UserError, match=r"holds other files \(notes.txt\)"):
        prepare(folders, tmp_path / "other")


def test_larger_images_can_be_made_smaller(folders, tmp_path):
    meta = prepare(folders, tmp_path / "out", shorter_side=24)
    index = Images(tmp_path / "out", meta, TRAIN).index
    assert (np.minimum(index["height"], index["width"]) == 24).all()
    assert index["width"].max() > 40
    verify(tmp_path / "out")


def test_grey_and_cmyk_images_and_one_of_a_single_pixel(folders, tmp_path):
    place = folders / "train" / "ant"
    kinds = {"grey.jpg": {"mode": "L"}, "cmyk.jpg": {"mode": "CMYK"}, "dot.jpg": {"height": 1, "width": 1}}
    for name, options in kinds.items():
        (place / name).write_bytes(resnet_images.jpeg(60, **options))
    Image.new("RGB", (30, 40), (10, 20, 30)).save(place / "really_a.JPEG", "PNG")
    prepare(folders, tmp_path / "out")
    found = [data for _, data in content(tmp_path / "out")[0] if data not in [data for _, data in WANTED[0]]]
    assert sorted(jpeg.header(data).components for data in found) == [1, 3, 3, 3]
    assert {jpeg.header(data)[:2] for data in found} >= {(1, 1), (40, 30)}
    assert resnet_images.jpeg(60, mode="L") in found


# Faults ---------------------------------------------------------------------------------------------------------------


def refused(raw, tmp_path, message, **options):
    with pytest.raises(UserError, match=message):
        prepare(raw, tmp_path / "out", **options)
    assert not (tmp_path / "out" / "meta.json").exists()


def huge():
    data = bytearray(resnet_images.jpeg(1))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 60_000, 50_000)
    return bytes(data)


BAD = {
    "truncated.jpg": (lambda: resnet_images.textured(1, 80, 90)[:-900], "a damaged JPEG: .*truncated"),
    "corrupt.jpg": (lambda: resnet_images.jpeg(1)[:2] + b"\0\0\0\0" + resnet_images.jpeg(1)[6:], "a damaged JPEG"),
    "notes.txt": (lambda: b"not an image", "no JPEG: it begins with b'not an i'"),
    "empty.jpg": (lambda: b"", "no JPEG: it is empty"),
    "huge.jpg": (huge, "60,000 x 50,000 pixels, more than the 89,478,485 that are decoded"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("form", ["folders", "shards", "recs"])
def test_a_file_that_is_no_whole_image_is_named(form, name, tmp_path, request):
    raw, (make, message) = request.getfixturevalue(form), BAD[name]
    if form == "folders":
        (raw / "train" / "bee" / name).write_bytes(make())
        refused(raw, tmp_path, rf"bee/{name}: {message}")
        (raw / "train" / "bee" / name).unlink()
        prepare(raw, tmp_path / "out")  # goes on once it is mended
        assert content(tmp_path / "out") == WANTED
    elif form == "shards":
        path = raw / "train-00001-of-00003"
        tfrecord.write(path, [example(resnet_images.jpeg(1), 1), example(make(), 2)])
        refused(raw, tmp_path, rf"{path.name}: record 1 at byte [\d,]+: {message}")
    else:
        recordio.write(raw / "train.rec", raw / "train.idx", [(0, 1, resnet_images.jpeg(1)), (1, 1, make())])
        (raw / "train.lst").unlink()
        refused(raw, tmp_path, rf"train.rec: record 1 at byte [\d,]+: {message}")


def test_an_empty_class_and_one_that_only_one_part_has(folders, tmp_path):
    (folders / "train" / "fox").mkdir()
    refused(folders, tmp_path, "train/fox: the class has no image")
    (folders / "train" / "fox" / "a.jpg").write_bytes(resnet_images.jpeg(3))
    refused(folders, tmp_path, "val: the classes aren't those of .*train: fox is in one of them only")


def test_a_class_without_an_image_in_packed_files(shards, tmp_path):
    refused(shards, tmp_path, "train: class 5 has no image", classes=6)
    refused(shards, tmp_path, r"has label 3, but there are 3 classes, 0 to 2", classes=3)
    prepare(shards, tmp_path / "good", classes=5)


@pytest.mark.parametrize(("label", "message"), [(-1, "its label is -1"), (7, "class 5 has no image")])
def test_a_label_outside_of_the_classes(shards, tmp_path, label, message):
    """TFRecords count from 1, so a label of 0 there is none."""
    tfrecord.write(shards / "train-00001-of-00003", [example(resnet_images.jpeg(1), label)])
    refused(shards, tmp_path, message)


def test_a_tfrecord_with_a_wrong_checksum(shards, tmp_path):
    path = shards / "train-00002-of-00003"
    damaged = bytearray(path.read_bytes())
    damaged[500] ^= 1
    path.write_bytes(damaged)
    refused(shards, tmp_path, "train-00002-of-00003: record 0 at byte 0: the checksum of its content is wrong")
    path.write_bytes(damaged[:-7])
    refused(shards, tmp_path, "train-00002-of-00003: record 0 at byte 0: the checksum of its content")
    tfrecord.write(path, [{"input_ids": np.zeros(3, np.int64)}])
    refused(shards, tmp_path, "the record at byte 12 is no image of ImageNet: no 'image/encoded'")
    numbers = {"image/encoded": np.zeros(1, np.float32), "image/class/label": np.array([1])}
    tfrecord.write(path, [numbers])
    refused(shards, tmp_path, "the record at byte 12 is no image of ImageNet: image/encoded holds numbers")
    path.unlink()
    refused(shards, tmp_path, "holds train shards without number 2")
    (shards / "train-00000-of-00009").touch()
    refused(shards, tmp_path, r"holds train shards of several sets \(00003, 00009\)")


def test_the_index_or_list_of_another_file(recs, tmp_path):
    index = (recs / "train.idx").read_bytes()
    (recs / "train.idx").write_bytes((recs / "val.idx").read_bytes())
    refused(recs, tmp_path, "train.idx isn't the index of .*train.rec: 13 entries for 47 records")
    (recs / "train.idx").write_bytes(index)
    lines = (recs / "train.lst").read_text()
    (recs / "train.lst").write_bytes((recs / "val.lst").read_bytes())
    refused(recs, tmp_path, r"train.lst isn't the list of train.idx: only one of them has key 0")
    (recs / "train.lst").write_text(lines.replace("\t3.000000\t", "\t2.000000\t", 1))
    refused(recs, tmp_path, "its label is 3, but the .lst file says 2")
    (recs / "train.lst").write_text(lines)
    (recs / "val.idx").unlink()
    refused(recs, tmp_path, "val.idx is missing")


@pytest.mark.parametrize("label", [0.5, float("nan"), -2.0, float("inf")])
def test_labels_that_are_no_whole_numbers(recs, tmp_path, label):
    (recs / "train.lst").unlink()
    record = recordio.encoded(recordio.HEADER.pack(0, label, 0, 0) + resnet_images.jpeg(1))
    (recs / "train.rec").write_bytes(record)
    (recs / "train.idx").write_text("0\t0\n")
    refused(recs, tmp_path, rf"record 0 at byte [\d,]+: its label is {label:g}: expected a whole number")


def test_folders_that_are_no_raw_data(tmp_path):
    (tmp_path / "raw").mkdir()
    refused(tmp_path / "raw", tmp_path, "expected train/ and val/ with a folder of JPEGs for each class")
    for part in ("train", "val"):
        (tmp_path / "raw" / part).mkdir()
    refused(tmp_path / "raw", tmp_path, "train has no folders: expected one for each class")
    refused(tmp_path / "nowhere", tmp_path, "there is no such folder")
    with pytest.raises(UserError, match="--raw and --out name the same folder"):
        prepare(tmp_path / "raw", tmp_path / "raw")


def test_images_that_are_there_twice(folders, tmp_path):
    """One is nothing (ImageNet has some); a whole class is, and so are evaluation images among the training ones."""
    out = tmp_path / "out"
    for i in range(10):
        (folders / "train" / "ant" / f"copy{i}.jpg").write_bytes(resnet_images.jpeg(5 * i))
    refused(folders, tmp_path, "train: 10 of 57 images are there twice")
    for path in folders.glob("train/ant/copy*"):
        path.unlink()
    (known,) = (folders / "val" / "ant").glob("*57.JPEG")
    shutil.copy(known, folders / "train" / "ant")
    refused(folders, tmp_path, "1 of 13 evaluation images are among the training images")
    (folders / "train" / "ant" / known.name).unlink()
    prepare(folders, out)


def test_verify_finds_what_changed(folders, tmp_path):
    out = tmp_path / "out"
    meta = prepare(folders, out)
    path = out / "train-00000-of-00001"
    whole = path.read_bytes()
    entry = Images(out, meta, TRAIN).index[3]
    damaged = bytearray(whole)
    damaged[entry["offset"] + 40] ^= 8
    path.write_bytes(damaged)
    with pytest.raises(
        UserError, match=r"its checksum isn't the one in meta.json(.|\n)*train 3, isn't the one that was"
    ):
        verify(out)
    path.write_bytes(whole)
    saved = json.loads((out / "meta.json").read_text())
    saved["train_classes"][0] += 1
    (out / "meta.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match=r"images of each class aren't as many as meta.json says"):
        verify(out)
    (out / "meta.json").write_text("{}")
    with pytest.raises(UserError, match=r"not a meta.json of this program"):
        verify(out)
    write_meta(out, meta)
    verify(out, workers=2)


# Real images ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="the small real data sets aren't beside the checkout")
@pytest.mark.parametrize(
    ("name", "classes", "train", "validation"), [("cifar10", 10, 2000, 1000), ("pets", 37, 74, 37)]
)
def test_real_photographs(tmp_path, name, classes, train, validation):
    meta = prepare(SHARED / name, tmp_path / "out")
    assert (meta.classes, meta.train_samples, meta.eval_samples) == (classes, train, validation)
    verify(tmp_path / "out")
    originals = sorted(path.read_bytes() for path in (SHARED / name / "train").rglob("*.jpg"))
    assert sorted(data for _, data in content(tmp_path / "out")[0]) == originals


def test_a_png_of_a_class_folder_needs_no_jpeg_name(folders, tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 8)).save(buffer, "PNG")
    (folders / "val" / "cat" / "x.png").write_bytes(buffer.getvalue())
    assert prepare(folders, tmp_path / "out").eval_samples == M + 1
