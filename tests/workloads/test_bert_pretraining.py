"""Words to ids, and sentences to sequences: the reference's, example by example, from the reference's seed."""

import hashlib
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'mlperf_fast[bert]'")

import bert_text

from mlperf_fast.errors import UserError
from mlperf_fast.workloads.bert import pretraining, wordpiece
from mlperf_fast.workloads.bert.pretraining import Settings

TESTS = str(Path(__file__).parents[1])


@pytest.fixture(scope="module")
def vocabulary():
    return wordpiece.Vocabulary(bert_text.words())


# Words ----------------------------------------------------------------------------------------------------------------


def slow_ids(line, words):
    """BERT's uncased tokeniser, character by character."""
    ids = {word: i for i, word in enumerate(words)}
    spaced = ""
    for c in line:
        kind, code = unicodedata.category(c), ord(c)
        if c in "\t\n\r" or kind == "Zs":
            spaced += " "
        elif kind in ("Cc", "Cf") or code == 0xFFFD:
            continue
        elif any(a <= code <= b for a, b in wordpiece.CJK):
            spaced += f" {c} "
        else:
            spaced += c
    out = []
    for word in spaced.split():
        parts, fresh = [], True
        for c in unicodedata.normalize("NFD", word.lower()):
            if unicodedata.category(c) == "Mn":
                continue
            if unicodedata.category(c)[0] == "P" or c in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~":
                parts.append(c)
                fresh = True
            elif fresh:
                parts.append(c)
                fresh = False
            else:
                parts[-1] += c
        for part in " ".join(parts).split():
            start, pieces = 0, []
            while start < len(part) <= 200:
                ends = [e for e in range(len(part), start, -1) if ("##" * (start > 0)) + part[start:e] in ids]
                if not ends:
                    break
                pieces.append(ids[("##" * (start > 0)) + part[start : ends[0]]])
                start = ends[0]
            out += pieces if start == len(part) else [ids["[UNK]"]]
    return out


ODD = [
    "Ba KELI, mo-nu: 3.5% of it's",
    "",
    "   ",
    "bakéli naïve ÅNGSTRÖM ǅ ß İstanbul ı",
    "ba\u00adke\u200bli\u0000mo\ufffd",
    "ΟΔΟΣ ΟΔΟΣ, Σ",
    "中文ba字",
    "ba\u2028ke\u2029li ba\u000bke ba\u0085ke",
    "a" * 200,
    "b" * 201,
    "\ue000ba ba\ue000",
    "🥰ba 🤗",
    "«ba»—„ke“…",
    "ba\u3000ke\u1680li\u180emo",
    "[CLS] [MASK] [unused1] ##ba",
    "a\u0301b\u0323",
    "ﬁ ½ ² №",
    "ba$ke+li<mo>",
]


def test_ids_are_the_references(vocabulary):
    words = bert_text.words()
    rng = random.Random(5)
    random_lines = ["".join(chr(rng.choice([rng.randrange(0x250), rng.randrange(0x3000), rng.randrange(97, 123), 32]))
                            for _ in range(30)) for _ in range(300)]  # fmt: skip
    checked = ODD + random_lines + bert_text.lines()
    assert vocabulary.encode(checked) == [slow_ids(line, words) for line in checked]


def test_characters_that_the_library_may_split_are_split_as_the_reference_splits_them(vocabulary):
    """Each that the pattern lets through, alone, within a word, doubled, after a capital."""
    tokenizer, seen = vocabulary._lines, 0
    for code in range(0x3000):
        c = chr(code)
        if wordpiece.ALIKE.fullmatch(c):
            seen += 1
            for line in (c, f"a{c}b", f"{c}{c} x{c}", f"A {c}B"):
                split = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(line))
                assert [word for word, _ in split] == wordpiece.basic_words(line), hex(code)
    assert seen > 500


def test_a_trained_vocabulary_is_the_same_in_every_process(tmp_path):
    code = (
        "import bert_text; from mlperf_fast.workloads.bert.wordpiece import train_vocabulary;"
        "v = train_vocabulary(bert_text.lines, 200); print(v.sha256(), len(v), *v.words[:6])"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={"PYTHONPATH": TESTS, "PYTHONHASHSEED": seed}).stdout for seed in "12"]  # fmt: skip
    assert runs[0] == runs[1]
    assert runs[0].split()[1:] == ["200", *bert_text.SPECIAL, ","]
    trained = wordpiece.train_vocabulary(bert_text.lines, 200)
    wordpiece.write_vocabulary(tmp_path / "vocab.txt", trained)
    assert wordpiece.read_vocabulary(tmp_path / "vocab.txt").words == trained.words
    lines = [line for line in bert_text.lines() if line]
    unknown = sum(ids.count(trained.unk) for ids in trained.encode(lines))
    assert unknown == 0, "a vocabulary knows the words that it was trained on"
    assert sum(map(len, trained.encode(lines))) < sum(len(line.replace(" ", "")) for line in lines) / 2


def test_equally_frequent_pieces_are_joined_in_the_same_order_each_time():
    """The trainer's own numbers differ from call to call: of 8 vocabularies it made of this text no two were equal."""
    letters = np.random.default_rng(3).integers(0, 26, (400, 7))
    lines = [" ".join("".join(map(chr, row + ord("a"))) for row in letters[i : i + 8]) for i in range(0, 400, 8)]
    assert len({wordpiece.train_vocabulary(lambda: lines, 600).sha256() for _ in range(8)}) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "vocab.txt isn't there: the benchmark's has 30,522 words"),
        (b"a\nb\n", r"2 words, but \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\] not among them"),
        (b"\xff\xfe", "not a vocabulary"),
        ("\n".join([*bert_text.SPECIAL, *map(str, range(40_000))]).encode(), "40,005 words; ids are stored in 16 bits"),
    ],
)
def test_what_is_no_vocabulary(tmp_path, content, message):
    if content is not None:
        (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        wordpiece.read_vocabulary(tmp_path / "vocab.txt")


def test_a_vocabulary_is_read_as_the_reference_reads_it(tmp_path):
    words = [*bert_text.SPECIAL, " a ", "b", "a", "\u2028x", ""]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", newline="")
    assert wordpiece.read_vocabulary(tmp_path / "vocab.txt").words == [*bert_text.SPECIAL, "a", "b", "x", ""]


# Sequences ------------------------------------------------------------------------------------------------------------


def examples(s):
    """(ids, segment ids, masked positions, labels, next-sentence label) of each sequence."""
    segments = s.segments()
    for i in range(len(s)):
        a, b, c, d = *s.starts[i : i + 2], *s.mask_starts[i : i + 2]
        yield (s.tokens[a:b].tolist(), segments[a:b].tolist(), s.positions[c:d].tolist(), s.labels[c:d].tolist(),
               int(s.random_next[i]))  # fmt: skip


@pytest.mark.parametrize(
    ("seed", "articles", "longest", "most_masked", "dupes", "count", "checksum"),
    [
        (7, 40, 512, 76, 10, 865, "92aa0f373619e2e53d23d1582235686e"),
        (7, 40, 64, 10, 3, 716, "c11175beaf1b861905062649949cb1c4"),
        (8, 1, 512, 76, 10, 10, "9df16954bc755387139659a37e07f212"),
        (8, 1, 64, 10, 3, 3, "c1cc24d0f043b473ba49dbce1086d302"),
        (9, 3, 512, 76, 10, 69, "d53dfec7a5a863ce1990b7042d86e8a3"),
        (9, 3, 64, 10, 3, 69, "6a7b419cad08dcb418ce2e8c1fcf03ae"),
    ],
)
def test_the_examples_of_the_references_own_script(
    vocabulary, seed, articles, longest, most_masked, dupes, count, checksum
):
    """The checksums were made with the reference's create_pretraining_data.py and tokenization.py from this text."""
    documents = pretraining.documents(bert_text.lines(articles, seed), vocabulary)
    made = pretraining.create(documents, vocabulary, Settings(longest, most_masked, dupe_factor=dupes))
    digest = hashlib.md5()
    for example in examples(made):
        digest.update(repr(example).encode())
    assert (len(made), digest.hexdigest()) == (count, checksum)


def slow_examples(text, words, longest, most_masked, dupes):
    """The algorithm as its description has it, on words, with random.Random's own methods."""
    rng = random.Random(12345)
    names = list(words)
    articles = [[]]
    for line in text:
        if line == "":
            articles.append([])
        elif slow_ids(line, words):
            articles[-1].append([names[i] for i in slow_ids(line, words)])
    articles = [article for article in articles if article]
    rng.shuffle(articles)
    made = []
    for _ in range(dupes):
        for me, article in enumerate(articles):
            goal = longest - 3
            if rng.random() < 0.1:
                goal = rng.randint(2, longest - 3)
            at, chunk = 0, []
            while at < len(article):
                chunk.append(article[at])
                if at + 1 == len(article) or sum(map(len, chunk)) >= goal:
                    cut = rng.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
                    a = [token for part in chunk[:cut] for token in part]
                    if len(chunk) == 1 or rng.random() < 0.5:
                        other = me
                        for _ in range(10):
                            other = rng.randint(0, len(articles) - 1)
                            if other != me:
                                break
                        b = []
                        for sentence in articles[other][rng.randint(0, len(articles[other]) - 1) :]:
                            b = b + sentence
                            if len(b) >= goal - len(a):
                                break
                        label, at = 1, at - (len(chunk) - cut)
                    else:
                        b, label = [token for part in chunk[cut:] for token in part], 0
                    while len(a) + len(b) > longest - 3:
                        which = a if len(a) > len(b) else b
                        which.pop(0 if rng.random() < 0.5 else -1)
                    tokens = ["[CLS]", *a, "[SEP]", *b, "[SEP]"]
                    places = [i for i, token in enumerate(tokens) if token not in ("[CLS]", "[SEP]")]
                    rng.shuffle(places)
                    truth = list(tokens)
                    places = places[: min(most_masked, max(1, round(0.15 * len(tokens))))]
                    for place in places:
                        if rng.random() < 0.8:
                            tokens[place] = "[MASK]"
                        elif rng.random() < 0.5:
                            pass
                        else:
                            tokens[place] = names[rng.randint(0, len(names) - 1)]
                    ids = [names.index(token) for token in tokens]
                    segments = [0] * (len(a) + 2) + [1] * (len(b) + 1)
                    made.append((ids, segments, sorted(places), [names.index(truth[p]) for p in sorted(places)], label))
                    chunk = []
                at += 1
    rng.shuffle(made)
    return made


@pytest.mark.parametrize(("longest", "most_masked", "dupes", "text_seed"), [(128, 20, 4, 1), (48, 3, 2, 2)])
def test_the_order_of_the_draws(vocabulary, longest, most_masked, dupes, text_seed):
    text = bert_text.lines(12, text_seed)
    documents = pretraining.documents(text, vocabulary)
    made = pretraining.create(documents, vocabulary, Settings(longest, most_masked, dupe_factor=dupes))
    assert list(examples(made)) == slow_examples(text, bert_text.words(), longest, most_masked, dupes)


def test_random_numbers_are_pythons_own():
    mine, pythons = random.Random(3), random.Random(3)
    for n in [*range(1, 70), 509, 2**20, 30_522]:
        assert pretraining.randint(mine, 5, 4 + n) == pythons.randint(5, 4 + n)
        shuffled, items = list(range(n % 600)), list(range(n % 600))
        pretraining.shuffle(mine, shuffled)
        pythons.shuffle(items)
        assert shuffled == items
    assert mine.getstate() == pythons.getstate()


def test_masks_have_the_papers_shares(vocabulary):
    documents = pretraining.documents(bert_text.lines(60), vocabulary)
    made = pretraining.create(documents, vocabulary, Settings())
    assert made.tokens.dtype == made.labels.dtype == np.int16
    at = np.repeat(made.starts[:-1], made.masked) + made.positions
    now, was = made.tokens[at], made.labels
    n = len(was)
    # Three standard deviations; a random word of 300 is the old one in a few of a hundred.
    for share, found in ((0.8, (now == vocabulary.mask).mean()), (0.1, (now == was).mean())):
        assert abs(found - share) < 3 * np.sqrt(share * (1 - share) / n) + 0.002
    assert abs(n / len(made.tokens) - 0.15) < 0.003
    assert not np.isin(was, [vocabulary.cls, vocabulary.sep]).any()
    assert 0.5 < made.random_next.mean() < 0.75  # more than half: chunks of one sentence have no next one
    with pytest.raises(UserError, match="no sentence in it"):
        pretraining.create([], vocabulary)
