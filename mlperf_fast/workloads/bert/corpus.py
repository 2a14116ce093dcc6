"""The demo's texts, small, made without a network: generated articles, or the English of Python's own documentation.

Both go the way of Wikipedia through `prepare`, into the benchmark's formats. Neither is the benchmark's data.

    generated   65 % of the sentences of their article's topic, six words of which one is very likely; 35 % one of
                five fixed sentences. A topic's words are learned quickly, the sentences slowly. The same bytes
                everywhere.
    english     pydoc_data.topics and the docstrings of the standard library (PSF licence): real sentences, technical.
                Another Python has other text: meta.json names the version.
"""

import ast
import os
import random
import re
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mlperf_fast.data.files import replace_file
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.bert.prepare import prepare
from mlperf_fast.workloads.bert.pretraining import Settings
from mlperf_fast.workloads.bert.text import EVAL_FILE
from mlperf_fast.workloads.bert.verify import META_FILE, Meta, read_meta
from mlperf_fast.workloads.bert.wordpiece import SPECIAL, VOCAB_FILE

SEED = 2022
GENERATED = "generated: topics and fixed sentences, version 1; not Wikipedia"
ENGLISH = "English of the documentation of Python {}.{}, version 1; not Wikipedia"
EVAL_SEQUENCES = 512

# Generated: of each article's sentences this share is of its topic.
TOPICS, TOPIC_SHARE = 60, 0.65
WORD_SHARES = (0.8, 0.08, 0.05, 0.04, 0.02, 0.01)
FIXED, FIXED_WORDS = 5, 6
ARTICLES, EVAL_ARTICLES = 1400, 140
SENTENCES = (1, 2, 4, 8, 16, 32)  # of an article, equally likely
GENERATED_SETTINGS = Settings(max_seq_length=64, max_predictions=10, dupe_factor=4)

# English: shorter paragraphs, and lines that look like code, are left out.
LEAST_WORDS = 8
ENGLISH_WORDS = 2048
ENGLISH_TEST_ARTICLES = 60
ENGLISH_SETTINGS = Settings(max_seq_length=128, max_predictions=20, dupe_factor=5)
NO_PROSE = {"encodings", "idlelib", "lib2to3", "pydoc_data", "test"}
CODE = re.compile(r">>>|\.\. |::|[-=~^*]{4}|[<>=]=|[{}\\|]|\w\(\w*\)|__")

Say = Callable[[str], None]


def demo_corpus(kind: str, out_folder: str | os.PathLike, progress: Say = lambda line: None) -> Meta:
    """The demo's data set of `kind`, generated or english, in `out_folder`: made there if it isn't yet.

    UserError if the folder holds something else, or where a package that `prepare` needs is missing.
    """
    if kind not in ("generated", "english"):
        raise UserError(f"there is no demo text {kind!r}: expected generated or english")
    source = GENERATED if kind == "generated" else ENGLISH.format(*sys.version_info[:2])
    out = Path(out_folder)
    if (out / META_FILE).is_file():
        meta = read_meta(out)
        if meta.source != source:
            raise UserError(f"{out} holds another data set ({meta.source}): choose another folder, or remove it")
        return meta
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-raw-", dir=out.parent) as raw:
        # The same text each time, so an interrupted `prepare` goes on, though this folder has another name.
        if kind == "generated":
            write_generated(Path(raw))
            settings, words = GENERATED_SETTINGS, None
        else:
            write_english(Path(raw))
            settings, words = ENGLISH_SETTINGS, ENGLISH_WORDS
        return prepare(
            raw, out, vocabulary=words, settings=settings, test_articles=ENGLISH_TEST_ARTICLES,
            eval_sequences=EVAL_SEQUENCES, source=source, progress=progress,
        )  # fmt: skip


# Generated ------------------------------------------------------------------------------------------------------------


def write_generated(folder: Path) -> None:
    """Text in the reference's layout, one part and eval.txt, and its vocabulary of whole words."""
    rng = random.Random(SEED)
    names = made_up_words(rng, TOPICS * len(WORD_SHARES) + FIXED * FIXED_WORDS)
    size = len(WORD_SHARES)
    topics = [names[i * size : (i + 1) * size] for i in range(TOPICS)]
    others = names[TOPICS * size :]
    fixed = [" ".join(others[i * FIXED_WORDS : (i + 1) * FIXED_WORDS]) for i in range(FIXED)]
    for name, count in (("part-00000-of-00001", ARTICLES), (EVAL_FILE, EVAL_ARTICLES)):
        articles = ("\n".join(article(rng, topics, fixed)) for _ in range(count))
        replace_file(folder / name, "".join(f"{each}\n\n" for each in articles).encode())
    replace_file(folder / VOCAB_FILE, "".join(f"{word}\n" for word in (*SPECIAL, *sorted(names))).encode())


def made_up_words(rng: random.Random, count: int) -> list[str]:
    """Words that can be spoken, all different."""
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = 2 + int(rng.random() * 2)
        words["".join(pick(rng, "bdfgklmnprstvz") + pick(rng, "aeiou") for _ in range(syllables))] = None
    return list(words)


def article(rng: random.Random, topics: Sequence[Sequence[str]], fixed: Sequence[str]) -> Iterator[str]:
    topic = pick(rng, topics)
    for _ in range(pick(rng, SENTENCES)):
        if rng.random() < TOPIC_SHARE:
            yield " ".join(drawn(rng, topic) for _ in range(4 + int(rng.random() * 5)))
        else:
            yield pick(rng, fixed)


def drawn(rng: random.Random, words: Sequence[str]) -> str:
    left = rng.random()
    for word, share in zip(words, WORD_SHARES, strict=True):
        left -= share
        if left < 0:
            return word
    return words[-1]


def pick(rng: random.Random, items: Sequence):
    """Of Python's random numbers only `random()` is promised to stay the same."""
    return items[int(rng.random() * len(items))]


# English --------------------------------------------------------------------------------------------------------------


def write_english(folder: Path) -> None:
    """Python's documentation in WikiExtractor's layout: an article for each topic, and for each module's docstrings."""
    from pydoc_data.topics import topics

    articles = [(name, paragraphs(topics[name])) for name in sorted(topics)]
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(path for path in (*root.glob("*.py"), *root.glob("*/*.py")) if path.parent.name not in NO_PROSE):
        text = [each for docstring in docstrings(path) for each in paragraphs(docstring)]
        articles.append((path.relative_to(root).with_suffix("").as_posix(), text))
    articles = [(name, text) for name, text in articles if len(text) > 1]
    (folder / "AA").mkdir()
    blocks = [f'<doc id="{i}" title="{name}">\n{name}\n\n' + "\n\n".join(text) + "\n</doc>\n"
              for i, (name, text) in enumerate(articles)]  # fmt: skip
    half = len(blocks) // 2
    for number, part in enumerate((blocks[:half], blocks[half:])):
        replace_file(folder / "AA" / f"wiki_{number:02d}", "".join(part).encode())


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a module, its classes and functions; none where the file can't be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def paragraphs(text: str) -> list[str]:
    """Prose, one paragraph a string: without headings, lists of signatures and code."""
    found = []
    for block in re.split(r"\n\s*\n", text):
        line = " ".join(block.split()).replace('"', "").replace("`", "").replace("*", "")
        words = line.split(" ")
        if len(words) >= LEAST_WORDS and line[0].isupper() and line[-1] in ".:" and not CODE.search(line):
            found.append(line)
    return found
