"""Decoding of whole, odd and damaged JPEGs, and resizing against the rule in float64 and against Pillow."""

import io

import numpy as np
import pytest

pytest.importorskip("PIL", reason="needs Pillow: pip install 'mlperf_fast[resnet]'")

from PIL import Image

from mlperf_fast import _C
from mlperf_fast.data import jpeg
from mlperf_fast.data.jpeg import BadImage, Box


def picture(height, width, seed=0):
    """Smooth colours with some grey noise, uint8 [h, w, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / (9 + c) + c) * np.cos(y / (7 + c)) for c in range(3)]
    return np.clip(np.stack(waves, -1) + rng.normal(0, 8, (height, width, 1)), 0, 255).astype(np.uint8)


def saved(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(height=48, width=64, mode="RGB", **options):
    return saved(Image.fromarray(picture(height, width)).convert(mode), **options)


# Decoding -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30, "subsampling": 0}])
@pytest.mark.parametrize("size", [(48, 64), (1, 1), (1, 300), (17, 3)])
def test_any_jpeg_becomes_rgb_of_its_size(mode, options, size):
    data = photo(*size, mode, **options)
    assert jpeg.header(data) == (*size, {"RGB": 3, "L": 1, "CMYK": 4}[mode])
    image = jpeg.decode(data)
    assert (image.mode, image.height, image.width) == ("RGB", *size)
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(np.asarray(image), wanted)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA"])
def test_a_png_is_decoded_too(mode):
    image = Image.fromarray(picture(30, 41)).convert(mode)
    data = saved(image, "PNG")
    assert jpeg.header(data) == (30, 41, 1 if mode in ("L", "LA") else 3)
    assert np.array_equal(np.asarray(jpeg.decode(data)), np.asarray(image.convert("RGB")))


def test_an_exif_turn_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    assert np.asarray(jpeg.decode(photo(exif=exif))).shape == (48, 64, 3)
    assert np.array_equal(np.asarray(jpeg.decode(photo(exif=exif))), np.asarray(jpeg.decode(photo())))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no JPEG: it is empty"),
        (jpeg.PNG, "a damaged PNG: it has no header"),
        (jpeg.PNG + bytes(4) + b"IHDR" + bytes(20), "a damaged PNG: 0 x 0 pixels"),
        (jpeg.PNG + bytes(4) + b"IHDR" + b"\0\1\0\0" * 2 + bytes(20), "65,536 x 65,536 pixels, more than"),
        (b"GIF89a" + bytes(50), r"no JPEG: it begins with b'GIF89a"),
        (b"\xff\xd8", "a truncated JPEG"),
        (photo()[:100], "a truncated JPEG|a damaged JPEG"),
        (photo()[:-400], "a damaged JPEG: .*truncated"),
        (photo(48, 64)[:2] + b"text" + photo()[2:], "a damaged JPEG: no marker at byte 2"),
    ],
)
def test_what_is_no_image_says_so(data, message):
    with pytest.raises(BadImage, match=message):
        jpeg.decode(data)


def with_size(data, height, width):
    """The same file whose header claims another size."""
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[at + 9 :]


def test_a_huge_image_is_refused_before_it_takes_memory():
    with pytest.raises(BadImage, match="60,000 x 60,000 pixels, more than the 89,478,485 that are decoded"):
        jpeg.decode(with_size(photo(), 60_000, 60_000))
    with pytest.raises(BadImage, match="0 x 64 pixels"):
        jpeg.header(with_size(photo(), 0, 64))


def test_random_damage_gives_an_image_of_the_told_size_or_one_kind_of_error():
    rng = np.random.default_rng(0)
    whole = [photo(), photo(progressive=True), photo(mode="CMYK"), photo(mode="L"), photo(dpi=(72, 72)),
             saved(Image.fromarray(picture(20, 20)), "PNG")]  # fmt: skip
    outcomes = set()
    for i in range(900):
        data = bytearray(whole[i % len(whole)])
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(0, min(len(data), 700))] = rng.integers(0, 256)
        if i % 5 == 0:
            del data[rng.integers(0, len(data)) :]
        try:
            converted, size = jpeg.packed(bytes(data))
            assert np.asarray(jpeg.decode(converted)).shape == (size.height, size.width, 3)
            outcomes.add("image")
        except BadImage:
            outcomes.add("error")
    assert outcomes == {"image", "error"}


def test_two_sizes_in_one_file():
    data = photo()
    at = data.index(b"\xff\xc0")
    frame = data[at : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
    with pytest.raises(BadImage, match="it tells two sizes"):
        jpeg.decode(data[:at] + with_size(frame, 40, 30) + data[at:])


def test_packing_changes_only_what_the_reference_changes():
    for data in (photo(), photo(mode="L"), photo(progressive=True)):
        assert jpeg.packed(data)[0] is data
    for data in (photo(mode="CMYK", quality=100), saved(Image.fromarray(picture(48, 64)), "PNG")):
        converted, size = jpeg.packed(data)
        assert size == (48, 64, 3) == jpeg.header(converted)
        wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=int)
        assert np.abs(np.asarray(jpeg.decode(converted), dtype=int) - wanted).mean() < 3
    with pytest.raises(BadImage, match="no JPEG: it begins with b'RIFF"):
        jpeg.packed(saved(Image.fromarray(picture(8, 8)), "WEBP"))
    with pytest.raises(BadImage, match="a damaged PNG"):
        jpeg.packed(saved(Image.fromarray(picture(48, 64)), "PNG")[:-100])


# Resizing -------------------------------------------------------------------------------------------------------------


def weights(size, begin, length, out, antialias):
    """float64 [out, size]: the rule of csrc/resample.h for one axis."""
    step = length / out
    reach = max(step, 1.0) if antialias else 1.0
    centre = begin + (np.arange(out) + 0.5) * step
    w = np.maximum(0, 1 - np.abs(np.arange(size) + 0.5 - centre[:, None]) / reach)
    return w / w.sum(axis=1, keepdims=True)


def reference(pixels, box, mirror, size, antialias):
    down = weights(pixels.shape[0], box.top, box.height, size[0], antialias)
    along = weights(pixels.shape[1], box.left, box.width, size[1], antialias)
    values = np.einsum("yh,xw,hwc->yxc", down, along, pixels.astype(np.float64), optimize=True)
    return values[:, ::-1] if mirror else values


BOXES = [
    ((40, 50), Box(0, 0, 40, 50), (24, 24)),
    ((40, 50), Box(3.25, 7.5, 20.5, 31.75), (24, 32)),
    ((40, 50), Box(30, 40, 10, 10), (33, 7)),
    ((301, 200), Box(0, 0, 301, 200), (17, 19)),
    ((1, 1), Box(0, 0, 1, 1), (8, 8)),
    ((1, 90), Box(0, 10, 1, 0.5), (5, 16)),
    ((224, 224), Box(0, 0, 224, 224), (224, 224)),
]


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("size", "box", "out"), BOXES)
def test_resizing_follows_the_rule(size, box, out, mirror, antialias, monkeypatch):
    pixels = picture(*size)
    wanted = reference(pixels, box, mirror, out, antialias)
    mean, std = (123.68, 116.28, 103.53), (58.4, 57.12, 57.38)
    for level in _C.supported_levels():
        monkeypatch.setattr(jpeg, "_C", _C.load(level))
        whole = np.full((*out, 3), 77, np.uint8)
        jpeg.resample(pixels, box, mirror, whole, antialias)
        # A float32 sum may lie on the other side of a half.
        assert np.abs(whole - wanted).max() <= 0.5 + 1e-3
        real = np.full((*out, 3), np.nan, np.float32)
        jpeg.resample(pixels, box, mirror, real, antialias, mean, std)
        np.testing.assert_allclose(real, (whole - np.float32(mean)) / np.float32(std), rtol=1e-5, atol=1e-5)


def test_a_fourth_byte_and_rows_that_lie_apart_change_nothing():
    pixels = picture(60, 70)
    four = np.concatenate([pixels, np.full((60, 70, 1), 255, np.uint8)], axis=2)
    for antialias in (False, True):
        wanted, out = np.zeros((2, 17, 19, 3), np.float32)
        jpeg.resample(np.ascontiguousarray(pixels[11:51, 20:66]), Box(1, 2, 33, 44), True, wanted, antialias)
        for part in (pixels[11:51, 20:66], four[11:51, 20:66]):
            jpeg.resample(part, Box(1, 2, 33, 44), True, out, antialias)
            assert np.array_equal(out, wanted)


@pytest.mark.parametrize(("height", "width", "kept"), [(37, 51, 4), (1, 1, 4), (2100, 2100, 3)])
def test_an_images_own_memory(height, width, kept):
    """It outlives the image's name; above 16 MB it has several pieces, and is copied."""
    image = jpeg.decode(photo(height, width))
    wanted = np.asarray(image)
    pixels = jpeg.pixels_of(image)
    assert pixels.shape == (height, width, kept)
    del image
    others = [jpeg.decode(photo(height, width, quality=5)) for _ in range(3)]
    assert np.array_equal(pixels[..., :3], wanted)
    assert others
    if kept == 4:
        with pytest.raises(ValueError, match="read-only"):
            pixels[0, 0, 0] = 1


@pytest.mark.parametrize("antialias", [False, True])
def test_resizing_is_pillows(antialias):
    pixels = picture(211, 333)
    image = Image.fromarray(pixels)
    if antialias:
        wanted = image.resize((64, 48), Image.Resampling.BILINEAR)
    else:
        wanted = image.transform((64, 48), Image.Transform.EXTENT, (0, 0, 333, 211), Image.Resampling.BILINEAR)
    out = np.empty((48, 64, 3), np.uint8)
    jpeg.resample(pixels, Box(0, 0, 211, 333), False, out, antialias)
    assert np.abs(out.astype(int) - np.asarray(wanted)).max() <= 1


def test_a_window_cuts_before_it_resizes():
    data = photo(60, 80)
    out = np.empty((32, 32, 3), np.uint8)
    jpeg.resized(data, (10, 20, 31, 17), Box(0, 0, 31, 17), False, out)
    cut = np.ascontiguousarray(np.asarray(jpeg.decode(data))[10:41, 20:37])
    assert np.abs(out - reference(cut, Box(0, 0, 31, 17), False, (32, 32), False)).max() < 0.51


@pytest.mark.parametrize(
    ("box", "message"),
    [(Box(0, 0, 41, 50), "box"), (Box(-1, 0, 5, 5), "box"), (Box(0, 0, 0, 5), "box"), (Box(0, np.nan, 5, 5), "box")],
)
def test_boxes_outside_are_refused(box, message):
    with pytest.raises(ValueError, match=message):
        jpeg.resample(picture(40, 50), box, False, np.empty((8, 8, 3), np.uint8))


def test_arrays_of_other_kinds_are_refused():
    good, box = picture(8, 8), Box(0, 0, 8, 8)
    for pixels, out in (
        (good[:, ::2], np.empty((4, 4, 3), np.uint8)),
        (good.astype(np.float32), np.empty((4, 4, 3), np.uint8)),
        (good, np.empty((4, 4, 3), np.float64)),
        (good, np.empty((4, 4), np.uint8)),
    ):
        with pytest.raises(ValueError, match="must be"):
            jpeg.resample(pixels, box, False, out)
