"""Pre-training sequences as flat arrays without padding: what all file formats are read into and written from."""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

LONGEST = 512  # tokens of a sequence
MOST_MASKED = 76  # masked tokens of a sequence


@dataclass(frozen=True, eq=False)
class Sequences:
    """n sequences of T tokens, M of them masked, one behind the other.

    A sequence is [CLS] A [SEP] B [SEP]; its segment ids are 0 up to and with the first [SEP], and 1 from there on.
    """

    tokens: np.ndarray  # int16 [T], with [MASK] or another word where a token is masked
    starts: np.ndarray  # int64 [n+1]: sequence i is tokens starts[i] .. starts[i+1]-1
    first: np.ndarray  # int16 [n]: tokens of segment 0
    positions: np.ndarray  # int16 [M]: place in its own sequence of each masked token, ascending
    labels: np.ndarray  # int16 [M]: the token that was there
    mask_starts: np.ndarray  # int64 [n+1]: the masked tokens of sequence i are mask_starts[i] .. mask_starts[i+1]-1
    random_next: np.ndarray  # int8 [n]: 1 where B doesn't follow A in the text, the next-sentence label

    def __len__(self) -> int:
        return len(self.first)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n], tokens of each sequence."""
        return np.diff(self.starts)

    @property
    def masked(self) -> np.ndarray:
        """int64 [n], masked tokens of each sequence."""
        return np.diff(self.mask_starts)

    def take(self, order: np.ndarray) -> "Sequences":
        """The sequences with the numbers `order` (int64 [k]), in this order."""
        tokens, starts = ranges(self.starts, order)
        masks, mask_starts = ranges(self.mask_starts, order)
        return Sequences(
            self.tokens[tokens], starts, self.first[order], self.positions[masks], self.labels[masks], mask_starts,
            self.random_next[order],
        )  # fmt: skip

    def segments(self) -> np.ndarray:
        """int8 [T], the segment id of each token."""
        place = np.arange(len(self.tokens)) - np.repeat(self.starts[:-1], self.lengths)
        return (place >= np.repeat(self.first, self.lengths)).astype(np.int8)

    def same(self, other: "Sequences") -> bool:
        return all(np.array_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))


def ranges(starts: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(indices [sum of lengths], starts [k+1]) that pick the runs starts[i] .. starts[i+1]-1 for i of `order`."""
    lengths = (starts[1:] - starts[:-1])[order]
    new = starts_of(lengths)
    return np.arange(new[-1]) + np.repeat(starts[:-1][order] - new[:-1], lengths), new


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """int64 [n+1]: where each of n runs begins, and the end of the last."""
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def joined(parts: Iterable[Sequences]) -> Sequences:
    """All sequences of all parts, in their order."""
    several = list(parts)

    def flat(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in several])

    return Sequences(
        flat("tokens"),
        starts_of(np.concatenate([part.lengths for part in several])),
        flat("first"),
        flat("positions"),
        flat("labels"),
        starts_of(np.concatenate([part.masked for part in several])),
        flat("random_next"),
    )


EMPTY = Sequences(
    *(np.zeros(n, dtype) for n, dtype in (
        (0, np.int16), (1, np.int64), (0, np.int16), (0, np.int16), (0, np.int16), (1, np.int64), (0, np.int8),
    ))
)  # fmt: skip


def find_fault(s: Sequences, words: int, longest: int = LONGEST, most_masked: int = MOST_MASKED) -> str | None:
    """The first sequence that no training step could take, as "row 3: what is wrong"; None if all are good.

    `words` is the size of the vocabulary. Rows count from 0.
    """
    if len(s) == 0:
        return "no sequences"
    lengths, masked = s.lengths, s.masked
    found: list[tuple[int, str]] = []

    def first_of(bad: np.ndarray, starts: np.ndarray | None, what) -> None:
        if bad.any():
            at = int(np.argmax(bad))
            row = at if starts is None else int(np.searchsorted(starts, at, side="right")) - 1
            found.append((row, what(at)))

    first_of(lengths < 1, None, lambda row: "a sequence without tokens")
    first_of(lengths > longest, None, lambda row: f"{lengths[row]} tokens, but {longest} are the most")
    first_of(masked < 1, None, lambda row: "no masked position, so nothing to predict")
    first_of(masked > most_masked, None, lambda row: f"{masked[row]} masked positions, but {most_masked} are the most")
    first_of((s.tokens < 0) | (s.tokens >= words), s.starts, lambda at: word_fault("id", s.tokens[at], words))
    first_of((s.labels < 0) | (s.labels >= words), s.mask_starts, lambda at: word_fault("label", s.labels[at], words))
    room = np.repeat(lengths, masked)
    first_of(
        (s.positions < 0) | (s.positions >= room), s.mask_starts,
        lambda at: f"masked position {s.positions[at]} in a sequence of {room[at]} tokens",
    )  # fmt: skip
    ascending = np.ones(len(s.positions), dtype=bool)
    ascending[1:] = np.diff(s.positions) > 0
    ascending[s.mask_starts[:-1][masked > 0]] = True
    first_of(~ascending, s.mask_starts, lambda at: f"masked position {s.positions[at]} isn't above the one before it")
    first_of((s.first < 1) | (s.first > lengths), None, lambda row: f"{s.first[row]} tokens of segment 0")
    first_of(
        (s.random_next < 0) | (s.random_next > 1), None,
        lambda row: f"next-sentence label {s.random_next[row]}: expected 0 or 1",
    )  # fmt: skip
    if not found:
        return None
    row, what = min(found, key=lambda fault: fault[0])
    return f"row {row}: {what}"


def word_fault(kind: str, value: object, words: int) -> str:
    return f"{kind} {value}, but the vocabulary has the ids 0 to {words - 1}"
