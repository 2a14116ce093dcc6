"""English Wikipedia from WikiExtractor's files to the reference's text: articles of one sentence a line, in parts.

The reference's six steps, byte for byte (mlcommons/training, retired_benchmarks/bert/cleanup_scripts):

    clean             drops titles and the markup that WikiExtractor left; one blank line before each article
    segment           one sentence a line
    split_articles    withholds test articles, drawn with a seed for each file
    gather            the training articles of consecutive files in parts of about 27 MB

What `make_text` writes is the layout of the published `results_text`: part-00000-of-00500 … , eval.txt, eval.md5.
"""

import hashlib
import io
import multiprocessing
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from mlperf_fast.data.files import replace_file, replaced
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.bert import sentences

SEED = 12345  # of the test articles and, later, of the examples: part of the data set, not of a run
TEST_ARTICLES = 10_000
PART_MB = 26.92
EVAL_FILE, EVAL_MD5_FILE = "eval.txt", "eval.md5"
BENCHMARK_EVAL_MD5 = "2a220f790517261547b1b45ed3ada07a"  # of the published eval.txt, 32,851,144 bytes

Say = Callable[[str], None]

CATEGORY = re.compile(r"\[\[Category:[^][]*\]\]")
# In this order; what follows sees what went before. Tags that aren't here stay, as in the reference.
LINKS = [(re.compile(pattern), new) for pattern, new in (
    *[(r"\[\[([^]|[]*)\]\]", r"\1")] * 2,
    *[(r"\[\[[^]|[]*\|([^]|[]*)\]\]", r"\1")] * 2,
    (r"\[\[:*[Ff]ile:[^][]*\]\]", ""),
    (r"\[\[[MmIi](?:edia|mage):[^][]*\]\]", ""),
    (r"\[([^]|[]*)\]", r"\1"),
    (r"\[\[[^][]*\]\]", ""),
)]  # fmt: skip
TAGS = [(re.compile(pattern), new) for pattern, new in (
    (r"<chem([^<]*)</chem>", r"\1"),
    (r"<ins([^<]*)</ins>", r"\1"),
    (r"<, ref [^<]*</ref>", ""),
    (r"<includeonly[^<]*</includeonly>", ""),
    (r"<graph[^<]*</graph>", ""),
    (r"<section[^\\]*/>", ""),
    (r"<meta[^\\]*/>", ""),
    (r"<hr[^\\]*/>", ""),
    (r"<gallery[^>]*>", ""),
    (r"<ref[^<]*</ref>", ""),
    (r"<ref[^>]*>", ""),
    (r"<http[^>]*>", ""),
    (r"<Ref[^>]*>", ""),
    (r"<mapframe [^/\\]*/>", ""),
    (r"<mapframe[^>]*>", ""),
    *((tag, "") for tag in ("</mapframe>", "<poem>", "</poem>", "<math>", "</math>", "<ref>", "</ref>")),
    (r"<div[^>]*>", ""),
    (r"</div[^>]*>", ""),
    *((tag, "") for name in ("sup", "br", "BR", "Br", "del", "nowiki", "NOWIKI", "onlyinclude", "includeonly", "small",
                             "chem", "noinclude", "gallery") for tag in (f"<{name}>", f"</{name}>")),
    *((tag, "") for tag in ("<graph>{", "<graph>", "}</graph>", "</graph>", "</references>")),
    (r"<poem [^>]*>", ""),
)]  # fmt: skip


# The steps on one file ----------------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """One WikiExtractor file without the lines of <doc …>, its title, </doc> and categories, and without markup."""
    lines, title = [], False
    for line in universal_lines(text):
        if title:
            title = False
        elif "<doc" in line:
            title = True
            lines.append("\n")
        elif "</doc>" not in line and len(line) > 1 and not CATEGORY.search(line):
            lines.append(without_markup(line.removesuffix("\n")) + "\n")
    return "".join(lines)


def without_markup(line: str) -> str:
    if "[" in line:
        for pattern, new in LINKS:
            line = pattern.sub(new, line)
    line = line.replace("alt=", "")
    if "<" in line:
        for pattern, new in TAGS:
            line = pattern.sub(new, line)
    return line


def segment(text: str, split: sentences.Split) -> str:
    """Cleaned text with one sentence a line and an empty line before each article and at the end."""
    out = []
    for line in universal_lines(text):
        if len(line) == 1:
            out.append("\n")
        out += [f"{sentence.strip()}\n" for sentence in split(line)]
    return "".join(out) + "\n"


def split_articles(text: str, count: int, seed: int) -> tuple[str, list[str]]:
    """(training text, `count` test articles) of one segmented file. UserError where it has too few articles."""
    articles = text.split("\n\n")
    if count > len(articles):
        raise UserError(f"{count} test articles are to be drawn from {len(articles)}: ask for fewer of them")
    rng, chosen = random.Random(seed), set[int]()
    while len(chosen) < count:
        chosen.add(int(rng.random() * len(articles)))
    train = "".join(f"{article}\n\n" for i, article in enumerate(articles) if i not in chosen)
    return train, [article for i, article in enumerate(articles) if i in chosen]


def articles_to_draw(file: int, files: int, total: int) -> int:
    """How many of `total` test articles the file number `file` of `files` gives."""
    return (file + 1) * total // files - file * total // files


def universal_lines(text: str) -> Iterator[str]:
    r"""Lines as Python's text files have them: \r\n and \r count as \n, other separators don't end a line."""
    return iter(io.StringIO(text, newline=None))


# The files ----------------------------------------------------------------------------------------------------------


def find_wiki_files(folder: Path) -> list[Path]:
    """AA/wiki_00 … as WikiExtractor names them, or wiki_00 … without folders, in the reference's order."""
    found = sorted(str(path) for path in (*folder.glob("*/wiki_??"), *folder.glob("wiki_??")) if path.is_file())
    if not found:
        raise UserError(
            f"{folder} holds no WikiExtractor files: expected AA/wiki_00, AA/wiki_01 … (or wiki_00 … in the folder)"
        )
    return [Path(path) for path in found]


def make_text(
    raw: Path,
    out: Path,
    *,
    test_articles: int = TEST_ARTICLES,
    part_mb: float = PART_MB,
    workers: int = 1,
    progress: Say = lambda line: None,
) -> str:
    """Writes parts, eval.txt and eval.md5 into `out`; returns the segmenter's name for the manifest.

    A file's result is kept in out/files until the parts are written: run again, finished files aren't done again. The
    same bytes come of any number of workers. UserError names the file at fault.
    """
    paths = find_wiki_files(raw)
    _, segmenter = sentences.english()
    work = out / "files"
    work.mkdir(parents=True, exist_ok=True)
    jobs = [(i, path, articles_to_draw(i, len(paths), test_articles)) for i, path in enumerate(paths)]
    left = [
        job for job in jobs if not (result(work, job[0], "test").exists() and result(work, job[0], "train").exists())
    ]
    convert = partial(convert_file, work)
    if workers > 1 and len(left) > 1:
        with multiprocessing.get_context("spawn").Pool(min(workers, len(left))) as pool:
            for done, _ in enumerate(pool.imap_unordered(convert, left), 1):
                say_sometimes(progress, done, len(left))
    else:
        for done, job in enumerate(left, 1):
            convert(job)
            say_sometimes(progress, done, len(left))
    write_test_articles(out, work, len(paths))
    parts = gather(out, work, paths, part_mb)
    progress(f"{out}: {len(parts)} parts of {len(paths)} files, {test_articles:,} test articles; {segmenter}")
    return segmenter


def say_sometimes(progress: Say, done: int, of: int) -> None:
    if done % 100 == 0 or done == of:
        progress(f"text: {done:,} of {of:,} files")


def result(work: Path, file: int, kind: str) -> Path:
    return work / f"{file:06d}.{kind}"


def convert_file(work: Path, job: tuple[int, Path, int]) -> None:
    """Steps 1 to 3 of one file. The test articles are written last, so both are there once they are."""
    file, path, count = job
    split, _ = sentences.english()
    try:
        train, test = split_articles(segment(clean(read_utf8(path)), split), count, SEED + 13 * file)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    checksums = [hashlib.md5(article.rstrip().encode()).hexdigest() for article in test]
    replace_file(result(work, file, "train"), train.encode())
    replace_file(result(work, file, "md5"), "".join(f"{checksum}\n" for checksum in checksums).encode())
    replace_file(result(work, file, "test"), "".join(f"{article}\n\n" for article in test).encode())


def read_utf8(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no UTF-8 at byte {error.start:,}: get the file again") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def write_test_articles(out: Path, work: Path, files: int) -> None:
    for name, kind in ((EVAL_FILE, "test"), (EVAL_MD5_FILE, "md5")):
        with replaced(out / name) as file:
            for i in range(files):
                file.write(result(work, i, kind).read_bytes())


def gather(out: Path, work: Path, paths: Sequence[Path], part_mb: float) -> list[Path]:
    """Puts the training text of consecutive files together; a part is full by the size of the original files."""
    groups: list[list[int]] = []
    size = 0
    for i, path in enumerate(paths):
        own = os.path.getsize(path)
        if not groups or part_mb * 2**20 < size + own:
            groups.append([])
            size = 0
        groups[-1].append(i)
        size += own
    parts = [out / f"part-{number:05d}-of-{len(groups):05d}" for number in range(len(groups))]
    for path, group in zip(parts, groups, strict=True):
        with replaced(path) as file:
            for i in group:
                text = result(work, i, "train").read_text(encoding="utf-8-sig")
                file.write((text[:-1] if text.endswith("\n\n") else text).encode())
    return parts
