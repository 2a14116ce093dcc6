"""What a data set of sequences holds, written down in meta.json, and the check of it by content."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlperf_fast.data.files import checksum, replace_file
from mlperf_fast.data.order import mixed
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.bert import shards
from mlperf_fast.workloads.bert.sequences import LONGEST, MOST_MASKED, Sequences, find_fault
from mlperf_fast.workloads.bert.wordpiece import VOCAB_FILE, read_vocabulary

META_FILE = "meta.json"
TRAIN, EVAL = "train", "eval"
BINS = 8  # of the length histogram
# Fingerprints of all sequences are compared up to this many, of a fixed share of them beyond it.
FINGERPRINTS = 1 << 24
# Short articles give equal sequences by chance, with equal masks seldom. Of the benchmark's far fewer are.
MOST_DUPLICATES = 0.01
HOW_TO_MAKE = "Make one with `mlperf-fast prepare bert`"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Meta:
    """What a data set holds, known without opening its shards."""

    words: int  # of the vocabulary
    longest: int  # tokens that a sequence may have
    most_masked: int
    layout: str  # see shards.py
    train: Mapping[str, int]  # path of each shard, from the data set's folder or absolute -> its sequences
    eval: Mapping[str, int]
    train_tokens: int
    lengths: Sequence[int]  # training sequences by length, in BINS equal bins up to `longest`
    sha256: Mapping[str, str]  # of each shard and of vocab.txt
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # seed, segmenter, dupe_factor …

    @property
    def train_samples(self) -> int:
        return sum(self.train.values())

    @property
    def eval_samples(self) -> int:
        return sum(self.eval.values())


@dataclass
class Report:
    """What some shards hold."""

    samples: dict[str, int] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    tokens: int = 0
    masked: int = 0
    random_next: int = 0
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    layouts: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def read_meta(folder: str | os.PathLike) -> Meta:
    """The data set's sizes from its meta.json; the shards are looked at, not opened. UserError where one is missing."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such data set folder. {HOW_TO_MAKE}")
    try:
        meta = Meta(**json.loads((folder / META_FILE).read_text()))
        counts = [*meta.train.values(), *meta.eval.values(), meta.words, meta.longest, meta.most_masked]
        if not meta.train or not meta.eval or not all(type(count) is int and count > 0 for count in counts):
            raise TypeError("counts must be whole numbers above 0")
    except FileNotFoundError:
        raise UserError(f"{folder} holds no {META_FILE}. {HOW_TO_MAKE}") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / META_FILE}: not a {META_FILE} of this program ({error}). {HOW_TO_MAKE}") from None
    missing = [name for name in (*meta.train, *meta.eval) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: {missing[0]} is missing ({len(missing)} files are). {HOW_TO_MAKE}")
    return meta


def write_meta(folder: Path, meta: Meta) -> None:
    replace_file(folder / META_FILE, json.dumps(asdict(meta), indent=1).encode())


def verify(folder: str | os.PathLike, progress: Say = lambda line: None) -> Meta:
    """Reads a data set whole and compares it with its meta.json; UserError lists every problem.

    Checked: every sequence (ids in the vocabulary, lengths, masked positions, labels), counts, lengths, checksums, one
    layout, no two shards with the same sequences, few sequences twice.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    problems = []
    vocabulary = folder / VOCAB_FILE
    if VOCAB_FILE in meta.sha256:
        words = len(read_vocabulary(vocabulary))
        if words != meta.words or checksum(vocabulary) != meta.sha256[VOCAB_FILE]:
            problems.append(f"{VOCAB_FILE}: {words:,} words, but not the ones that {META_FILE} tells of")
    for part, names in ((TRAIN, meta.train), (EVAL, meta.eval)):
        report = inspect(folder, names, meta.words, meta.longest, meta.most_masked, progress)
        problems += report.problems
        for name, count in names.items():
            if report.samples.get(name, count) != count:
                problems.append(f"{name}: {report.samples[name]:,} sequences instead of {count:,}")
            elif name in report.sha256 and report.sha256[name] != meta.sha256.get(name):
                problems.append(f"{name}: its checksum isn't the one in {META_FILE}")
        if report.layouts - {meta.layout}:
            problems.append(f"{part}: layout {', '.join(sorted(report.layouts))}, but {META_FILE} says {meta.layout}")
        if part == TRAIN and not report.problems and report.lengths.tolist() != list(meta.lengths):
            problems.append(f"{part}: lengths {report.lengths.tolist()} instead of {list(meta.lengths)}")
        progress(describe(part, report, meta.longest))
    if problems:
        raise UserError(f"{folder} is no valid data set:\n  " + "\n  ".join(problems) + f"\n{HOW_TO_MAKE}")
    return meta


def inspect(
    folder: Path, names: Sequence[str] | Mapping[str, int], words: int, longest: int = LONGEST,
    most_masked: int = MOST_MASKED, progress: Say = lambda line: None,
) -> Report:  # fmt: skip
    """One pass over shards. Of each shard the first fault is reported; a shard that can't be read is one."""
    report, seen = Report(), Fingerprints()
    for number, name in enumerate(names, 1):
        path = folder / name
        try:
            report.layouts.add(shards.layout(path))
            s = shards.read_shard(path)
        except UserError as error:
            report.problems.append(str(error))
            continue
        if fault := find_fault(s, words, longest, most_masked):
            report.problems.append(f"{path}: {fault}")
            continue
        report.samples[name], report.sha256[name] = len(s), checksum(path)
        report.tokens += len(s.tokens)
        report.masked += len(s.positions)
        report.random_next += int(s.random_next.sum())
        report.lengths += np.bincount((s.lengths - 1) * BINS // longest, minlength=BINS)
        if same := seen.add(name, s):
            report.problems.append(f"{name}: the same sequences as in {same}: a shuffle that went wrong")
        if number % 100 == 0:
            progress(f"{number} of {len(names)} shards checked")
    if len(report.layouts) > 1:
        report.problems.append(f"{folder}: mixed layouts ({', '.join(sorted(report.layouts))}): keep one in a folder")
    if (share := seen.duplicates()) > MOST_DUPLICATES:
        report.problems.append(f"{share:.1%} of the sequences are there twice or more often: a shuffle that went wrong")
    return report


class Fingerprints:
    """64 bits of each sequence, to find shards, and sequences, that are there twice."""

    def __init__(self) -> None:
        self.shards: dict[int, str] = {}
        self.kept: list[np.ndarray] = []
        self.share = 1  # one in `share` is kept, by its own bits
        self.count = 0

    def add(self, name: str, s: Sequences) -> str | None:
        """The earlier shard that holds the same sequences in any order, if one does."""
        prints = fingerprints(s)
        whole = int(prints.sum())  # of uint64: the order doesn't matter
        if whole in self.shards:
            return self.shards[whole]
        self.shards[whole] = name
        self.kept.append(prints[prints % np.uint64(self.share) == 0])
        self.count += len(self.kept[-1])
        while self.count > FINGERPRINTS:
            self.share *= 2
            self.kept = [each[each % np.uint64(self.share) == 0] for each in self.kept]
            self.count = sum(map(len, self.kept))
        return None

    def duplicates(self) -> float:
        """The share of sequences that had been there before."""
        if not self.count:
            return 0.0
        return 1 - len(np.unique(np.concatenate(self.kept))) / self.count


def fingerprints(s: Sequences) -> np.ndarray:
    """uint64 [n], of each sequence's tokens and masks."""
    out = mixed(s.lengths.astype(np.uint64) << np.uint64(1) | s.random_next.astype(np.uint64))
    for salt, values, starts in (
        (1, s.tokens, s.starts),
        (2, s.labels, s.mask_starts),
        (3, s.positions, s.mask_starts),
    ):
        place = (np.arange(len(values)) - np.repeat(starts[:-1], np.diff(starts))).astype(np.uint64)
        key = values.astype(np.uint16).astype(np.uint64) << np.uint64(32) | place << np.uint64(8) | np.uint64(salt)
        out += np.add.reduceat(mixed(key), starts[:-1])
    return mixed(out)


def describe(part: str, report: Report, longest: int) -> str:
    n = sum(report.samples.values())
    if not n:
        return f"{part}: no sequences that can be read"
    step = longest / BINS
    shares = "  ".join(f"≤{step * (i + 1):.0f}: {count / n:.0%}" for i, count in enumerate(report.lengths))
    return (
        f"{part}: {n:,} sequences in {len(report.samples)} shards, {report.tokens / n:.1f} of {longest} tokens in the "
        f"mean, {report.masked / n:.1f} masked, {report.random_next / n:.1%} random next; lengths {shares}"
    )
