"""The sizes that benchmarks measure, taken from the presets and the benchmark's own table sizes, and their inputs."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mlperf_fast.workloads.dlrm.presets import CRITEO_1TB_ROWS, PRESETS

from .draw import draw_ids

TABLES = 26
DENSE_FEATURES = 13
DIM = PRESETS["closed"]().model.dim  # columns of a table: 128

# What optimizers are measured on. Small tensors: call overhead decides. BERT-base with its heads, layer by layer as in
# BERT's reference, 110 M elements: memory bandwidth decides.
PARAMETER_SETS: dict[str, list[tuple[int, ...]]] = {
    "2,000 small tensors, 4.1 M": [(2048,)] * 2000,
    "206 tensors of BERT-base, 110 M": (
        [(30522, 768), (512, 768), (2, 768), (768,), (768,)]
        + ([(768, 768), (768,)] * 4 + [(3072, 768), (3072,), (768, 3072), (768,)] + [(768,)] * 4) * 12
        + [(768, 768), (768,), (768, 768), (768,), (768,), (768,), (30522,), (2, 768), (2,)]
    ),
}
QUICK_PARAMETER_SETS: dict[str, list[tuple[int, ...]]] = {"40 small tensors": [(64,)] * 40}


def parameter_sets(quick: bool) -> dict[str, list[tuple[int, ...]]]:
    return QUICK_PARAMETER_SETS if quick else PARAMETER_SETS


def equal_rows(total: int) -> list[int]:
    """26 tables of the same size."""
    return [total // TABLES] * TABLES


def criteo_rows(total: int) -> list[int]:
    """Criteo's 26 sizes, the largest cut so far that all have at most `total` rows: with 1,000,000 to 109,854 each."""
    low, high = 1, max(CRITEO_1TB_ROWS)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(min(n, middle) for n in CRITEO_1TB_ROWS) <= total else (low, middle - 1)
    return [min(rows, low) for rows in CRITEO_1TB_ROWS]


def demo_rows() -> list[int]:
    """The demo's 26 tables, 24,252 rows: a small one as it is, of a larger one the square root, at most 4,000."""
    return [n if n <= 64 else min(4000, round(n**0.5)) for n in CRITEO_1TB_ROWS]


def closed_model():
    return PRESETS["closed"]().model


def demo_batch() -> int:
    return PRESETS["demo"]().batch_size


def closed_batch() -> int:
    """55,296 samples."""
    return PRESETS["closed"]().batch_size


def closed_batch_a_gpu() -> int:
    """Of the eight: 6,912 samples."""
    return PRESETS["dgxa100_1x8"]().batch_size // 8


def demo_model():
    return PRESETS["demo"]().model


def dlrm_inputs(rows: Sequence[int], batch: int, spread: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """dense [B, 13] float32 like logs of counts, ids [B, 26] int32, labels [B] float32 with 3.3 % clicks."""
    draw = np.random.default_rng(seed)
    dense = np.log1p(np.floor(np.exp(1.5 + 1.2 * draw.standard_normal((batch, DENSE_FEATURES))))).astype(np.float32)
    ids = draw_ids(rows, batch, 1, spread, seed)[:, :, 0]
    labels = (draw.random(batch) < 0.033).astype(np.float32)
    return torch.from_numpy(dense), torch.from_numpy(np.ascontiguousarray(ids)), torch.from_numpy(labels)
