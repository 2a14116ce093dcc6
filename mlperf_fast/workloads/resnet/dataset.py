"""A data set on disk: what it holds, and where each image's bytes lie.

A data set is a folder that `prepare` made:

    meta.json                  sizes, counts and checksums (Meta)
    train.npy, validation.npy  the index: file, byte and size of each JPEG, its label, its height and width
    train-00000-of-00008 …     the images, in the reference's TFRecord shards; or the files of a raw folder, where they
                               were

The index makes the formats alike: whoever reads an image maps its file and takes the bytes, with no record parsed. The
checksum of each image is compared whenever it is read.
"""

import json
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlperf_fast import _C
from mlperf_fast.data import recordio
from mlperf_fast.data.files import checksum, replace_file
from mlperf_fast.errors import UserError

META_FILE = "meta.json"
TRAIN, EVAL = "train", "validation"
INDEX = np.dtype(
    [
        ("offset", "<i8"),  # of the JPEG in its file; of its record where that has several parts
        ("size", "<i4"),  # of the JPEG
        ("file", "<i4"),  # number in Meta.files
        ("label", "<i4"),  # 0 … classes - 1
        ("height", "<i4"),
        ("width", "<i4"),
        ("parts", "<i4"),  # 1, or of how many parts its RecordIO record is made
        ("crc", "<u4"),  # CRC-32C of the JPEG
    ]
)
HOW_TO_MAKE = "Make one with `mlperf-fast prepare resnet`"


@dataclass(frozen=True)
class Meta:
    """What a data set holds, known without opening its images."""

    format: str  # tfrecord or recordio
    class_names: Sequence[str]  # in the order of the labels
    train: Mapping[str, int]  # path of each file, from the data set's folder or absolute -> its images
    validation: Mapping[str, int]
    train_classes: Sequence[int]  # training images of each class
    eval_classes: Sequence[int]
    bytes: Mapping[str, int]  # of each file
    sha256: Mapping[str, str]  # of each file and of the indexes
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def train_samples(self) -> int:
        return sum(self.train.values())

    @property
    def eval_samples(self) -> int:
        return sum(self.validation.values())

    def files(self, part: str) -> Mapping[str, int]:
        return self.train if part == TRAIN else self.validation


def read_meta(folder: str | os.PathLike) -> Meta:
    """The data set's sizes from its meta.json; the images' files are looked at, not opened.

    UserError where one is missing or has another size.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such data set folder. {HOW_TO_MAKE}")
    path = folder / META_FILE
    try:
        meta = Meta(**json.loads(path.read_text()))
        counts = [*meta.train.values(), *meta.validation.values(), *meta.bytes.values()]
        if not meta.train or not meta.validation or not all(type(count) is int and count > 0 for count in counts):
            raise TypeError("counts must be whole numbers above 0")
        for name in (*meta.train, *meta.validation):
            size = (folder / name).stat().st_size
            if size != meta.bytes[name]:
                raise UserError(
                    f"{folder / name} has {size:,} bytes, but {META_FILE} says {meta.bytes[name]:,}: the file was cut "
                    f"or replaced. {HOW_TO_MAKE}"
                )
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing. {HOW_TO_MAKE}") from None
    except UserError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{path}: not a {META_FILE} of this program ({error}). {HOW_TO_MAKE}") from None
    return meta


def write_meta(folder: Path, meta: Meta) -> None:
    replace_file(folder / META_FILE, json.dumps(asdict(meta), indent=1).encode())


def index_file(part: str) -> str:
    return f"{part}.npy"


class Images:
    """The images of one part, train or validation, of a data set, by number. Files are opened here, not before."""

    def __init__(self, folder: str | os.PathLike, meta: Meta, part: str):
        self.folder, self.part = Path(folder), part
        self.names = list(meta.files(part))
        self.index = read_index(self.folder, meta, part)
        self.maps = [mapped(self.folder / name, meta.bytes[name]) for name in self.names]
        self.views = [np.frombuffer(mapping, dtype=np.uint8) for mapping in self.maps]

    def __len__(self) -> int:
        return len(self.index)

    def read(self, number: int) -> np.ndarray:
        """The JPEG's bytes, uint8 [n], compared with their checksum; UserError names the image."""
        entry = self.index[number]
        view, offset, size = self.views[entry["file"]], int(entry["offset"]), int(entry["size"])
        if entry["parts"] == 1:
            data = view[offset : offset + size]
        else:
            payload = recordio.read_record(view, offset, self.folder / self.names[entry["file"]]).payload
            data = np.frombuffer(payload, dtype=np.uint8)[len(payload) - size :]
        # The pages come from the disk in here, where other threads may run.
        if len(data) != size or _C.crc32c(data.ctypes.data, size) != entry["crc"]:
            raise UserError(
                f"{self.name(number)} isn't the one that was prepared: a damaged file, or one that was replaced. Find "
                f"all with `mlperf-fast prepare resnet --verify --out {self.folder}`"
            )
        return data

    def ask_for(self, numbers: np.ndarray) -> None:
        """Asks the kernel to read images that will be wanted soon, so that threads needn't wait for a cold disk."""
        for entry in self.index[numbers]:
            begin = int(entry["offset"]) // mmap.PAGESIZE * mmap.PAGESIZE
            end = min(int(entry["offset"]) + int(entry["size"]), len(self.views[entry["file"]]))
            self.maps[entry["file"]].madvise(mmap.MADV_WILLNEED, begin, end - begin)

    def name(self, number: int) -> str:
        """Which image this is, for a message."""
        entry = self.index[number]
        return (
            f"{self.folder / self.names[entry['file']]}: the image at byte {entry['offset']:,}, {self.part} {number:,},"
        )


def read_index(folder: Path, meta: Meta, part: str) -> np.ndarray:
    """The index of a part, mapped. UserError where it isn't the one that belongs to the data set."""
    path = folder / index_file(part)
    try:
        same = checksum(path) == meta.sha256[index_file(part)]
        index = np.load(path, mmap_mode="r", allow_pickle=False) if same else None
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: no readable index ({error}). {HOW_TO_MAKE}") from None
    if index is None or index.dtype != INDEX or len(index) != sum(meta.files(part).values()):
        raise UserError(f"{path} isn't the index of this data set: its checksum isn't the one in {META_FILE}. "
                        f"{HOW_TO_MAKE}")  # fmt: skip
    return index


def mapped(path: Path, size: int) -> mmap.mmap:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size != size:
            raise UserError(f"{path} changed since its size was read. {HOW_TO_MAKE}")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
