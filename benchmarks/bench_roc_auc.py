"""roc_auc: the exact area under the ROC curve, against scikit-learn and a sort in PyTorch.

cpp           ops.roc_auc
ref           the same in PyTorch: sort, unique_consecutive, cumulative counts
scikit-learn  sklearn.metrics.roc_auc_score: what the reference uses
Scores are like a trained model's: most near 0.03, some ties. DLRM's test set has 89,137,319 samples.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence

import torch

from mlperf_fast.ops.roc_auc import roc_auc

from . import command
from .competitors import backends, best, library
from .measure import Row, compare

DEVICES = ("cpu",)  # scores are gathered on the host, once an evaluation
CASES = (32_768, 1_000_000, 8_000_000)
DLRM_TEST_SAMPLES = 89_137_319


def measure(chosen: Namespace, cases: Sequence[int] | None = None) -> Iterator[Row]:
    whole = (DLRM_TEST_SAMPLES,) if chosen.whole else ()
    for n in cases or ((1000,) if chosen.quick else CASES + whole):
        inputs = [draw(n, seed) for seed in range(2)]
        candidates = backends(
            "roc_auc", chosen.device, torch.float32,
            lambda name, i=inputs: lambda number: roc_auc(*i[number % 2], backend=name),
        )  # fmt: skip
        candidates["scikit-learn"] = library("scikit-learn", chosen.device, lambda i=inputs: sklearn(i))
        results = compare(candidates, command.effort(chosen))
        # Two passes over scores and labels, 10 bytes a score, as csrc/roc_auc.h says.
        ours = best("roc_auc", chosen.device)
        yield Row("roc_auc", f"{n:,} scores", "fp32", chosen.threads, 10 * n, 0, "triad", results, ours)


def draw(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(n, generator=generator) < 0.033
    logits = torch.randn(n, generator=generator) + labels * 1.2 - 3.4
    return torch.sigmoid(logits), labels.to(torch.uint8)


def sklearn(inputs) -> Callable[[int], object]:
    from sklearn.metrics import roc_auc_score

    arrays = [(labels.numpy(), scores.numpy()) for scores, labels in inputs]
    return lambda number: roc_auc_score(*arrays[number % 2])


if __name__ == "__main__":
    sys.exit(command.main("roc_auc"))
