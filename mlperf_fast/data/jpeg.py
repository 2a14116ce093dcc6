"""JPEG bytes to RGB pixels, with Pillow, and a part of them to a network's input.

As the benchmark's reference decodes: the pixels as stored, with no turn that an EXIF tag asks for; greyscale becomes
RGB by repeating; CMYK is converted. One of ImageNet's files is a PNG, which RecordIO files made by im2rec still hold:
that is decoded too. Pillow releases Python's lock while it decodes, so threads decode in parallel.
"""

import ctypes
import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mlperf_fast import _C
from mlperf_fast.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

# What Pillow itself takes for an attack; ImageNet's largest has 38 million.
LARGEST_PIXELS = 89_478_485
QUALITY = 100  # of what is converted on packing, as the reference's packing does
COLOURS = {1, 3, 4}  # greyscale, RGB, CMYK
PNG = b"\x89PNG\r\n\x1a\n"
NO_SOF = {0xC4, 0xC8, 0xCC}  # markers among 0xC0 … 0xCF that begin no frame: tables and an extension


class BadImage(ValueError):
    """Why some bytes are no image that can be trained on. The caller adds which."""


class Header(NamedTuple):
    height: int
    width: int
    components: int  # 1 greyscale, 3 colour, 4 CMYK


class Box(NamedTuple):
    """A part of an image in pixels; fractions are allowed in what is resampled, not in what is decoded."""

    top: float
    left: float
    height: float
    width: float


def pillow():
    """Pillow's Image module; UserError where it is missing."""
    try:
        import PIL.Image
    except ImportError:
        raise UserError("JPEGs need the package Pillow: install it with `pip install 'mlperf_fast[resnet]'`") from None
    return PIL.Image


def header(data: bytes | memoryview) -> Header:
    """Size and number of colours, from the header alone. BadImage for what is neither JPEG nor PNG."""
    if bytes(data[:8]) == PNG:
        if len(data) < 26 or bytes(data[12:16]) != b"IHDR":
            raise BadImage("a damaged PNG: it has no header")
        width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
        return checked("PNG", height, width, 1 if data[25] in (0, 4) else 3)
    if bytes(data[:2]) != b"\xff\xd8":
        raise BadImage(f"no JPEG: it begins with {bytes(data[:8])!r}" if len(data) else "no JPEG: it is empty")
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise BadImage(f"a damaged JPEG: no marker at byte {at:,}")
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in NO_SOF:
            frame = bytes(data[at + 5 : at + 10])
            if len(frame) < 5:
                break
            return checked("JPEG", frame[0] << 8 | frame[1], frame[2] << 8 | frame[3], frame[4])
        else:
            at += 2 + (data[at + 2] << 8 | data[at + 3])
    raise BadImage("a truncated JPEG: it ends before its size is said")


def checked(kind: str, height: int, width: int, components: int) -> Header:
    if not height or not width or components not in COLOURS:
        raise BadImage(f"a damaged {kind}: {height} x {width} pixels of {components} colours")
    if height * width > LARGEST_PIXELS:
        raise BadImage(f"{height:,} x {width:,} pixels, more than the {LARGEST_PIXELS:,} that are decoded")
    return Header(height, width, components)


def decode(data: bytes | memoryview) -> "Image":
    """All pixels, in mode RGB. BadImage for what can't be decoded whole."""
    size = header(data)
    kind = "PNG" if bytes(data[:8]) == PNG else "JPEG"
    image_module = pillow()
    try:
        image = image_module.open(io.BytesIO(data), formats=(kind,))
        if (image.height, image.width) != size[:2]:
            raise BadImage(f"a damaged {kind}: it tells two sizes")
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")
    except BadImage:
        raise
    except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
        raise BadImage(f"a damaged {kind}: {error}") from None


def resized(
    data: bytes | memoryview, window: tuple[int, int, int, int], box: Box, mirror: bool, out: np.ndarray,
    antialias: bool = False, mean: tuple[float, ...] = (0, 0, 0), std: tuple[float, ...] = (1, 1, 1),
) -> None:  # fmt: skip
    """Decodes and fills `out`, uint8 or float32 [height, width, 3], by `csrc/resample.h`'s rule.

    window: top, left, height, width of the image's pixels that count. box: the part of the window that is resized.
    """
    top, left, height, width = window
    pixels = pixels_of(decode(data))
    resample(pixels[top : top + height, left : left + width], box, mirror, out, antialias, mean, std)


class _Array(ctypes.Structure):
    """Arrow's C data interface: a column of values."""


_Array._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_Array))),
]
_address = ctypes.pythonapi.PyCapsule_GetPointer
_address.restype, _address.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


class _Borrowed:
    """Memory of an image as NumPy takes it; whoever holds the array holds the image."""

    def __init__(self, image: "Image", capsule: object, address: int):
        self.owners = image, capsule
        shape = (image.height, image.width, 4)
        self.__array_interface__ = {"shape": shape, "typestr": "|u1", "data": (address, True), "version": 3}


def pixels_of(image: "Image") -> np.ndarray:
    """An RGB image's own memory, uint8 [height, width, 4], read-only; what the fourth byte holds is undefined.

    Pillow hands it out by Arrow's interface without a copy (a copy takes 0.3 ms of an image of ImageNet's size, a
    sixth of all), but for images above 16 MB, whose memory has several pieces: those are copied, [height, width, 3].
    """
    try:
        _, capsule = image.__arrow_c_array__()
    except ValueError:
        return np.asarray(image)
    column = _Array.from_address(_address(capsule, b"arrow_array"))
    return np.asarray(_Borrowed(image, capsule, column.children[0].contents.buffers[1]))


def resample(
    pixels: np.ndarray, box: Box, mirror: bool, out: np.ndarray, antialias: bool = False,
    mean: tuple[float, ...] = (0, 0, 0), std: tuple[float, ...] = (1, 1, 1),
) -> None:  # fmt: skip
    """`csrc/resample.h`, checked: pixels uint8 [h, w, 3 or 4] of contiguous rows, out uint8 or float32 [h', w', 3],
    contiguous."""
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or pixels.strides[1:] != (pixels.shape[2], 1):
        raise ValueError(f"pixels must be uint8 [height, width, 3 or 4] of contiguous rows, not {pixels.shape}")
    if out.ndim != 3 or out.shape[2] != 3 or not out.flags.c_contiguous:
        raise ValueError(f"out must be contiguous [height, width, 3], not {out.shape}")
    if pixels.dtype != np.uint8 or out.dtype not in (np.uint8, np.float32):
        raise ValueError(f"pixels must be uint8 and out uint8 or float32, not {pixels.dtype} and {out.dtype}")
    _C.resample(
        pixels.ctypes.data, *pixels.shape, pixels.strides[0], *box, antialias, mirror,
        int(out.dtype == np.float32), *mean, *(1 / value for value in std), out.shape[0], out.shape[1],
        out.ctypes.data,
    )  # fmt: skip


def packed(data: bytes) -> tuple[bytes, Header]:
    """An image file as the reference packs it: a JPEG's own bytes; CMYK and PNG become RGB JPEG of quality 100.

    It is decoded whole, to know that it can be. BadImage for other formats and for what can't be decoded.
    """
    size, image = header(data), decode(data)
    return encoded(image) if size.components == 4 or data.startswith(PNG) else (data, size)


def encoded(image: "Image", quality: int = QUALITY) -> tuple[bytes, Header]:
    """An RGB image as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue(), Header(image.height, image.width, 3)
