"""roc_auc: the exact area under the ROC curve, against scikit-learn and a sort in PyTorch.

ours        ops.roc_auc
sklearn     sklearn.metrics.roc_auc_score: what the reference uses
torch sort  ops.roc_auc_ref: sort, unique_consecutive, cumulative counts
Scores are like a trained model's: most near 0.03, some ties. DLRM's test set has 89,137,319 samples.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence

import torch

from mlperf_fast.ops.roc_auc import roc_auc

from . import command
from .measure import Candidate, Local, Row, compare

CASES = (32_768, 1_000_000, 8_000_000)
DLRM_TEST_SAMPLES = 89_137_319


def measure(chosen: Namespace, cases: Sequence[int] | None = None) -> Iterator[Row]:
    whole = (DLRM_TEST_SAMPLES,) if chosen.whole else ()
    for n in cases or ((1000,) if chosen.quick else CASES + whole):
        inputs = [draw(n, seed) for seed in range(2)]
        candidates: dict[str, Candidate | str] = {
            "ours": Local(lambda number, i=inputs: roc_auc(*i[number % 2])),
            "sklearn": sklearn(inputs),
            "torch sort": Local(lambda number, i=inputs: roc_auc(*i[number % 2], backend="ref")),
        }
        results = compare(candidates, command.effort(chosen))
        # Two passes over scores and labels, 10 bytes a score, as csrc/roc_auc.h says.
        yield Row("roc_auc", f"{n:,} scores", "fp32", chosen.threads, 10 * n, 0, "triad", results)


def draw(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(n, generator=generator) < 0.033
    logits = torch.randn(n, generator=generator) + labels * 1.2 - 3.4
    return torch.sigmoid(logits), labels.to(torch.uint8)


def sklearn(inputs) -> Candidate | str:
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError:
        return "not run: pip install scikit-learn"
    arrays = [(labels.numpy(), scores.numpy()) for scores, labels in inputs]
    return Local(lambda number: roc_auc_score(*arrays[number % 2]))


def arguments():
    options = command.parser(__doc__)
    options.add_argument("--whole", action="store_true", help="also all 89 million scores of DLRM's test set")
    return options


if __name__ == "__main__":
    sys.exit(command.main("roc_auc", arguments(), measure))
