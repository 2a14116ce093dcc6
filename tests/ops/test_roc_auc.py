import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import EXAMPLES, LAYOUTS, backends, lay_out, threads, wide
from sklearn.metrics import roc_auc_score

from mlperf_fast.errors import UserError
from mlperf_fast.ops import roc_auc

ALL = [*backends("roc_auc"), pytest.param("ref")]
everywhere = pytest.mark.parametrize("backend", ALL, indirect=True)


def labels_of(n, seed=0, share=0.3):
    labels = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < share
    labels[0], labels[-1] = True, False
    return labels.to(torch.uint8)


def exact(scores, labels):
    """From the definition, in integers: every pair counted."""
    positive, negative = scores[labels == 1].tolist(), scores[labels == 0].tolist()
    twice = sum(2 * (p > n) + (p == n) for p in positive for n in negative)
    return twice / (2 * len(positive) * len(negative))


@everywhere
@EXAMPLES
@given(
    n=st.integers(2, 60),
    seed=st.integers(0, 999),
    ties=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    label_dtype=st.sampled_from([torch.uint8, torch.bool]),
)
def test_counts_every_pair(backend, n, seed, ties, layout, label_dtype):
    scores, labels = wide(seed, n, decades=60), labels_of(n, seed)
    if ties:
        scores = scores.sign() * (scores.abs() > 1)
    assert roc_auc(lay_out(scores, layout), lay_out(labels.to(label_dtype), layout), backend=backend) == exact(
        scores, labels
    )


@everywhere
@pytest.mark.parametrize("kind", ["normal", "coarse", "sigmoid", "tiny"])
def test_agrees_with_sklearn_on_a_million(backend, kind):
    n = 1_000_000
    labels, x = labels_of(n, share=0.03), torch.randn(n, generator=torch.Generator().manual_seed(1))
    x += labels
    scores = {"normal": x, "coarse": (x * 4).round(), "sigmoid": x.sigmoid(), "tiny": x * 1e-42}[kind]
    expected = roc_auc_score(labels.numpy(), scores.double().numpy())
    assert roc_auc(scores, labels, backend=backend) == pytest.approx(expected, rel=1e-12)


@everywhere
def test_special_values(backend):
    def auc(scores, labels):
        return roc_auc(
            torch.tensor(scores, dtype=torch.float32), torch.tensor(labels, dtype=torch.uint8), backend=backend
        )

    inf = np.inf
    assert auc([0.5] * 7, [0, 1, 0, 0, 1, 0, 0]) == 0.5
    assert auc([-0.0, 0.0], [1, 0]) == 0.5
    assert auc([0.0, -0.0], [1, 0]) == 0.5
    assert auc([-1e-45, 0.0, 1e-45], [1, 1, 0]) == 0
    assert auc([inf, -inf, 3.4e38, -3.4e38], [1, 0, 0, 1]) == 0.75
    assert auc([inf, inf, -inf], [1, 0, 0]) == 0.75
    assert auc([1.0, 2.0], [1, 0]) == 0
    assert auc([2.0, 1.0], [1, 0]) == 1


@pytest.mark.parametrize("backend", backends("roc_auc"), indirect=True)
def test_same_bits_for_any_number_of_threads(backend):
    labels, scores = labels_of(300_000), wide(0, 300_000, decades=9)
    results = set()
    for n in (1, 2, 5):
        with threads(n):
            results |= {roc_auc(scores, labels, backend=backend) for _ in range(10)}
    assert len(results) == 1


@everywhere
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, np.nan, 0.3], [0, 1, 1], "score 1 is NaN"),
        ([0.1, -np.nan, 0.3], [0, 1, 1], "score 1 is NaN"),
        ([0.1, 0.2, 0.3], [0, 1, 2], "label 2 is 2; expected 0 or 1"),
        ([0.1, 0.2], [1, 1], "2 positives and 0 negatives"),
        ([0.1, 0.2], [0, 0], "0 positives and 2 negatives"),
        ([], [], "0 positives and 0 negatives"),
    ],
)
def test_what_has_no_auc(backend, scores, labels, message):
    scores, labels = torch.tensor(scores, dtype=torch.float32), torch.tensor(labels, dtype=torch.uint8)
    with pytest.raises(UserError, match=f"roc_auc: {message}"):
        roc_auc(scores, labels, backend=backend)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (torch.ones(2, 1), torch.ones(2, 1).bool(), r"scores has shape \[2, 1\], expected \[n\]"),
        (torch.ones(2), torch.ones(3).bool(), r"labels has shape \[3\], expected \[2\]"),
        (torch.ones(2), torch.ones(2), "labels is float32, expected bool or uint8"),
        (torch.ones(2).double(), torch.ones(2).bool(), "cpp takes float32, found float64"),
    ],
)
def test_wrong_arguments(scores, labels, message):
    with pytest.raises(UserError, match=f"roc_auc: .*{message}"):
        roc_auc(scores, labels, backend="cpp")
