"""From Wikipedia, its prepared text, or the reference's and NVIDIA's files to a data set that a run reads.

What lies in the raw folder decides:

    AA/wiki_00 …                     WikiExtractor's files: first the text (text.py), then as below
    part-00000-of-00500, eval.txt    the reference's text: examples of each part (pretraining.py), in random shards
    TFRecords, in train/ and eval/   the reference's examples, in random shards
    HDF5, in train/ and eval/        NVIDIA's shards, where they are: only meta.json is written

and vocab.txt beside it, unless a vocabulary is trained. Examples go to a random shard each, and are put in random order
within it: a random order of all (Rao and Sandelius). A shard file counts once its part is committed in state.json, so a
process that is killed at any moment goes on after the last finished part and ends with the same bytes.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlperf_fast.data.files import append, checksum, clear_file_errors, cut, locked, replace_file, require_own
from mlperf_fast.data.order import permutation, random_bits
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.bert import pretraining, shards, text
from mlperf_fast.workloads.bert.sequences import Sequences, find_fault, joined, starts_of
from mlperf_fast.workloads.bert.verify import (
    EVAL,
    META_FILE,
    TRAIN,
    Meta,
    describe,
    inspect,
    read_meta,
    verify,
    write_meta,
)
from mlperf_fast.workloads.bert.wordpiece import (
    BENCHMARK_MD5,
    VOCAB_FILE,
    Vocabulary,
    read_vocabulary,
    train_vocabulary,
    write_vocabulary,
)

WORK, TEXT = "unfinished", "text"
INITIAL = "initial"  # the folder of weights to start from
OURS = {WORK, TEXT, INITIAL, TRAIN, EVAL, META_FILE, f"{META_FILE}.new", VOCAB_FILE, f"{VOCAB_FILE}.new"}
EVAL_SEQUENCES = 10_000
SHARD_SEQUENCES = 36_000  # about NVIDIA's
TO_SHARDS, IN_SHARD = 1, 2  # which random stream is drawn for what
# The arrays of Sequences as a shard's file in work holds them, one record a sequence: lengths first, then values.
HEADER = 4

Say = Callable[[str], None]


@dataclass
class State:
    """What is done, as state.json holds it. Whatever files hold beyond these sizes is dropped on resuming."""

    settings: dict[str, Any]
    shards: int
    source: str
    parts: list[int] = field(default_factory=list)  # sequences of the parts that were done
    sizes: list[int] = field(default_factory=list)  # bytes of each shard's file that count

    def save(self, work: Path) -> None:
        replace_file(work / "state.json", json.dumps(asdict(self)).encode())


def prepare(
    raw_folder: str | os.PathLike,
    out_folder: str | os.PathLike,
    *,
    vocabulary: str | os.PathLike | int | None = None,
    settings: pretraining.Settings = pretraining.BENCHMARK,
    test_articles: int = text.TEST_ARTICLES,
    eval_sequences: int = EVAL_SEQUENCES,
    shard_sequences: int = SHARD_SEQUENCES,
    workers: int = 1,
    source: str | None = None,
    progress: Say = lambda line: None,
) -> Meta:
    """Makes the data set in `out_folder`, or goes on with it; one that is there is verified.

    `vocabulary` is a file, by default raw_folder/vocab.txt, or the number of words of one to be trained on the training
    text. UserError for faults of the input, naming the file.
    """
    raw, out = Path(raw_folder).resolve(), Path(out_folder).resolve()
    if out == raw:
        raise UserError(f"{out}: --raw and --out name the same folder; choose another --out")
    if not raw.is_dir():
        raise UserError(f"{raw}: there is no such folder. --raw names the folder of the text or the shards")
    require_own(out, OURS, {WORK, META_FILE})
    wanted = {
        **asdict(settings),
        "raw": source or str(raw),
        "vocabulary": vocabulary if isinstance(vocabulary, int) else str(vocabulary or VOCAB_FILE),
        "test_articles": test_articles,
        "eval_sequences": eval_sequences,
    }
    if (out / META_FILE).exists():
        return finished_before(out, wanted, progress)
    with clear_file_errors(out, "part"), locked(out / WORK):
        meta = make(raw, out, wanted, settings, shard_sequences, workers, source, progress)
        shutil.rmtree(out / WORK)
    return meta


def finished_before(out: Path, wanted: dict[str, Any], progress: Say) -> Meta:
    meta = read_meta(out)
    if {key: meta.settings.get(key) for key in wanted} != wanted:
        raise UserError(f"{out} holds another data set ({meta.source}); choose another --out, or remove that folder")
    progress(f"{out} was prepared before from the same files")
    shutil.rmtree(out / WORK, ignore_errors=True)
    return verify(out, progress)


def make(
    raw: Path, out: Path, wanted: dict[str, Any], settings: pretraining.Settings, shard_sequences: int, workers: int,
    source: str | None, progress: Say,
) -> Meta:  # fmt: skip
    work = out / WORK
    state = load_state(work, wanted) or State(wanted, 0, source or "")
    state.save(work)  # from here on other files or settings are refused
    segmenter = "as the text came"
    folder = raw
    if (raw / TRAIN).is_dir() and (raw / EVAL).is_dir():
        parts, eval_file = shards.find_shards(raw / TRAIN), None
        vocabulary = find_vocabulary(raw, wanted["vocabulary"], [])
        if shards.is_hdf5(parts[0]):
            return adopt(raw, out, wanted, settings, vocabulary, source, progress)
        kind = "examples of TFRecords"
    else:
        if not (raw / text.EVAL_FILE).is_file():
            folder = out / TEXT
            segmenter = text.make_text(
                raw, folder, test_articles=wanted["test_articles"], workers=workers, progress=progress
            )
        parts, eval_file = shards.find_shards(folder), folder / text.EVAL_FILE
        vocabulary = find_vocabulary(raw, wanted["vocabulary"], parts)
        kind = f"{len(parts)} parts of text"
    write_vocabulary(out / VOCAB_FILE, vocabulary)
    job = (out / VOCAB_FILE, settings)
    state.source = source or kind
    wanted = {**wanted, "segmenter": segmenter, **compared(out / VOCAB_FILE, eval_file, progress)}
    scatter(parts, job, work, state, shard_sequences, workers, progress)
    evaluation = eval_set(raw / EVAL if eval_file is None else eval_file, job, wanted["eval_sequences"])
    return publish(out, work, state, wanted, settings, vocabulary, evaluation, progress)


def compared(vocab_file: Path, eval_file: Path | None, progress: Say) -> dict[str, bool]:
    """For the manifest: whether vocabulary and evaluation text are the benchmark's, by their published checksums."""
    same = {"benchmark_vocabulary": md5(vocab_file) == BENCHMARK_MD5}
    if eval_file is not None:
        same["benchmark_eval_text"] = md5(eval_file) == text.BENCHMARK_EVAL_MD5
    for name, is_same in same.items():
        what = name.removeprefix("benchmark_").replace("_", " ")
        progress(
            f"{what}: the benchmark's own" if is_same else f"{what}: not the benchmark's, which a closed run needs"
        )
    return same


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def find_vocabulary(raw: Path, wanted: str | int, parts: list[Path]) -> Vocabulary:
    if not isinstance(wanted, int):
        return read_vocabulary(raw / wanted)
    if not parts:
        raise UserError("ids are there already: name the vocab.txt that they belong to, none can be trained")
    return train_vocabulary(lambda: (line for part in parts for line in text.read_utf8(part).split("\n")), wanted)


def load_state(work: Path, wanted: dict[str, Any]) -> State | None:
    path = work / "state.json"
    if not path.exists():
        return None
    try:
        state = State(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): remove {work} and prepare anew") from None
    if state.settings != wanted:
        changed = [key for key in wanted if wanted[key] != state.settings.get(key)]
        raise UserError(
            f"{work} holds unfinished work with other {', '.join(changed)}. Finish that with the same raw files and "
            f"settings, or remove {work} and prepare anew"
        )
    return state


# Pass 1: examples of each part, each to a random shard ----------------------------------------------------------------


def scatter(
    parts: list[Path], job: tuple[Path, pretraining.Settings], work: Path, state: State, shard_sequences: int,
    workers: int, progress: Say,
) -> None:  # fmt: skip
    done = len(state.parts)
    jobs = [(path, *job) for path in parts[done:]]
    for number, s in enumerate(made_in_order(jobs, workers), done):
        if not state.shards:
            # The first part tells how many examples a byte of it gives.
            whole = len(s) * sum(path.stat().st_size for path in parts) / parts[0].stat().st_size
            state.shards = max(1, round(whole / shard_sequences))
            state.sizes = [0] * state.shards
            check_space(work, int(whole * len(s.tokens) / len(s)))
        bits = random_bits(state.settings["seed"], TO_SHARDS, number)
        targets = (bits.random_raw(len(s)) >> np.uint64(32)) * np.uint64(state.shards) >> np.uint64(32)
        order = np.argsort(targets, kind="stable")
        ends = np.searchsorted(targets[order], np.arange(state.shards), side="right")
        for shard, chosen in enumerate(np.split(order, ends[:-1])):
            path = shard_file(work, shard)
            cut(path, state.sizes[shard])
            if len(chosen):
                data = flattened(s.take(chosen))
                append(path, data)
                state.sizes[shard] += data.nbytes
        os.sync()  # one call for some thousand files
        state.parts.append(len(s))
        state.save(work)
        progress(f"{parts[number].name}: {len(s):,} sequences, {sum(state.parts):,} of {number + 1}/{len(parts)} parts")


def check_space(work: Path, tokens: int) -> None:
    """UserError if the disk can't hold about so many tokens: 2.6 bytes each in `work`, 4 in the shards."""
    needed, free = int(6.6 * tokens), shutil.disk_usage(work).free
    if free < needed:
        raise UserError(
            f"{work.parent}: about {needed / 1e9:.1f} GB are needed for some {tokens:,} tokens, but the disk has "
            f"{free / 1e9:.1f} GB free. Choose a larger disk"
        )


def made_in_order(jobs: list[tuple[Path, Path, pretraining.Settings]], workers: int) -> Iterator[Sequences]:
    if workers > 1 and len(jobs) > 1:
        with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
            yield from pool.imap(make_part, jobs)
    else:
        yield from map(make_part, jobs)


def make_part(job: tuple[Path, Path, pretraining.Settings]) -> Sequences:
    """The sequences of one part, of text or of TFRecords; UserError names file and row of a fault."""
    path, vocab_file, settings = job
    vocabulary = read_vocabulary(vocab_file)
    if is_tfrecord(path):
        s = shards.read_shard(path)
    else:
        try:
            s = pretraining.create(
                pretraining.documents(text.read_utf8(path).split("\n"), vocabulary), vocabulary, settings
            )
        except UserError as error:
            raise UserError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    if fault := find_fault(s, len(vocabulary), settings.max_seq_length, settings.max_predictions):
        raise UserError(f"{path}: {fault}")
    return s


def is_tfrecord(path: Path) -> bool:
    """Text has no zero bytes; the length before a record has several."""
    with open(path, "rb") as file:
        return b"\0" in file.read(12)


def shard_file(work: Path, shard: int) -> Path:
    return work / f"shard_{shard:05d}.i16"


def flattened(s: Sequences) -> np.ndarray:
    """int16, each sequence's length, segment 0's, masked tokens and label, then its tokens, positions and labels."""
    header = np.stack([s.lengths, s.first, s.masked, s.random_next], axis=1).astype(np.int16)
    pieces: list[np.ndarray] = []
    for i in range(len(s)):
        a, b, c, d = s.starts[i], s.starts[i + 1], s.mask_starts[i], s.mask_starts[i + 1]
        pieces += (header[i], s.tokens[a:b], s.positions[c:d], s.labels[c:d])
    return np.concatenate(pieces)


def unflattened(data: np.ndarray) -> Sequences:
    at, starts = 0, []
    while at < len(data):
        starts.append(at)
        at += HEADER + int(data[at]) + 2 * int(data[at + 2])
    place = np.array(starts, dtype=np.int64)
    header = data[place[:, None] + np.arange(HEADER)]
    lengths, masked = header[:, 0].astype(np.int64), header[:, 2].astype(np.int64)

    def picked(begin: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        new = starts_of(sizes)
        return data[np.arange(new[-1]) + np.repeat(begin - new[:-1], sizes)]

    tokens = place + HEADER
    return Sequences(
        picked(tokens, lengths), starts_of(lengths), header[:, 1], picked(tokens + lengths, masked),
        picked(tokens + lengths + masked, masked), starts_of(masked), header[:, 3].astype(np.int8),
    )  # fmt: skip


# Pass 2: shards -------------------------------------------------------------------------------------------------------


def eval_set(source: Path, job: tuple[Path, pretraining.Settings], count: int) -> Sequences:
    """`count` sequences, every n/count-th of the evaluation text's, as the reference picks them."""
    if source.is_dir():
        return joined(make_part((path, *job)) for path in shards.find_shards(source))
    return pick(make_part((source, *job)), count)


def pick(s: Sequences, count: int) -> Sequences:
    """The sequences int(i * n / count), i = 0 … count - 1. UserError where there are fewer than that."""
    if len(s) < count:
        raise UserError(
            f"{count:,} evaluation sequences are wanted, but the test articles give {len(s):,}: ask for less"
        )
    ratio = len(s) / count
    return s.take(np.array([int(i * ratio) for i in range(count)]))


def publish(
    out: Path, work: Path, state: State, wanted: dict[str, Any], settings: pretraining.Settings,
    vocabulary: Vocabulary, evaluation: Sequences, progress: Say,
) -> Meta:  # fmt: skip
    """Writes the shards, reads them back, and writes meta.json last: it makes the data set valid."""
    (out / TRAIN).mkdir(exist_ok=True)
    (out / EVAL).mkdir(exist_ok=True)
    used = [shard for shard in range(state.shards) if state.sizes[shard]]  # of a tiny text one may be empty
    names = [f"{TRAIN}/part_{number:05d}_of_{len(used):05d}.hdf5" for number in range(len(used))]
    for name, shard in zip(names, used, strict=True):
        if not (out / name).exists():
            data = np.fromfile(shard_file(work, shard), dtype=np.int16, count=state.sizes[shard] // 2)
            s = unflattened(data)
            shards.write_hdf5(out / name, s.take(permutation(len(s), state.settings["seed"], IN_SHARD, shard)))
    eval_name = f"{EVAL}/part_00000_of_00001.hdf5"
    shards.write_hdf5(out / eval_name, evaluation)
    meta = describe_folder(out, names, [eval_name], wanted, settings, vocabulary, state.source, progress)
    if meta.train_samples != sum(state.parts) or meta.eval_samples != len(evaluation):
        raise UserError(
            f"{out}: the shards read back hold {meta.train_samples:,} sequences instead of {sum(state.parts):,} (a "
            "failing disk?): prepare anew"
        )
    write_meta(out, meta)
    return meta


def adopt(
    raw: Path, out: Path, wanted: dict[str, Any], settings: pretraining.Settings, vocabulary: Vocabulary,
    source: str | None, progress: Say,
) -> Meta:  # fmt: skip
    """A data set of HDF5 shards that stay where they are."""
    train, evaluation = ([str(path) for path in shards.find_shards(raw / part)] for part in (TRAIN, EVAL))
    write_vocabulary(out / VOCAB_FILE, vocabulary)
    wanted = {**wanted, **compared(out / VOCAB_FILE, None, progress)}
    found = source or f"HDF5 shards of {raw}"
    meta = describe_folder(out, train, evaluation, wanted, settings, vocabulary, found, progress)
    write_meta(out, meta)
    return meta


def describe_folder(
    out: Path, train: list[str], evaluation: list[str], wanted: dict[str, Any], settings: pretraining.Settings,
    vocabulary: Vocabulary, source: str, progress: Say,
) -> Meta:  # fmt: skip
    """The meta.json of these shards, all of them read; UserError lists what is wrong with them."""
    limits = (len(vocabulary), settings.max_seq_length, settings.max_predictions)
    reports = [inspect(out, names, *limits, progress) for names in (train, evaluation)]
    problems = [problem for report in reports for problem in report.problems]
    layouts = set().union(*(report.layouts for report in reports))
    if len(layouts) > 1 and not problems:
        problems.append(f"mixed layouts ({', '.join(sorted(layouts))}): training and evaluation must have the same")
    if problems:
        raise UserError(f"{out}: no data set comes of these shards:\n  " + "\n  ".join(problems))
    for part, report in zip((TRAIN, EVAL), reports, strict=True):
        progress(describe(part, report, settings.max_seq_length))
    return Meta(
        words=len(vocabulary),
        longest=settings.max_seq_length,
        most_masked=settings.max_predictions,
        layout=layouts.pop(),
        train=reports[0].samples,
        eval=reports[1].samples,
        train_tokens=reports[0].tokens,
        lengths=reports[0].lengths.tolist(),
        sha256={**reports[0].sha256, **reports[1].sha256, VOCAB_FILE: checksum(out / VOCAB_FILE)},
        source=source,
        settings=wanted,
    )
