"""From a raw folder (raw.py) to a data set (dataset.py).

Class folders are packed into the reference's TFRecord shards, in random order: the benchmark's own form, with a
checksum of each record, that TensorFlow, DALI and we read. A JPEG's bytes stay as they are; CMYK and PNG become RGB
JPEG of quality 100, as in the reference's packing. TFRecords and RecordIO are used where they are: only the index and
meta.json are written. Every image is decoded once, so that a run meets no bad one.

A shard counts once its index is in the work folder, so a process that is killed at any moment goes on after the last
finished shard and ends with the same bytes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlperf_fast.data import jpeg, tfrecord
from mlperf_fast.data.files import checksum, clear_file_errors, locked, replace_file, replaced, require_own
from mlperf_fast.data.order import permutation
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.resnet import raw as raw_folder
from mlperf_fast.workloads.resnet.dataset import (
    EVAL,
    INDEX,
    META_FILE,
    TRAIN,
    Images,
    Meta,
    index_file,
    read_meta,
    write_meta,
)
from mlperf_fast.workloads.resnet.raw import Chunk, Picture
from mlperf_fast.workloads.resnet.verify import Say, describe, inspect, shared_problem, verify

WORK = "unfinished"
PACK = 7  # which random stream is drawn
SEED = 2022
SHARD_MB = 135  # about the reference's
RESIZED_QUALITY = 95


class Shard(NamedTuple):
    """A TFRecord file to be written."""

    path: Path
    rows: Path  # the index of its images, written behind it
    file: int
    pictures: list[Picture]
    names: list[str]  # of the classes
    shorter_side: int | None


def prepare(
    raw: str | os.PathLike,
    out: str | os.PathLike,
    *,
    classes: int | None = None,
    shorter_side: int | None = None,
    shard_mb: float = SHARD_MB,
    seed: int = SEED,
    workers: int = 1,
    source: str | None = None,
    progress: Say = lambda line: None,
) -> Meta:
    """Makes the data set in `out`, or goes on with it; one that is there is verified.

    classes: that the labels must stay below; by default as many as there are. shorter_side: images with a longer one
    are made smaller and encoded anew, which the open division alone allows; class folders only. UserError for faults
    of the input, naming the files.
    """
    raw, out = Path(raw).resolve(), Path(out).resolve()
    jpeg.pillow()
    if raw == out:
        raise UserError(f"{out}: --raw and --out name the same folder; choose another --out")
    if not raw.is_dir():
        raise UserError(f"{raw}: there is no such folder. --raw names the folder of the images")
    ours = {WORK, META_FILE, f"{META_FILE}.new", index_file(TRAIN), index_file(EVAL)}
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    ours |= {name for name in there if raw_folder.SHARD.fullmatch(name.removesuffix(".new"))}
    require_own(out, ours, {WORK, META_FILE})
    wanted = {"raw": source or str(raw), "seed": seed, "shorter_side": shorter_side, "shard_mb": shard_mb}
    if (out / META_FILE).exists():
        meta = read_meta(out)
        if {key: meta.settings.get(key) for key in wanted} != wanted:
            raise UserError(
                f"{out} holds another data set ({meta.source}); choose another --out, or remove that folder"
            )
        progress(f"{out} was prepared before from the same files")
        shutil.rmtree(out / WORK, ignore_errors=True)
        return verify(out, progress, workers)
    with clear_file_errors(out, "shard"), locked(out / WORK):
        keep_settings(out / WORK, wanted)
        kind = raw_folder.kind_of(raw)
        if kind == "folders":
            meta = pack(raw, out, wanted, workers, source, progress)
        else:
            if shorter_side:
                raise UserError(f"shorter_side is for class folders; {raw} holds {kind} files, which stay as they are")
            meta = adopt(raw, out, kind, wanted, classes, workers, source, progress)
        if classes is not None and meta.classes != classes:
            raise UserError(f"{raw} has {meta.classes} classes instead of {classes}: get the whole set")
        write_meta(out, meta)
        shutil.rmtree(out / WORK)
    return meta


def keep_settings(work: Path, wanted: dict[str, Any]) -> None:
    """Unfinished work is gone on with for the same input only."""
    path = work / "settings.json"
    if path.exists() and json.loads(path.read_text()) != wanted:
        raise UserError(f"{work} holds unfinished work with other settings: finish that, or remove {work}")
    replace_file(path, json.dumps(wanted).encode())


# Class folders --------------------------------------------------------------------------------------------------------


def pack(raw: Path, out: Path, wanted: dict[str, Any], workers: int, source: str | None, progress: Say) -> Meta:
    names, pictures = raw_folder.class_folders(raw)
    forget_others(out, [picture for part in (TRAIN, EVAL) for picture in pictures[part]])
    files: dict[str, dict[str, int]] = {}
    for number, part in enumerate((TRAIN, EVAL)):
        shuffled = [pictures[part][i] for i in permutation(len(pictures[part]), wanted["seed"], PACK, number).tolist()]
        total = sum(picture.path.stat().st_size for picture in shuffled)
        check_space(out, total)
        count = min(len(shuffled), max(1, round(total / (wanted["shard_mb"] * 1e6))))
        cuts = [len(shuffled) * i // count for i in range(count + 1)]
        paths = [out / f"{part}-{i:05d}-of-{count:05d}" for i in range(count)]
        shards = [
            Shard(
                path, out / WORK / f"{path.name}.npy", i, shuffled[cuts[i] : cuts[i + 1]], names, wanted["shorter_side"]
            )
            for i, path in enumerate(paths)
        ]
        left = [shard for shard in shards if not (shard.rows.exists() and shard.path.exists())]
        refuse(problem for problems in in_parallel(pack_shard, left, workers, progress) for problem in problems)
        index = np.concatenate([np.load(shard.rows) for shard in shards])
        write_index(out, part, index)
        files[part] = {path.name: len(shard.pictures) for path, shard in zip(paths, shards, strict=True)}
    return describe_set(out, "tfrecord", names, files, wanted, source or "class folders of JPEGs", progress)


def forget_others(out: Path, pictures: list[Picture]) -> None:
    """Drops shards that were made of other files: of a raw folder that has been mended since."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(f"{picture.path}\n{picture.path.stat().st_size}\n{picture.label}\n".encode())
    path = out / WORK / "files.sha256"
    if path.exists() and path.read_text() != digest.hexdigest():
        for old in (*(out / WORK).glob("*.npy"), *out.iterdir()):
            if raw_folder.SHARD.fullmatch(old.name.removesuffix(".npy")):
                old.unlink()
    replace_file(path, digest.hexdigest().encode())


def pack_shard(shard: Shard) -> list[str]:
    """Writes the file and then its index. Returns what is wrong; nothing is written then."""
    rows: list[tuple[int, ...]] = []
    problems: list[str] = []
    with replaced(shard.path) as file:
        for picture in shard.pictures:
            try:
                data, size = jpeg.packed(picture.path.read_bytes())
            except jpeg.BadImage as error:
                problems.append(f"{picture.path}: {error}")
                if len(problems) == raw_folder.PROBLEMS:
                    break
                continue
            if shard.shorter_side and min(size.height, size.width) > shard.shorter_side:
                data, size = smaller(data, size, shard.shorter_side)
            payload = example(data, size, picture, shard.names)
            offset = file.tell() + 12 + payload.index(data)
            rows.append((offset, len(data), shard.file, picture.label, size.height, size.width, 1, tfrecord.crc(data)))
            file.write(tfrecord.framed(payload))
        if problems:
            file.truncate(0)
    if problems:
        shard.path.unlink()
        return problems
    with replaced(shard.rows) as file:
        np.save(file, np.array(rows, dtype=INDEX))
    return []


def smaller(data: bytes, size: jpeg.Header, shorter_side: int) -> tuple[bytes, jpeg.Header]:
    image, short = jpeg.decode(data), min(size.height, size.width)
    new = (size.width * shorter_side // short, size.height * shorter_side // short)
    return jpeg.encoded(image.resize(new, jpeg.pillow().Resampling.BICUBIC), RESIZED_QUALITY)


def example(data: bytes, size: jpeg.Header, picture: Picture, names: Sequence[str]) -> bytes:
    """A record as the reference's packing writes it; its labels count from 1."""
    name = names[picture.label].encode()
    return tfrecord.encoded_example(
        {
            "image/height": np.array([size.height]),
            "image/width": np.array([size.width]),
            "image/channels": np.array([3]),
            "image/colorspace": b"RGB",
            "image/class/label": np.array([picture.label + 1]),
            "image/class/synset": name,
            "image/class/text": name,
            "image/format": b"JPEG",
            "image/filename": picture.path.name.encode(),
            "image/encoded": data,
        }
    )


def check_space(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out).free
    if free < needed * 1.01:
        raise UserError(f"{out}: about {needed / 1e9:.1f} GB are needed, but the disk has {free / 1e9:.1f} GB free")


# TFRecords and RecordIO -----------------------------------------------------------------------------------------------


def adopt(
    raw: Path, out: Path, kind: str, wanted: dict[str, Any], classes: int | None, workers: int, source: str | None,
    progress: Say,
) -> Meta:  # fmt: skip
    files: dict[str, dict[str, int]] = {}
    highest = 0
    for part in (TRAIN, EVAL):
        chunks: list[Chunk] = raw_folder.chunks(raw, kind, part)
        pieces, problems = [], []
        for piece, found in in_parallel(raw_folder.look_at, chunks, workers, progress):
            pieces.append(piece)
            problems += found
            if len(problems) >= raw_folder.PROBLEMS:
                break
        refuse(problems)
        index = np.concatenate(pieces)
        if not len(index):
            raise UserError(f"{raw}: the {part} files hold no image")
        highest = max(highest, int(index["label"].max()))
        if (wrong := index["label"] >= (classes or highest + 1)).any():
            bad = index[wrong.argmax()]
            raise UserError(
                f"{chunks[0].path.parent}: the {part} image at byte {bad['offset']:,} of file {bad['file']} has label "
                f"{bad['label']}, but there are {classes} classes, 0 to {(classes or 0) - 1}"
            )
        write_index(out, part, index)
        paths = list(dict.fromkeys(str(chunk.path) for chunk in chunks))
        files[part] = {
            path: int(n) for path, n in zip(paths, np.bincount(index["file"], minlength=len(paths)), strict=True)
        }
    names = [f"class {label}" for label in range(classes or highest + 1)]
    return describe_set(out, kind, names, files, wanted, source or f"{kind} files of {raw}", progress)


def refuse(problems: "Sequence[str] | Iterator[str]") -> None:
    """UserError that lists problems, if there are any."""
    found = list(problems)
    if found:
        raise UserError("these images can't be trained on; mend or remove them:\n  " + "\n  ".join(found))


# Both -----------------------------------------------------------------------------------------------------------------


def in_parallel(function: Callable, jobs: Sequence, workers: int, progress: Say) -> Iterator:
    """The results in order, from `workers` threads: decoding, checksums and files release Python's lock."""
    with ThreadPoolExecutor(workers) as pool:
        try:
            for done, result in enumerate(pool.map(function, jobs), 1):
                progress(f"{Path(jobs[done - 1].path).name}: {done} of {len(jobs)} done")
                yield result
        finally:
            pool.shutdown(cancel_futures=True)


def write_index(out: Path, part: str, index: np.ndarray) -> None:
    with replaced(out / index_file(part)) as file:
        np.save(file, index)


def describe_set(
    out: Path, kind: str, names: Sequence[str], files: dict[str, dict[str, int]], wanted: dict[str, Any], source: str,
    progress: Say,
) -> Meta:  # fmt: skip
    """The Meta of files and indexes that are in place, after every image was read back. UserError for an empty class,
    for many images that are there twice, and for evaluation images among the training images."""
    everything = [*files[TRAIN], *files[EVAL]]
    sums = {name: checksum(out / name) for name in (*everything, index_file(TRAIN), index_file(EVAL))}
    meta = Meta(
        format=kind, class_names=names, train=files[TRAIN], validation=files[EVAL], train_classes=[], eval_classes=[],
        bytes={name: (out / name).stat().st_size for name in everything}, sha256=sums, source=source, settings=wanted,
    )  # fmt: skip
    parts = {part: Images(out, meta, part) for part in (TRAIN, EVAL)}
    reports = {part: inspect(images, len(names), False, 1, progress) for part, images in parts.items()}
    problems = [problem for report in reports.values() for problem in report.problems]
    problems += shared_problem(parts[TRAIN], parts[EVAL])
    if problems:
        raise UserError(f"{out} is no valid data set:\n  " + "\n  ".join(problems))
    for part, report in reports.items():
        progress(describe(part, report))
    counts = {part: report.classes.tolist() for part, report in reports.items()}
    return replace(meta, train_classes=counts[TRAIN], eval_classes=counts[EVAL])
