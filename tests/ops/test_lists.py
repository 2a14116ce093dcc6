"""Lists of tensors: both ways of reading them say the same, and what isn't alike is refused."""

import ctypes
import itertools

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mlperf_fast import _C
from mlperf_fast.errors import UserError
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
        torch.ones(8)[::2],
        torch.ones(4, 6)[:, :3],
        torch.ones(1).expand(4),
        torch.ones(4, 1).expand(4, 4),
    ],
    ids=["float64", "bfloat16", "int32", "strided", "cut", "expanded", "expanded rows"],
)
def test_an_odd_one_is_found_wherever_it_stands(read, odd):
    for place in range(3):
        tensors = [torch.ones(4), torch.ones(5)]
        tensors.insert(place, odd)
        assert read(tensors) is None


def orders(*shape):
    """A tensor of this shape in every order of its dimensions in memory, the contiguous one first."""
    for order in itertools.permutations(range(len(shape))):
        x = torch.ones([shape[d] for d in order])
        yield x.permute([order.index(d) for d in range(len(shape))])


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4, 5), (2, 2, 2), (3, 1, 2)])
def test_layouts_tell_orders_of_dimensions_apart(read, shape):
    tensors = list(orders(*shape))
    by_layout = {}
    for x, number in zip(tensors, read(tensors).layouts, strict=True):
        # Where a dimension has one element, its stride says nothing.
        by_layout.setdefault(number, set()).add(tuple(s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1))
        assert lists.layout(x) == number
    assert all(len(strides) == 1 for strides in by_layout.values())
    assert len(by_layout) == len(set().union(*by_layout.values()))
    assert read([torch.ones(shape)]).layouts[0] == 0


def test_lists_of_other_layouts_do_not_match():
    x = torch.ones(2, 3, 4, 5)
    y = x.to(memory_format=torch.channels_last)
    assert len(lists.read_matching("op", "cpp", {"params": [x, y], "grads": [x, y]})) == 2
    message = r"op: grads\[1\] has strides \[60, 20, 5, 1\], expected those of params\[1\], \[60, 1, 15, 3\]"
    with pytest.raises(UserError, match=message):
        lists.read_matching("op", "cpp", {"params": [x, y], "grads": [x, x]})


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
        _C.read_tensors(lists.EXCHANGE, [], 0, 0, 0, 0, 0)


@pytest.mark.skipif(lists.EXCHANGE is None, reason="this torch has no DLPack C exchange interface")
@pytest.mark.parametrize("place", [0, 1, 15, 16, 40, 79])
@pytest.mark.parametrize("other", [3.0, None, "", (), object()], ids=lambda other: type(other).__name__)
def test_what_is_no_tensor_is_not_looked_into_ahead_of_its_turn(place, other):
    tensors = [torch.ones(2) for _ in range(80)]
    tensors[place] = other
    assert lists.read(tensors) is None


@pytest.mark.skipif(lists.EXCHANGE is None, reason="this torch has no DLPack C exchange interface")
def test_the_word_inside_is_the_tensors_own_address():
    assert lists.INSIDE > 0
    for x in (torch.ones(3), torch.nn.Parameter(torch.ones(3))):
        words = (ctypes.c_size_t * (lists.INSIDE + 1)).from_address(id(x))
        assert words[lists.INSIDE] == x._cdata


@pytest.mark.skipif(lists.EXCHANGE is None, reason="this torch has no DLPack C exchange interface")
def test_the_counters_word_leads_to_the_tensors_version():
    assert lists.COUNTER > 0
    for x in (torch.ones(3), torch.nn.Parameter(torch.ones(3))):
        counter = lists._words(x._cdata, lists.COUNTER + 1)[lists.COUNTER]
        numbers = (ctypes.c_uint32 * 6).from_address(counter)
        before = list(numbers)
        torch.autograd.graph.increment_version(x)
        assert [b - a for a, b in zip(before, numbers, strict=True) if a != b] == [1]


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
