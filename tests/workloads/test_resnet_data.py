"""Batches: every image once an epoch, the same at any start and on any number of ranks, and equal by any reader."""

import os
from collections import Counter

import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason="needs Pillow: pip install 'mlperf_fast[resnet]'")

import resnet_images

from mlperf_fast.data import dali as dali_package
from mlperf_fast.data import jpeg, recordio
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.resnet import augment, dali, data, workers
from mlperf_fast.workloads.resnet.augment import Form
from mlperf_fast.workloads.resnet.dataset import EVAL, TRAIN, Images, read_meta
from mlperf_fast.workloads.resnet.prepare import prepare

N, M = resnet_images.TRAIN, resnet_images.EVAL
SMALL = Form(size=16, resize=20, dtype="uint8")


def has_dali():
    try:
        return bool(dali_package.import_dali())
    except UserError:
        return False


needs_dali = pytest.mark.skipif(not has_dali(), reason="needs DALI: pip install 'mlperf_fast[dali]'")
READERS = ["workers", pytest.param("dali", marks=needs_dali)]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    return folder, resnet_images.write_folders(folder)


@pytest.fixture(scope="module")
def folder(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "set"
    prepare(raw[0], out)
    return out


@pytest.fixture(scope="module")
def meta(folder):
    return read_meta(folder)


def train(folder, meta, form=SMALL, **options):
    with data.train_batches(folder, meta, form, **{"batch_size": 8, "seed": 1, "steps": 12, **options}) as source:
        return list(source)


def evaluation(folder, meta, form=SMALL, **options):
    with data.eval_batches(folder, meta, form, **{"batch_size": 8, **options}) as source:
        return list(source)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# Order ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", READERS)
def test_an_epoch_has_each_image_once_and_is_filled_up_from_its_beginning(folder, meta, raw, reader):
    batches = train(folder, meta, reader=reader, steps=18)
    assert data.steps_per_epoch(N, 8) == 6
    order = [number for batch in batches for number in resnet_images.numbers(batch.images)]
    labels = [label for batch in batches for label in batch.labels.tolist()]
    assert labels == [raw[1][number] for number in order]
    epochs = [order[48 * i : 48 * (i + 1)] for i in range(3)]
    for epoch in epochs:
        assert sorted(epoch[:N]) == list(range(N))
        assert epoch[N:] == epoch[: 48 - N]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert resnet_images.numbers(train(folder, meta, seed=2)[0].images) != order[:8]


def test_a_batch_larger_than_the_set_goes_round(folder, meta):
    (batch,) = train(folder, meta, batch_size=2 * N + 5, steps=1)
    counts = Counter(resnet_images.numbers(batch.images))
    assert set(counts) == set(range(N))
    assert set(counts.values()) == {2, 3}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("start", [0, 1, 5, 6, 7, 12])
def test_it_goes_on_at_any_step(folder, meta, start, reader):
    whole = train(folder, meta, reader=reader)
    rest = train(folder, meta, start_step=start, reader=reader)
    assert len(rest) == 12 - start
    assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_share_each_batch(folder, meta, world):
    whole = train(folder, meta)
    ranks = [train(folder, meta, rank=rank, world=world) for rank in range(world)]
    for step, batch in enumerate(whole):
        parts = [rank[step] for rank in ranks]
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
    with pytest.raises(UserError, match="batch size 8 must be a positive multiple of the 3 processes"):
        train(folder, meta, world=3)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("world", "batch_size"), [(1, 8), (1, 13), (1, 50), (2, 4), (3, 3), (8, 16), (16, 16)])
def test_evaluation_counts_each_image_once_on_any_number_of_ranks(folder, meta, raw, world, batch_size, reader):
    found, sizes = Counter(), set()
    for rank in range(world):
        batches = evaluation(folder, meta, reader=reader, batch_size=batch_size, rank=rank, world=world)
        sizes.add(len(batches))
        for batch, valid in batches:
            assert batch.images.shape == (batch_size // world, 16, 16, 3)
            seen = resnet_images.numbers(batch.images)[:valid]
            assert batch.labels[:valid].tolist() == [raw[1][number] for number in seen]
            found.update(seen)
    assert found == Counter(range(N, N + M))
    assert len(sizes) == 1
    with pytest.raises(UserError, match="evaluation batch size 7 must be a positive multiple"):
        evaluation(folder, meta, batch_size=7, world=2)


def test_the_number_of_threads_changes_nothing(folder, meta):
    form = Form(size=16)
    assert all(same(a, b) for a, b in zip(train(folder, meta, form, threads=1), train(folder, meta, form, threads=5)))  # noqa: B905


@pytest.mark.parametrize("cache", [1_000_000, 100_000, 1])
def test_kept_pixels_change_no_image(folder, meta, cache):
    images = Images(folder, meta, TRAIN)
    numbers = np.arange(N)
    plans = [augment.train_plan(numbers, images.index["height"], images.index["width"], SMALL, 1, e) for e in range(3)]
    decoded = workers.Decoded(images, cache)
    for plan in plans:
        plain, kept = np.zeros((2, N, 16, 16, 3), np.uint8)
        workers.fill(workers.Decoded(images, 0), plan, range(N), SMALL, plain)
        workers.fill(decoded, plan, range(N), SMALL, kept)
        assert np.array_equal(plain, kept)
    size = sum(pixels.nbytes for pixels in decoded.kept.values())
    assert size <= cache
    assert len(decoded.kept) == {1_000_000: N, 1: 0}.get(cache, len(decoded.kept))
    assert 0 < len(decoded.kept) < N or cache != 100_000
    form = Form(size=16)
    assert all(
        same(a, b) for a, b in zip(train(folder, meta, form), train(folder, meta, form, cache_mb=1), strict=True)
    )


def test_an_image_that_is_kept_is_not_read_again(folder, meta, monkeypatch):
    read, count = Images.read, Counter()
    monkeypatch.setattr(Images, "read", lambda self, i: count.update([i]) or read(self, i))
    train(folder, meta, steps=18, cache_mb=1, threads=1)
    assert sum(count.values()) < 1.5 * N
    with pytest.raises(UserError, match="cache_mb is for the reader `workers`"):
        train(folder, meta, reader="dali", cache_mb=1)


@pytest.mark.parametrize(
    ("usable", "cores", "environment", "threads"),
    [
        (16, 16, {}, 16),
        (16, 16, {"WORLD_SIZE": "16", "RANK": "3", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8"}, 2),
        (4, 16, {"WORLD_SIZE": "16", "RANK": "3", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}, 4),
        (2, 2, {"WORLD_SIZE": "8", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "8"}, 1),
    ],
)
def test_threads_are_a_ranks_share_of_the_cores(monkeypatch, usable, cores, environment, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(usable)))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert data.default_threads() == threads


@pytest.mark.parametrize("reader", READERS)
def test_leaving_early_ends_the_threads(folder, meta, reader):
    with data.train_batches(folder, meta, SMALL, reader=reader, batch_size=8, seed=1, steps=10_000) as source:
        first = next(iter(source))
        assert len(source) == 10_000
    assert same(first, train(folder, meta, reader=reader)[0])


# Crops ----------------------------------------------------------------------------------------------------------------


def plan_of(count, height, width, form=Form(), seed=1, epoch=0):  # noqa: B008
    return augment.train_plan(np.arange(count), np.full(count, height), np.full(count, width), form, seed, epoch)


def test_crops_are_within_the_image_and_of_the_benchmarks_sizes():
    n, h, w = 20_000, 375, 500
    plan = plan_of(n, h, w)
    top, left, height, width = plan.windows.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= h).all()
    assert (left + width <= w).all()
    share, aspect = height * width / (h * w), width / height
    assert 0.049 < share.min() < 0.06
    assert 0.95 < share.max() <= 1
    assert 0.745 < aspect.min() < 0.76
    assert 1.32 < aspect.max() < 1.345
    # Small crops always fit, so among them area and log-aspect are as drawn: uniform.
    small = share < 0.3
    assert abs(np.mean(share[small]) - 0.175) < 0.003
    assert abs(np.mean(np.log(aspect[small]))) < 0.01
    assert abs(plan.mirror.mean() - 0.5) < 0.015
    # Where a crop lies is uniform over the places that it has.
    for start, size, whole in ((top, height, h), (left, width, w)):
        place = start[small] / (whole - size[small])
        assert abs(place.mean() - 0.5) < 0.01
        assert abs(place.var() - 1 / 12) < 0.01
    assert np.array_equal(plan.boxes[:, 2:], plan.windows[:, 2:])


def test_a_long_image_gives_its_largest_central_part():
    form = Form(area=(1.0, 1.0), aspect=(1.0, 1.0))
    for h, w, wanted in ((10, 300, (0, 145, 10, 10)), (301, 20, (140, 0, 20, 20)), (1, 1, (0, 0, 1, 1))):
        assert plan_of(3, h, w, form).windows.tolist() == [list(wanted)] * 3


def test_a_crop_depends_on_seed_epoch_and_number_alone():
    whole = plan_of(100, 80, 90)
    some = np.array([70, 3, 3, 99])
    part = augment.train_plan(some, np.full(4, 80), np.full(4, 90), Form(), 1, 0)
    assert np.array_equal(part.windows, whole.windows[some])
    assert np.array_equal(part.mirror, whole.mirror[some])
    for other in (plan_of(100, 80, 90, seed=2), plan_of(100, 80, 90, epoch=1)):
        assert (other.windows != whole.windows).any(axis=1).mean() > 0.95
    # These must never change: a run that resumes relies on them.
    assert whole.windows[:2].tolist() == [[27, 14, 35, 40], [0, 9, 66, 71]]


def test_flips_can_be_turned_off():
    assert not plan_of(500, 50, 50, Form(flip=0.0)).mirror.any()
    assert plan_of(500, 50, 50, Form(flip=1.0)).mirror.all()


@pytest.mark.parametrize(
    ("height", "width", "start", "side"),
    [
        (375, 500, (16 * 375 / 256, 58 * 500 / 341), (224 * 375 / 256, 224 * 500 / 341)),  # 500 * 256 / 375 = 341.3
        (500, 333, (80 * 500 / 384, 16 * 333 / 256), (224 * 500 / 384, 224 * 333 / 256)),
        (256, 256, (16, 16), (224, 224)),
        (1, 1, (16 / 256, 16 / 256), (224 / 256, 224 / 256)),
    ],
)
@pytest.mark.parametrize("antialias", [False, True])
def test_evaluation_takes_the_centre(height, width, start, side, antialias):
    plan = augment.eval_plan(np.arange(1), np.array([height]), np.array([width]), Form(antialias=antialias), 1)
    window, box = plan.windows[0], plan.boxes[0]
    assert np.allclose(window[:2] + box[:2], start)
    assert np.allclose(box[2:], side)
    assert not plan.mirror.any()
    assert (window >= 0).all()
    assert (window[:2] + window[2:] <= (height, width)).all()


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(375, 500), (301, 90), (40, 64)])
def test_evaluation_equals_resizing_the_whole_and_cutting(size, antialias):
    form = Form(size=56, resize=64, antialias=antialias)
    picture = resnet_images.textured(1, *size)
    plan = augment.eval_plan(np.arange(1), np.array([size[0]]), np.array([size[1]]), form, 1)
    out = np.empty((56, 56, 3), np.uint8)
    jpeg.resized(picture, plan.windows[0].tolist(), jpeg.Box(*plan.boxes[0]), False, out, antialias)
    pixels = np.asarray(jpeg.decode(picture))
    new = [side * 64 // min(size) for side in size]
    whole = np.empty((*new, 3), np.uint8)
    jpeg.resample(pixels, jpeg.Box(0, 0, *size), False, whole, antialias)
    top, left = (new[0] - 56) // 2, (new[1] - 56) // 2
    assert np.abs(out.astype(int) - whole[top : top + 56, left : left + 56]).max() <= 1


# Readers --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A data set of larger images with texture."""
    raw = tmp_path_factory.mktemp("photos")
    for part, seeds in (("train", range(6)), ("val", range(6, 10))):
        for seed in seeds:
            place = raw / part / "ab"[seed % 2]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{seed}.jpg").write_bytes(resnet_images.textured(seed, 120 + 31 * seed, 200 + 17 * seed))
    prepare(raw, raw.parent / "photos_set")
    return raw.parent / "photos_set"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["uint8", "float16"])
@pytest.mark.parametrize("reader", READERS)
def test_on_a_gpu_the_images_are_the_same(photos, dtype, reader):
    """But for what another JPEG decoder rounds otherwise."""
    meta, form = read_meta(photos), Form(size=64, resize=72, dtype=dtype)
    here = train(photos, meta, form, batch_size=3, steps=6)
    there = train(photos, meta, form, batch_size=3, steps=6, reader=reader, device="cuda")
    for one, other in zip(here, there, strict=True):
        assert other.images.is_cuda
        assert other.labels.is_cuda
        assert torch.equal(one.labels, other.labels.cpu())
        difference = (one.images.float() - other.images.cpu().float()).abs()
        assert difference.mean() < (2 if dtype == "uint8" else 2 / 57)


@needs_dali
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_dalis_gpu_pipeline_without_a_gpu_says_so(photos):
    images = Images(photos, read_meta(photos), TRAIN)
    plan = plan_of(2, 100, 100)
    with pytest.raises(UserError, match="DALI can't make a pipeline on cuda:"):
        next(dali.read(images, [plan], Form(size=8), 1, torch.device("cuda"), 2))


@needs_dali
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16"])
@pytest.mark.parametrize("antialias", [False, True])
def test_both_readers_give_the_same_images(photos, dtype, antialias):
    meta, form = read_meta(photos), Form(size=64, resize=72, dtype=dtype, antialias=antialias)
    ours, theirs = (train(photos, meta, form, reader=reader, batch_size=3, steps=6) for reader in ("workers", "dali"))
    ours += [batch for batch, _ in evaluation(photos, meta, form, batch_size=4)]
    theirs += [batch for batch, _ in evaluation(photos, meta, form, batch_size=4, reader="dali")]
    level = 1 if dtype == "uint8" else 1 / 57
    for one, other in zip(ours, theirs, strict=True):
        assert one.images.dtype == other.images.dtype == augment.DTYPES[dtype]
        assert torch.equal(one.labels, other.labels)
        difference = (one.images.float() - other.images.float()).abs() / level
        assert difference[:, 1:-1, 1:-1].max() < 1.1
        # With antialiasing the triangle reaches beyond the image at its border: DALI repeats the last pixel there,
        # Pillow and we leave out what isn't.
        assert difference.max() < (12 if antialias else 1.1)
        assert difference.mean() < (0.15 if antialias else 0.01)


ODD = {
    "one pixel": resnet_images.jpeg(9, 1, 1),
    "one row": resnet_images.jpeg(9, 1, 300),
    "one column": resnet_images.jpeg(9, 200, 1),
    "grey": resnet_images.jpeg(40, mode="L"),
    "CMYK": resnet_images.jpeg(9, mode="CMYK", quality=100),
    "PNG": resnet_images.png(9),
    "progressive": resnet_images.jpeg(9, progressive=True),
    "lies on its side": resnet_images.jpeg(
        9, 40, 90, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    ),
    "holds RecordIO's magic number": (
        lambda data: data[:2] + b"\xff\xfe\x00\x20--" + b"\x0a\x23\xd7\xce" * 7 + data[2:]
    )(resnet_images.textured(3, 64, 80)),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("reader", READERS)
def test_odd_images_of_packed_files(tmp_path, name, reader):
    """RecordIO in which every image is odd, as packed elsewhere: nothing was converted."""
    raw = tmp_path / "raw"
    raw.mkdir()
    count = 6
    for part, first in (("train", 0), ("val", count)):
        tail = [bytes([first + i]) for i in range(count)]  # behind the image's end: no two are equal
        images = [(i, i % 2, ODD[name] + tail[i]) for i in range(count)]
        recordio.write(raw / f"{part}.rec", raw / f"{part}.idx", images)
    meta = prepare(raw, tmp_path / "out")
    form = Form(size=16, resize=20, dtype="uint8")
    batches = train(tmp_path / "out", meta, form, reader=reader, batch_size=3, steps=6)
    batches += [batch for batch, _ in evaluation(tmp_path / "out", meta, form, reader=reader, batch_size=2)]
    plan = augment.eval_plan(np.arange(1), *np.array(jpeg.header(ODD[name])[:2])[:, None], form, 1)
    wanted = np.empty((16, 16, 3), np.uint8)
    jpeg.resized(ODD[name], plan.windows[0].tolist(), jpeg.Box(*plan.boxes[0]), False, wanted)
    for image in batches[-1].images.numpy():
        assert np.abs(image.astype(int) - wanted).max() <= 3


def test_float_images_are_normalised_ones(photos):
    meta = read_meta(photos)
    (raw,), (real,), (half,) = (
        train(photos, meta, Form(size=32, dtype=dtype), batch_size=6, steps=1)
        for dtype in ("uint8", "float32", "float16")
    )
    wanted = (raw.images.double() - torch.tensor(augment.MEAN)) / torch.tensor(augment.STD)
    assert (real.images - wanted).abs().max() < 1e-6
    assert (half.images - wanted).abs().max() < 2e-3
    assert (augment.normalised(raw.images, Form()) - wanted).abs().max() < 1e-6
    assert real.images.permute(0, 3, 1, 2).is_contiguous(memory_format=torch.channels_last)


def test_synthetic_needs_no_files(meta):
    batches = train("nowhere", meta, reader="synthetic", steps=3)
    assert len(batches) == 3
    assert batches[0].images.shape == (8, 16, 16, 3)
    assert batches[0].images.dtype == torch.uint8
    assert 0 <= batches[0].labels.min() <= batches[0].labels.max() < len(resnet_images.CLASSES)
    assert sum(valid for _, valid in evaluation("nowhere", meta, reader="synthetic")) == M
    with pytest.raises(UserError, match="there is no reader 'ffcv': choose one of workers, dali, synthetic"):
        train("nowhere", meta, reader="ffcv")


# Faults ---------------------------------------------------------------------------------------------------------------


def damaged_copy(folder, out, change):
    """The data set with some bytes of the first training image changed."""
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    meta = read_meta(out)
    entry = Images(out, meta, TRAIN).index[7]
    path = out / next(iter(meta.train))
    content = bytearray(path.read_bytes())
    change(content, int(entry["offset"]), int(entry["size"]))
    path.write_bytes(content)
    return out


@pytest.mark.parametrize("reader", READERS)
def test_an_image_that_changed_since_it_was_prepared(folder, meta, tmp_path, reader):
    def change(content, offset, size):
        content[offset + size // 2] ^= 1

    out = damaged_copy(folder, tmp_path / "copy", change)
    with pytest.raises(UserError, match=r"train-00000-of-00001: the image at byte [\d,]+, train 7, isn't the one"):
        train(out, meta, reader=reader)


@pytest.mark.parametrize("reader", READERS)
def test_an_image_that_cannot_be_decoded_is_named(folder, meta, monkeypatch, reader):
    read = Images.read
    monkeypatch.setattr(Images, "read", lambda self, i: read(self, i)[:200] if i == 7 else read(self, i))
    with pytest.raises(
        UserError, match=r"train-00000-of-00001: the image at byte [\d,]+, train 7, a (damaged|truncated) JPEG"
    ):
        train(folder, meta, reader=reader)


def test_a_file_that_was_cut_or_is_missing(folder, tmp_path):
    def change(content, offset, size):
        del content[-1]

    out = damaged_copy(folder, tmp_path / "copy", change)
    with pytest.raises(UserError, match=r"has [\d,]+ bytes, but meta.json says [\d,]+: the file was cut or replaced"):
        read_meta(out)
    (out / "validation-00000-of-00001").unlink()
    (out / "train-00000-of-00001").write_bytes((folder / "train-00000-of-00001").read_bytes())
    with pytest.raises(UserError, match="validation-00000-of-00001 is missing"):
        read_meta(out)
    with pytest.raises(UserError, match="there is no such data set folder"):
        read_meta(tmp_path / "nowhere")


def test_the_index_of_another_part(folder, meta, tmp_path):
    out = damaged_copy(folder, tmp_path / "copy", lambda *_: None)
    (out / "train.npy").write_bytes((out / "validation.npy").read_bytes())
    with pytest.raises(UserError, match=r"train.npy isn't the index of this data set"):
        train(out, meta)
    (out / "train.npy").unlink()
    with pytest.raises(UserError, match=r"train.npy: no readable index"):
        Images(out, meta, TRAIN)
    assert len(Images(out, meta, EVAL)) == M


def test_dali_that_is_missing_says_which_package(folder, meta, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.startswith("nvidia.dali")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    for version, message in (
        (None, "install it with `pip install nvidia-dali-cuda130` .*this torch is a CPU build"),
        ("12.8", "this torch is built for CUDA 12.8: `pip install nvidia-dali-cuda120`"),
        ("13.0", "this torch is built for CUDA 13.0: `pip install nvidia-dali-cuda130`"),
        ("14.1", "there is none for this torch's CUDA 14.1: choose the reader `workers`"),
    ):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(UserError, match=message):
            train(folder, meta, reader="dali")
