"""Lists of tensors: both ways of reading them say the same, and what isn't alike is refused."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mlperf_fast import _C
from mlperf_fast.loop.capture_safety import capture_safe
from mlperf_fast.ops import lists

READERS = [
    pytest.param(
        lists.read,
        marks=pytest.mark.skipif(lists.EXCHANGE is None, reason="this torch has no DLPack C exchange interface"),
    ),
    lists._read_by_properties,
]


@pytest.mark.parametrize("read", READERS)
def test_addresses_and_sizes_are_the_tensors_own(read):
    memory = torch.randn(100)
    tensors = [
        torch.nn.Parameter(torch.randn(3, 5)),
        torch.randn(0, 4),
        torch.randn(()),
        memory[7:19],  # starts inside a storage
        torch.randn(6, 1).t(),  # size-1 dimensions may have any stride
        torch.randn(1, 4).expand(1, 4),
    ]
    found = read(tensors)
    assert list(found.addresses) == [x.data_ptr() for x in tensors]
    assert list(found.sizes) == [15, 0, 1, 12, 6, 4]
    assert found.kind == read([torch.ones(2)]).kind


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "odd",
    [
        torch.ones(4, dtype=torch.float64),
        torch.ones(4, dtype=torch.bfloat16),
        torch.ones(4, dtype=torch.int32),
        torch.ones(4, 3).t(),
        torch.ones(8)[::2],
        torch.ones(1).expand(4),
    ],
    ids=["float64", "bfloat16", "int32", "transposed", "strided", "expanded"],
)
def test_an_odd_one_is_found_wherever_it_stands(read, odd):
    for place in range(3):
        tensors = [torch.ones(4), torch.ones(5)]
        tensors.insert(place, odd)
        assert read(tensors) is None


@pytest.mark.parametrize("read", READERS)
def test_kinds_tell_dtypes_apart(read):
    kinds = {read([torch.ones(2, dtype=dtype)]).kind for dtype in (torch.float32, torch.float64, torch.bfloat16)}
    assert len(kinds) == 3


@pytest.mark.skipif(lists.EXCHANGE is None, reason="this torch has no DLPack C exchange interface")
def test_what_has_no_memory_or_is_no_tensor_is_refused():
    with FakeTensorMode():
        fake = [torch.ones(3)]
    assert lists.read(fake) is None
    assert lists.read([torch.ones(2), 3.0]) is None
    with pytest.raises(ValueError, match="expected at least 1"):
        _C.read_tensors(lists.EXCHANGE, [], 0, 0)


def test_a_table_made_during_a_capture_gets_its_numbers_afterwards():
    """A graph takes no data from the host; its tables stay, and are made anew by the next capture."""
    numbers, cpu = np.arange(5), torch.device("cpu")
    assert lists.device_table(numbers, cpu).tolist() == numbers.tolist()
    with lists.tables_after_capture() as kept:
        assert lists.capturing()
        first = lists.device_table(numbers, cpu).zero_()
        second = lists.device_table(2 * numbers, cpu).zero_()
        assert first.sum() == second.sum() == 0
    assert not lists.capturing()
    assert kept[0] is first
    assert first.tolist() == numbers.tolist()
    assert second.tolist() == (2 * numbers).tolist()


def test_a_capture_that_fails_leaves_no_tables_behind():
    with pytest.raises(KeyError), lists.tables_after_capture():
        {}[lists.device_table(np.arange(5), torch.device("cpu"))]
    assert not lists.capturing()


def test_who_watches_a_step_does_not_see_its_tables_sent():
    with capture_safe():
        assert lists.device_table(np.arange(5), torch.device("cpu")).shape == (5,)
