"""Made-up click logs in Criteo's text format, for tests."""

import gzip
import random

import numpy as np

RANGE = 10_000


def random_line(rng):
    integers = [rng.choice(["", "0", "7", "-1", "-12", str(rng.randrange(2**31)), "2147483647"]) for _ in range(13)]
    # From 3 to some thousand values a column, so that some are new on the last day.
    hashes = [f"{rng.randrange(3 ** (1 + column % 8)) * 2654435761 % 2**32:08x}" for column in range(26)]
    for column in range(26):
        if rng.random() < 0.1:
            hashes[column] = rng.choice(["", "A", "ff", "FFFFFFFF", "00000000"])
    return "\t".join([str(rng.randrange(2)), *integers, *hashes])


def random_days(rows, seed=0):
    rng = random.Random(seed)
    return [[random_line(rng) for _ in range(n)] for n in rows]


def write_raw(folder, days):
    folder.mkdir(exist_ok=True)
    for day, lines in enumerate(days):
        (folder / f"day_{day}.gz").write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode(), 1))
    return folder


def read_bin(path):
    return np.fromfile(path, dtype="<i4").reshape(-1, 40)
