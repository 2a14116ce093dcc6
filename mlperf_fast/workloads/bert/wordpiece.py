"""Words to ids: the uncased WordPiece of BERT, with a given vocab.txt or one that is trained here.

Hugging Face's `tokenizers` does the work. Where its Unicode tables or its lower-casing differ from the reference's
(private-use and newer characters, Greek's final sigma, some separators), words are split here by the reference's own
rules first. Which lines can't differ is a matter of their characters alone: ALIKE, tested one by one.
"""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mlperf_fast.data.files import replace_file
from mlperf_fast.errors import UserError

VOCAB_FILE = "vocab.txt"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# The benchmark's vocabulary: 30,522 words (bert-base-uncased).
BENCHMARK_WORDS = 30_522
BENCHMARK_MD5 = "64800d5d8528ce344256daf115d4965e"
LONGEST_WORD = 200  # characters; longer ones are [UNK]

# ASCII without control characters, Latin letters, dashes, quotes, the ellipsis.
ALIKE = re.compile("[\t\r\n\x20-\x7e\xa0-\xac\xae-\u024f\u2010-\u2027]*")
CJK = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class Vocabulary:
    """The words of a vocab.txt by number, and the text to ids with them."""

    def __init__(self, words: Sequence[str]):
        self.words = list(words)
        self.ids = {word: i for i, word in enumerate(words)}
        self.pad, self.unk, self.cls, self.sep, self.mask = (self.ids[word] for word in SPECIAL)
        tokenizers = import_tokenizers()
        model = tokenizers.models.WordPiece(self.ids, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD)
        self._lines, self._words = tokenizers.Tokenizer(model), tokenizers.Tokenizer(model)
        self._lines.normalizer = bert_normalizer(tokenizers)
        self._lines.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        self._words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """The ids of each line, without [CLS] and [SEP]; an empty list for a line without words."""
        alike = [ALIKE.fullmatch(line) is not None for line in lines]
        encodings = iter(self._lines.encode_batch_fast([line for line, a in zip(lines, alike, strict=True) if a]))
        split = [" ".join(basic_words(line)) for line, a in zip(lines, alike, strict=True) if not a]
        others = iter(self._words.encode_batch_fast(split))
        return [next(encodings if a else others).ids for a in alike]

    def sha256(self) -> str:
        return hashlib.sha256("".join(f"{word}\n" for word in self.words).encode()).hexdigest()


def import_tokenizers():
    # Its threads must not start in a process that forks later; ours are enough.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            "text becomes ids with the package tokenizers: install it with `pip install 'mlperf_fast[bert]'`"
        ) from None
    return tokenizers


def bert_normalizer(tokenizers):
    return tokenizers.normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True
    )


def read_vocabulary(path: Path) -> Vocabulary:
    """A vocab.txt: one word a line, the line's number is the id. UserError for what can't be one."""
    try:
        # As the reference reads it: stripped, later repeats of a word don't count.
        lines = path.read_bytes().decode().removesuffix("\n").split("\n")
        words = list(dict.fromkeys(line.strip() for line in lines))
    except FileNotFoundError:
        raise UserError(
            f"{path} isn't there: the benchmark's has {BENCHMARK_WORDS:,} words and the md5 {BENCHMARK_MD5}. Get it "
            "beside the initial checkpoint, or have a vocabulary trained"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a vocabulary ({error}): expected one word a line, in UTF-8") from None
    missing = [word for word in SPECIAL if word not in words]
    if missing:
        raise UserError(f"{path}: {len(words):,} words, but {', '.join(missing)} not among them: not BERT's vocabulary")
    if len(words) > 2**15:
        raise UserError(f"{path}: {len(words):,} words; ids are stored in 16 bits, which hold 32,768")
    return Vocabulary(words)


def train_vocabulary(lines: Callable[[], Iterable[str]], size: int) -> Vocabulary:
    """A vocabulary of up to `size` words for the text that each call of `lines` gives: always the same one.

    The trainer numbers what continues a word in the order in which a hash table of random seed lists the words, and of
    equally frequent pairs it joins the one with the lower numbers. So single characters and continuations are counted
    and numbered here. What it joined is sorted behind the special tokens, by length and alphabet.
    """
    if size < 64 or size > 2**15:
        raise UserError(f"a vocabulary of {size} words: expected 64 to 32,768")
    tokenizers = import_tokenizers()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = bert_normalizer(tokenizers)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for line in lines():
        counts.update(tokenizer.normalizer.normalize_str(line))
    # A rare character takes no place from words: at most an eighth, each also as the continuation of a word.
    common = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))[: size // 8]
    continuations = sorted(f"##{c}" for c in common if continues(tokenizer, c))
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=[*SPECIAL, *continuations], initial_alphabet=common,
        limit_alphabet=len(common), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(lines(), trainer)
    pieces = set(tokenizer.get_vocab()) - set(SPECIAL)
    return Vocabulary([*SPECIAL, *sorted(pieces, key=lambda p: (len(p.removeprefix("##")), p.startswith("##"), p))])


def continues(tokenizer, character: str) -> bool:
    """Whether it can be part of a word that began before it: neither punctuation nor a word of its own."""
    text = tokenizer.normalizer.normalize_str(f"a{character}")
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(text)) == 1


def write_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    replace_file(path, "".join(f"{word}\n" for word in vocabulary.words).encode())


def basic_words(text: str) -> list[str]:
    """The reference's words of a line: cleaned, spaced, lower case without accents, punctuation apart."""
    words = []
    for word in "".join(map(cleaned, text)).split():
        plain = (char for char in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(char) != "Mn")
        words += "".join(f" {char} " if is_punctuation(char) else char for char in plain).split()
    return words


def cleaned(char: str) -> str:
    code, category = ord(char), unicodedata.category(char)
    if char in "\t\n\r" or category == "Zs":
        return " "
    if code in (0, 0xFFFD) or category in ("Cc", "Cf"):
        return ""
    return f" {char} " if any(first <= code <= last for first, last in CJK) else char


def is_punctuation(char: str) -> bool:
    # All of ASCII that is no letter, digit, space or control character; $, +, < … are no P* in Unicode.
    ascii_sign = "!" <= char <= "/" or ":" <= char <= "@" or "[" <= char <= "`" or "{" <= char <= "~"
    return ascii_sign or unicodedata.category(char).startswith("P")
