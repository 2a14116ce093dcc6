"""In which order an epoch visits its batches: a pure function of the run's seed, the same on every rank."""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, odd


def permutation(n: int, *key: int) -> np.ndarray:
    """A uniformly random order of 0..n-1, int64 [n], that depends on `n` and `key` (integers >= 0) alone.

    It sorts n random 64-bit numbers. The raw stream of a NumPy bit generator never changes between releases, while
    `Generator.permutation` may, so a run resumes in the same order under another NumPy too.
    """
    return np.argsort(random_bits(*key).random_raw(n), kind="stable")


def random_bits(*key: int) -> np.random.BitGenerator:
    """A stream of random 64-bit numbers for `key` (integers >= 0): `.random_raw(n)` gives the next n as uint64."""
    return np.random.Philox(np.random.SeedSequence(key))


def sample_bits(samples: np.ndarray, draws: int, *key: int) -> np.ndarray:
    """Random 64-bit numbers of each sample, uint64 [n, draws], that depend on its number and `key` alone.

    Who draws them, in which order and with how many neighbours doesn't matter. Each sample has a SplitMix64 stream.
    """
    start, salt = np.random.SeedSequence(key).generate_state(2, np.uint64)
    with np.errstate(over="ignore"):
        streams = mixed((samples.astype(np.uint64) + np.uint64(1)) * GOLDEN + start) ^ salt
        return mixed(streams[:, None] + GOLDEN * np.arange(1, draws + 1, dtype=np.uint64))


def mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: each bit of the result depends on each bit of x, uint64."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def batch_count(samples: int, batch_size: int) -> int:
    """How many batches hold `samples`, the last one short where the division leaves a rest."""
    return -(-samples // batch_size)


def batch_order(samples: int, batch_size: int, seed: int, epoch: int = 0) -> np.ndarray:
    """Numbers of the batches in the order of one epoch, int64 [batch_count]; batch i is samples i*B .. (i+1)*B."""
    return permutation(batch_count(samples, batch_size), seed, epoch)
