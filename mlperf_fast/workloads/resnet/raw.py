"""What a raw folder holds: class folders of JPEGs, the reference's TFRecords, or MXNet's RecordIO.

    train/n01440764/*.JPEG, val/n01440764/*.JPEG                 a folder a class; val may be called validation
    train-00000-of-01024 …, validation-00000-of-00128 …          TFRecords, here or in train/ and validation/
    train.rec, train.idx, val.rec, val.idx, and perhaps .lst     RecordIO

The label of a class folder is its rank among the sorted names. TFRecords count labels from 1, RecordIO from 0.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlperf_fast.data import jpeg, recordio, tfrecord
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.resnet.dataset import EVAL, INDEX, TRAIN

SHARD = re.compile(r"(train|validation)-(\d{5})-of-(\d{5})")
PROBLEMS = 5  # that are named of one file
NAMES = {TRAIN: ("train",), EVAL: ("val", "validation")}


class Picture(NamedTuple):
    path: Path
    label: int


class Chunk(NamedTuple):
    """Some images of a file that is used where it is."""

    path: Path
    file: int  # its number in the part
    offsets: tuple[int, ...]  # of RecordIO's records; empty: all of a TFRecord file
    labels: tuple[float, ...]  # of those records in the .lst file, if there is one


def kind_of(raw: Path) -> str:
    """folders, tfrecord or recordio. UserError where the folder is none of them."""
    if (raw / "train.rec").is_file():
        return "recordio"
    if any(SHARD.fullmatch(path.name) for place in (raw, raw / TRAIN) if place.is_dir() for path in place.iterdir()):
        return "tfrecord"
    if part_folder(raw, TRAIN) and part_folder(raw, EVAL):
        return "folders"
    raise UserError(
        f"{raw}: expected train/ and val/ with a folder of JPEGs for each class, train-00000-of-01024 … and "
        "validation-00000-of-00128 …, or train.rec, train.idx, val.rec and val.idx"
    )


def part_folder(raw: Path, part: str) -> Path | None:
    return next((raw / name for name in NAMES[part] if (raw / name).is_dir()), None)


# Class folders --------------------------------------------------------------------------------------------------------


def class_folders(raw: Path) -> tuple[list[str], dict[str, list[Picture]]]:
    """Names of the classes, and the pictures of each part in the order of their names. UserError for an empty class,
    and for one that only one part has."""
    names: list[str] = []
    found: dict[str, list[Picture]] = {}
    for part in (TRAIN, EVAL):
        folder = part_folder(raw, part)
        assert folder is not None
        here = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not here:
            raise UserError(f"{folder} has no folders: expected one for each class")
        if names and names != here:
            other = sorted(set(names) ^ set(here))
            raise UserError(f"{folder}: the classes aren't those of {raw / NAMES[TRAIN][0]}: {', '.join(other[:5])} "
                            f"{'is' if len(other) == 1 else 'are'} in one of them only")  # fmt: skip
        names, found[part] = here, []
        for label, name in enumerate(names):
            paths = sorted(path for path in (folder / name).iterdir() if not path.name.startswith("."))
            if not paths:
                raise UserError(
                    f"{folder / name}: the class has no image: remove it from both parts, or get its images"
                )
            found[part] += [Picture(path, label) for path in paths]
    return names, found


# Files that are used where they are -----------------------------------------------------------------------------------


def shards(raw: Path, part: str) -> list[Path]:
    """The TFRecord files of a part, in order; UserError if the set isn't whole."""
    places = [place for place in (raw, raw / part) if place.is_dir()]
    found = {path.name: path for place in places for path in place.iterdir()}
    matches = [match for name in sorted(found) if (match := SHARD.fullmatch(name)) and match[1] == part]
    if not matches:
        raise UserError(
            f"{raw} holds no {part} shards: expected {part}-00000-of-{'01024' if part == TRAIN else '00128'}"
        )
    totals = {match[3] for match in matches}
    missing = [number for number in range(int(max(totals))) if f"{part}-{number:05d}-of-{max(totals)}" not in found]
    if len(totals) > 1 or missing:
        what = f"of several sets ({', '.join(sorted(totals))})" if len(totals) > 1 else f"without number {missing[0]}"
        raise UserError(f"{raw} holds {part} shards {what}: get one whole set")
    return [found[match[0]] for match in matches]


def chunks(raw: Path, kind: str, part: str, size: int = 4096) -> list[Chunk]:
    """The images of a part in portions that can be looked at side by side."""
    if kind == "tfrecord":
        return [Chunk(path, number, (), ()) for number, path in enumerate(shards(raw, part))]
    rec, idx = (raw / f"{NAMES[part][0]}.{suffix}" for suffix in ("rec", "idx"))
    for path in (rec, idx):
        if not path.is_file():
            raise UserError(f"{path} is missing: RecordIO needs train.rec, train.idx, val.rec and val.idx")
    offsets = recordio.offsets(rec, idx)
    labels = list_labels(rec.with_suffix(".lst"), offsets)
    starts = list(offsets.values())
    return [
        Chunk(rec, 0, tuple(starts[at : at + size]), tuple(labels[at : at + size]))
        for at in range(0, len(starts), size)
    ]


def list_labels(path: Path, offsets: dict[int, int]) -> list[float]:
    """The labels by the .lst file in the index's order, none without one. UserError if it is another set's."""
    if not path.is_file():
        return []
    listed = recordio.read_list(path)
    if listed.keys() != offsets.keys():
        odd = sorted(listed.keys() ^ offsets.keys())
        raise UserError(f"{path} isn't the list of {path.with_suffix('.idx').name}: only one of them has key {odd[0]}")
    return [listed[key][0] for key in offsets]


def look_at(chunk: Chunk) -> tuple[np.ndarray, list[str]]:
    """The index of a chunk's images, and what is wrong with them; each image is decoded whole."""
    rows: list[tuple[int, ...]] = []
    problems: list[str] = []
    for number, (offset, parts, label, data) in enumerate(records(chunk)):
        if len(problems) == PROBLEMS:
            break
        where = f"{chunk.path}: record {number} at byte {offset:,}"
        try:
            size = jpeg.header(data)
            jpeg.decode(data)
        except jpeg.BadImage as error:
            problems.append(f"{where}: {error}")
            continue
        if not float(label).is_integer() or label < 0:
            problems.append(f"{where}: its label is {label:g}: expected a whole number")
        elif chunk.labels and chunk.labels[number] != label:
            problems.append(f"{where}: its label is {label:g}, but the .lst file says {chunk.labels[number]:g}")
        else:
            crc = tfrecord.crc(data)
            rows.append((offset, len(data), chunk.file, int(label), size.height, size.width, parts, crc))
    return np.array(rows, dtype=INDEX), problems


def records(chunk: Chunk) -> Iterator[tuple[int, int, float, bytes]]:
    """(byte, parts, label from 0, JPEG) of each image; UserError for a damaged file."""
    if not chunk.offsets:
        for at, payload in tfrecord.records_at(chunk.path):
            try:
                features = tfrecord.example(payload)
                (data,), (label,) = features["image/encoded"], features["image/class/label"].tolist()
                if not isinstance(data, bytes):
                    raise ValueError("image/encoded holds numbers")
            except (KeyError, ValueError, AttributeError) as error:
                missing = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise UserError(f"{chunk.path}: the record at byte {at:,} is no image of ImageNet: {missing}") from None
            yield at + payload.index(data), 1, label - 1, data
        return
    view = np.memmap(chunk.path, dtype=np.uint8, mode="r")
    for at in chunk.offsets:
        record = recordio.read_record(view, at, chunk.path)
        try:
            image = recordio.image(record.payload)
        except ValueError as error:
            raise UserError(f"{chunk.path}: the record at byte {at:,}: {error}") from None
        yield (record.start + image.skip if record.parts == 1 else at), record.parts, image.label, image.data
