"""From sentences to pre-training sequences: pairs, lengths and masks, as the reference draws them.

Every random number of a text part comes from one `random.Random(12345)`, drawn in the reference's order, so the same
text gives the reference's sequences, and its evaluation set. See mlcommons/training, create_pretraining_data.py.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random

import numpy as np

from mlperf_fast.errors import UserError
from mlperf_fast.workloads.bert.sequences import LONGEST, MOST_MASKED, Sequences, starts_of
from mlperf_fast.workloads.bert.wordpiece import Vocabulary

SEED = 12345
BLOCK = 4096  # lines that become ids at once

Document = list[list[int]]  # the ids of each sentence


@dataclass(frozen=True)
class Settings:
    """What the reference calls its flags; the defaults are the benchmark's."""

    max_seq_length: int = LONGEST
    max_predictions: int = MOST_MASKED
    masked_share: float = 0.15
    dupe_factor: int = 10
    short_seq_prob: float = 0.1
    seed: int = SEED


BENCHMARK = Settings()


def documents(lines: Iterable[str], vocabulary: Vocabulary) -> list[Document]:
    """Text of one sentence a line, articles apart by empty lines, as ids; without empty sentences and articles."""
    found: list[Document] = [[]]
    for block in blocks(lines):
        for line, ids in zip(block, vocabulary.encode(block), strict=True):
            if not line:
                found.append([])
            elif ids:
                found[-1].append(ids)
    return [document for document in found if document]


def blocks(lines: Iterable[str]) -> Iterator[list[str]]:
    block: list[str] = []
    for line in lines:
        block.append(line.strip())
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block


def create(articles: list[Document], vocabulary: Vocabulary, settings: Settings = BENCHMARK) -> Sequences:
    """All sequences of one text part in the reference's order. `articles` is shuffled in place, as it does.

    UserError for a part without text.
    """
    if not articles:
        raise UserError("no sentence in it, so no sequence comes of it")
    rng, collected = Random(settings.seed), Collected()
    shuffle(rng, articles)
    for _ in range(settings.dupe_factor):
        for number in range(len(articles)):
            for a, b, is_random in pairs(articles, number, settings, rng):
                tokens = [vocabulary.cls, *a, vocabulary.sep, *b, vocabulary.sep]
                masks = mask(tokens, len(a) + 1, vocabulary, settings, rng)
                collected.add(tokens, len(a) + 2, masks, is_random)
    order = list(range(len(collected.random_next)))
    shuffle(rng, order)
    return collected.sequences().take(np.array(order))


def pairs(
    articles: list[Document], number: int, settings: Settings, rng: Random
) -> Iterator[tuple[list[int], list[int], bool]]:
    """(A, B, whether B is from a random place) for one article. What B's place left unused of a chunk is used again."""
    article, most = articles[number], settings.max_seq_length - 3
    target = randint(rng, 2, most) if rng.random() < settings.short_seq_prob else most
    chunk: Document = []
    length = i = 0
    while i < len(article):
        chunk.append(article[i])
        length += len(article[i])
        if length >= target or i == len(article) - 1:
            of_a = randint(rng, 1, len(chunk) - 1) if len(chunk) > 1 else 1
            a = [token for sentence in chunk[:of_a] for token in sentence]
            # For a chunk of one sentence no number is drawn here.
            is_random = len(chunk) == 1 or rng.random() < 0.5
            if is_random:
                b = random_text(articles, number, target - len(a), rng)
                i -= len(chunk) - of_a
            else:
                b = [token for sentence in chunk[of_a:] for token in sentence]
            truncate(a, b, most, rng)
            yield a, b, is_random
            chunk, length = [], 0
        i += 1


def random_text(articles: list[Document], number: int, wanted: int, rng: Random) -> list[int]:
    """Sentences from a random place on of an article, `wanted` tokens or what it has; of another one in 10 tries."""
    for _ in range(10):
        other = randint(rng, 0, len(articles) - 1)
        if other != number:
            break
    found: list[int] = []
    for sentence in articles[other][randint(rng, 0, len(articles[other]) - 1) :]:
        found += sentence
        if len(found) >= wanted:
            break
    return found


def truncate(a: list[int], b: list[int], most: int, rng: Random) -> None:
    """Shortens the longer of the two, at a random end, token by token until both fit."""
    cuts = [[0, len(a)], [0, len(b)]]
    for _ in range(len(a) + len(b) - most):
        longer = cuts[0] if cuts[0][1] - cuts[0][0] > cuts[1][1] - cuts[1][0] else cuts[1]
        if rng.random() < 0.5:
            longer[0] += 1
        else:
            longer[1] -= 1
    for tokens, (start, end) in zip((a, b), cuts, strict=True):
        tokens[:] = tokens[start:end]


def mask(
    tokens: list[int], middle: int, vocabulary: Vocabulary, settings: Settings, rng: Random
) -> list[tuple[int, int]]:
    """Masks 15 % of `tokens` in place; (position, token that was there) in ascending order.

    Any token but [CLS] and the two [SEP], at `middle` and the end, may be chosen. Of the chosen, 80 % become [MASK],
    10 % stay, 10 % become any word of the vocabulary. 15 % is of all tokens, rounded half to even.
    """
    candidates = [*range(1, middle), *range(middle + 1, len(tokens) - 1)]
    shuffle(rng, candidates)
    count = min(settings.max_predictions, max(1, round(len(tokens) * settings.masked_share)))
    chosen = []
    for position in candidates[:count]:
        chosen.append((position, tokens[position]))
        if rng.random() < 0.8:
            tokens[position] = vocabulary.mask
        elif rng.random() >= 0.5:
            tokens[position] = randint(rng, 0, len(vocabulary) - 1)
    chosen.sort()
    return chosen


# Python promises the same numbers from the same seed of `random()` alone. These are its randint and shuffle of 3.2 to
# 3.14, written down: data must not change with the interpreter. They are twice as fast besides.


def randint(rng: Random, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    n = high - low + 1
    bits = n.bit_length()
    r = rng.getrandbits(bits)
    while r >= n:
        r = rng.getrandbits(bits)
    return low + r


def shuffle(rng: Random, items: list) -> None:
    getrandbits = rng.getrandbits
    for i in range(len(items) - 1, 0, -1):
        bits = (i + 1).bit_length()
        j = getrandbits(bits)
        while j > i:
            j = getrandbits(bits)
        items[i], items[j] = items[j], items[i]


class Collected:
    """Sequences one after the other, in two bytes a token."""

    def __init__(self) -> None:
        self.tokens, self.positions, self.labels = array("h"), array("h"), array("h")
        self.lengths, self.masked, self.first, self.random_next = array("h"), array("h"), array("h"), array("b")

    def add(self, tokens: list[int], first: int, masks: list[tuple[int, int]], is_random: bool) -> None:
        """`first` tokens are of segment 0."""
        self.tokens.extend(tokens)
        self.positions.extend([position for position, _ in masks])
        self.labels.extend([label for _, label in masks])
        self.lengths.append(len(tokens))
        self.masked.append(len(masks))
        self.first.append(first)
        self.random_next.append(is_random)

    def sequences(self) -> Sequences:
        def flat(values: array) -> np.ndarray:
            return np.array(values, dtype=f"i{values.itemsize}")

        return Sequences(
            flat(self.tokens), starts_of(flat(self.lengths)), flat(self.first), flat(self.positions),
            flat(self.labels), starts_of(flat(self.masked)), flat(self.random_next),
        )  # fmt: skip
