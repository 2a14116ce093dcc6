"""Nonsense articles and a vocabulary for them, the same each time: words of a few syllables, some out of vocabulary."""

import random

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SYLLABLES = ["ba", "ke", "li", "mo", "nu", "sta", "tri", "ver"]
ENDS = ["", "", "", "z", ",", "É"]


def words():
    """A vocabulary of 300 and some words, pieces and letters; z can't be written in it."""
    pairs = [a + b for a in SYLLABLES for b in SYLLABLES]
    letters = [chr(c) for c in range(ord("a"), ord("z"))]
    pieces = [*letters, *SYLLABLES, *pairs, *[a + b for a in pairs[:3] for b in SYLLABLES]]
    return [*SPECIAL, *".,!?'-", *"0123456789", *dict.fromkeys([*pieces, *("##" + piece for piece in pieces)])]


def lines(articles=40, seed=7):
    """One sentence a line, an empty line between articles; of very different lengths."""
    rng = random.Random(seed)
    out = []
    for _ in range(articles):
        for _ in range(rng.choice([1, 1, 2, 5, 12, 40])):
            sentence = [
                "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(1, 3)))
                + rng.choice(["", "", "", "z", ",", "É"])
                for _ in range(rng.choice([1, 3, 8, 20, 60]))
            ]
            out.append(" ".join(sentence).capitalize() + ".")
        out.append("")
    return out
