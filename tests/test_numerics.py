"""The comparison helper itself: it must find what it is there to find."""

import pytest
import torch
from numerics import LAYOUTS, compare, lay_out, wide

TRUTH = wide(0, 5, 7, dtype=torch.float64)
PLAIN = TRUTH.float()


def test_passes_what_is_as_good_as_plain_pytorch():
    compare("op", "cpp", PLAIN, PLAIN, TRUTH)
    compare("op", "cpp", PLAIN * (1 + 1e-7), PLAIN, TRUTH)
    compare("op", "cpp", PLAIN[:0], PLAIN[:0], TRUTH[:0])


@pytest.mark.parametrize("row", range(5))
def test_finds_one_wrong_element_in_any_row(row):
    wrong = PLAIN.clone()
    worst = int(PLAIN[row].abs().argmax())
    wrong[row, worst] *= 1 + 2e-6
    with pytest.raises(AssertionError) as caught:
        compare("op out", "cpp", wrong, PLAIN, TRUTH)
    text = str(caught.value)
    assert text.startswith("op out: 1 of 35 elements")
    for part in ("backend cpp", "dtype float32", "shape [5, 7]", f"worst at [{row}, {worst}]", "error", "allowed"):
        assert part in text


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_finds_what_is_no_number(value):
    wrong = PLAIN.clone()
    wrong[2, 3] = value
    with pytest.raises(AssertionError, match=r"worst at \[2, 3\]"):
        compare("op", "cpp", wrong, PLAIN, TRUTH)


def test_holds_small_rows_to_their_own_scale():
    truth = torch.tensor([[1e6], [1e-6]], dtype=torch.float64)
    wrong = torch.tensor([[1e6], [1.001e-6]])
    with pytest.raises(AssertionError, match=r"worst at \[1, 0\]"):
        compare("op", "cpp", wrong, truth.float(), truth)


def test_finds_another_shape_or_dtype():
    with pytest.raises(AssertionError, match="shapes"):
        compare("op", "cpp", PLAIN[:4], PLAIN, TRUTH)
    with pytest.raises(AssertionError, match="bfloat16"):
        compare("op", "cpp", PLAIN.bfloat16(), PLAIN, TRUTH)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_keep_the_values(layout):
    x = lay_out(PLAIN, layout)
    assert torch.equal(x, PLAIN)
    assert x.is_contiguous() == (layout != "strided")
    assert (x.data_ptr() % 16 == 0) == (layout != "unaligned")


def test_inputs_have_both_signs_zeros_and_a_wide_range():
    x = wide(3, 1000)
    nonzero = x[x != 0].abs()
    assert (x > 0).any()
    assert (x < 0).any()
    assert (x == 0).any()
    assert nonzero.max() / nonzero.min() > 1e4
