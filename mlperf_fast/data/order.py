"""In which order an epoch visits its batches: a pure function of the run's seed, the same on every rank."""

import numpy as np


def permutation(n: int, *key: int) -> np.ndarray:
    """A uniformly random order of 0..n-1, int64 [n], that depends on `n` and `key` (integers >= 0) alone.

    It sorts n random 64-bit numbers. The raw stream of a NumPy bit generator never changes between releases, while
    `Generator.permutation` may, so a run resumes in the same order under another NumPy too.
    """
    return np.argsort(random_bits(*key).random_raw(n), kind="stable")


def random_bits(*key: int) -> np.random.BitGenerator:
    """A stream of random 64-bit numbers for `key` (integers >= 0): `.random_raw(n)` gives the next n as uint64."""
    return np.random.Philox(np.random.SeedSequence(key))


def batch_count(samples: int, batch_size: int) -> int:
    """How many batches hold `samples`, the last one short where the division leaves a rest."""
    return -(-samples // batch_size)


def batch_order(samples: int, batch_size: int, seed: int, epoch: int = 0) -> np.ndarray:
    """Numbers of the batches in the order of one epoch, int64 [batch_count]; batch i is samples i*B .. (i+1)*B."""
    return permutation(batch_count(samples, batch_size), seed, epoch)
