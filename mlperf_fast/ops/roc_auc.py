"""The exact area under the ROC curve: the share of (positive, negative) pairs that the scores put in order."""

import torch
from torch import Tensor

from mlperf_fast import _C
from mlperf_fast.errors import UserError
from mlperf_fast.ops.backend import Applies, Op, resolve
from mlperf_fast.ops.checks import check, check_rank, native

# 1. The truth ---------------------------------------------------------------------------------------------------


def roc_auc_ref(scores: Tensor, labels: Tensor) -> float:
    """Walks the distinct scores upwards. All counts are integers, so only the last division rounds."""
    if scores.isnan().any():
        raise UserError(f"roc_auc: score {int(scores.isnan().nonzero()[0])} is NaN; expected numbers")
    if (labels > 1).any():
        n = int((labels > 1).nonzero()[0])
        raise UserError(f"roc_auc: label {n} is {int(labels[n])}; expected 0 or 1")
    scores, order = torch.sort(scores)
    distinct, group = torch.unique_consecutive(scores, return_inverse=True)  # by ==, so that -0 ties with 0
    positives, negatives = (
        torch.zeros(distinct.numel(), dtype=torch.int64, device=scores.device).index_add_(0, group, side.long())
        for side in (labels[order] == 1, labels[order] == 0)
    )
    P, N = int(positives.sum()), int(negatives.sum())
    if P == 0 or N == 0:
        raise UserError(f"roc_auc: {P} positives and {N} negatives; expected at least one of each")
    negatives_below = negatives.cumsum(0) - negatives
    return int((positives * (2 * negatives_below + negatives)).sum()) / (2 * P * N)


# 2. Who can do it, best first, and when ---------------------------------------------------------------------------

ROC_AUC = Op("roc_auc", {"cpp": Applies(("cpu",), (torch.float32,)), "ref": Applies()})

# 3. No registration: the result is a Python number, which neither a graph nor a gradient can hold ----------------

# 4. The public function ---------------------------------------------------------------------------------------------


def roc_auc(scores: Tensor, labels: Tensor, *, backend: str | None = None) -> float:
    """(sum over pairs of [s+ > s-] + [s+ == s-] / 2) / pairs, exact: what sklearn's roc_auc_score computes.

    scores  [n] float32 (any float on ref), any order, infinities allowed; -0 equals 0
    labels  [n] bool or uint8, 0 or 1, on the same device
    returns a float, rounded once: counts are 64-bit integers. cpp needs 2 bytes a score beside its input

    Waits for the device. Raises UserError for NaN, for another label, and when one of the classes is missing.
    """
    check_rank("roc_auc", "scores", scores, "n")
    check("roc_auc", "labels", labels, scores.shape, (torch.bool, torch.uint8), scores)
    if resolve(ROC_AUC, scores, backend) == "ref":
        return roc_auc_ref(scores, labels)
    scores, labels = scores.contiguous(), labels.contiguous()
    return native(_C.roc_auc, scores.data_ptr(), labels.data_ptr(), scores.numel())
