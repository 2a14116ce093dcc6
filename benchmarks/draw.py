"""Made-up ids. Needs numpy alone: competitors in other environments import it too, so that all get the same ids."""

from collections.abc import Sequence

import numpy as np


def draw_ids(rows: Sequence[int], batch: int, hot: int, spread: str, seed: int) -> np.ndarray:
    """Table-local ids int32 [batch, tables, hot]: `uniform`, or `zipf` (exponent 1.05) under a table's permutation."""
    draw = np.random.default_rng(seed)
    columns = []
    for count in rows:
        if spread == "uniform":
            ids = draw.integers(count, size=(batch, hot))
        else:
            weights = np.arange(1, count + 1) ** -1.05
            ranks = np.searchsorted(np.cumsum(weights / weights.sum())[:-1], draw.random((batch, hot)))
            ids = np.random.default_rng(count).permutation(count)[ranks]
        columns.append(ids)
    return np.stack(columns, axis=1).astype(np.int32)
