"""Lists of tensors, checked and read at once: what multi-tensor ops start with.

A model may have thousands of tensors, and each property that Python asks of one costs 0.1 us, so the address, size,
dtype, device and layout of 2,000 pairs took as long as updating them. Where torch hands out DLPack's C exchange
interface (2.10 and later) native code reads all of that in 0.07 us a tensor; elsewhere maps at C level do.
"""

import ctypes
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from mlperf_fast import _C
from mlperf_fast.errors import UserError
from mlperf_fast.ops.checks import check

EXCHANGE: Any = getattr(Tensor, "__dlpack_c_exchange_api__", None)


def _words(address: int, count: int) -> list[int]:
    return list((ctypes.c_size_t * count).from_address(address))


def _word_inside() -> int:
    """Which word of a tensor's Python object holds the address of the C++ object (`_cdata`); 0 where none does."""
    x = torch.empty(1)
    words = _words(id(x), Tensor.__basicsize__ // ctypes.sizeof(ctypes.c_size_t))
    return words.index(x._cdata) if x._cdata in words else 0


def _word_of_counter() -> int:
    """Which of the C++ object's first words holds the address of its version counter; 0 where none seems to."""
    x = torch.empty(1)
    # A detached tensor has the same counter, and what .data gives has the same memory but a counter of its own.
    own, same, other = (_words(tensor._cdata, 8) for tensor in (x, x.detach(), x.data))
    found = [i for i, word in enumerate(own) if word and word == same[i] != other[i]]
    return found[0] if len(found) == 1 else 0


INSIDE = _word_inside()
COUNTER = _word_of_counter()


class TensorList(NamedTuple):
    """Addresses, elements and layouts (int64 each) of tensors of one dtype in one place, each without gaps in memory.

    A layout is 0 for a contiguous tensor, and a number of its own for each other order of dimensions (channels last).
    """

    addresses: array
    sizes: array
    layouts: array
    place: tuple  # the device
    kind: tuple  # the dtype

    @property
    def table(self) -> int:
        """The address of the table of addresses."""
        return self.addresses.buffer_info()[0]


class Kept(tuple):
    """Tensors whose memory stays where it is for good, such as an optimizer's own moments: they are read only once."""

    found: TensorList | None = None


def read(tensors: Sequence[Tensor]) -> TensorList | None:
    """What the tensors (at least one) have in common and where they lie; None where they aren't alike or have gaps."""
    if not isinstance(tensors, Kept):
        return _read(tensors)
    if tensors.found is None:
        tensors.found = _read(tensors)
    return tensors.found


def _read(tensors: Sequence[Tensor]) -> TensorList | None:
    if EXCHANGE is None:
        return _read_by_properties(tensors)
    listed = tensors if isinstance(tensors, list) else list(tensors)  # a copy would touch each tensor, unasked for
    addresses = array("q", bytes(8 * len(tensors)))
    sizes, layouts = addresses[:], addresses[:]
    tables = (table.buffer_info()[0] for table in (addresses, sizes, layouts))
    try:
        *numbers, odd = _C.read_tensors(EXCHANGE, listed, INSIDE, COUNTER, *tables)
    except (RuntimeError, BufferError, TypeError, ValueError):  # a tensor without memory of its own, such as a fake one
        return None
    return TensorList(addresses, sizes, layouts, tuple(numbers[:2]), tuple(numbers[2:])) if odd < 0 else None


def read_matching(op: str, backend: str, lists: dict[str, Sequence[Tensor]]) -> list[TensorList]:
    """Reads lists, by name, whose i-th tensors belong together: one shape, layout and device; a list has its own dtype.

    UserError for the first tensor that has gaps or doesn't match. The lists are equally long and not empty.
    """
    found = [read(tensors) for tensors in lists.values()]
    first = found[0]
    if first is None or any(one is None or one[1:4] != first[1:4] for one in found):
        raise_for_odd_one(op, lists)
        raise UserError(f"{op}: backend {backend} takes plain tensors with memory of their own")
    return found  # type: ignore[return-value]


def raise_for_odd_one(op: str, lists: dict[str, Sequence[Tensor]]) -> None:
    """UserError for the first tensor that isn't like the first list's at its place, or its own list's first."""
    first, like = next(iter(lists.items()))
    for i in range(len(like)):
        for name, tensors in lists.items():
            check(op, f"{name}[{i}]", tensors[i], like[i].shape, (tensors[0].dtype,), like[0])
            check_dense(op, f"{name}[{i}]", tensors[i])
            if layout(tensors[i]) != layout(like[i]):
                found, expected = list(tensors[i].stride()), list(like[i].stride())
                raise UserError(f"{op}: {name}[{i}] has strides {found}, expected those of {first}[{i}], {expected}")


def check_dense(op: str, name: str, x: Tensor) -> None:
    """The elements fill one stretch of memory, in any order of dimensions: what elementwise native code takes."""
    if layout(x) is None:
        found = f"found strides {list(x.stride())} for shape {list(x.shape)}"
        raise UserError(f"{op}: {name} must be contiguous or channels last, without gaps, {found}")


def layout(x: Tensor) -> int | None:
    """0 for a contiguous tensor, a number for each other order of dimensions, None where there are gaps or overlaps."""
    if x.is_contiguous():
        return 0
    left = {d for d in range(x.dim()) if x.shape[d] != 1}
    code, expected = 0, 1
    while left:
        inner = next((d for d in left if x.stride(d) == expected), None)
        if inner is None:
            return None
        left.remove(inner)
        code, expected = 16 * code + inner + 1, expected * x.shape[inner]
    return code


def device_table(numbers: np.ndarray, device: torch.device) -> Tensor:
    """`numbers` (int64) on the device, for kernels that read the addresses of many tensors from a table.

    While a graph is captured no data can be sent: the table gets its memory then, and its numbers at the end of
    `tables_after_capture`. They are addresses and sizes, which stay the same at each replay.
    """
    if _later is not None:
        table = torch.empty(numbers.shape, dtype=torch.int64, device=device)
        _later.append((table, numbers))
        return table
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise UserError("an op needs a table of addresses inside a CUDA graph: capture within tables_after_capture()")
    # Allowed here although a captured step may not do it, so what watches for that looks away.
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        return torch.from_numpy(numbers).to(device)


def capturing() -> bool:
    """Whether tables made now are filled later."""
    return _later is not None


@contextmanager
def tables_after_capture() -> Iterator[list[Tensor]]:
    """Around a capture. The tables made within are in the list; keep it as long as the graph that reads them."""
    global _later
    kept: list[Tensor] = []
    before, _later = _later, []
    try:
        yield kept
        for table, numbers in _later:
            kept.append(table.copy_(torch.from_numpy(numbers)))
    finally:
        _later = before


_later: list[tuple[Tensor, np.ndarray]] | None = None  # tables to be filled when the capture has ended


def _read_by_properties(tensors: Sequence[Tensor]) -> TensorList | None:
    first = tensors[0]
    place = _is_cpu if first.is_cpu else Tensor.get_device  # which is -1 for the CPU, but for other devices too
    if {*map(_dtype, tensors)} != {first.dtype} or {*map(place, tensors)} != {place(first)}:
        return None
    # A list first: array() takes one a quarter faster than an iterator.
    addresses, sizes = array("q", [*map(Tensor.data_ptr, tensors)]), array("q", [*map(Tensor.numel, tensors)])
    layouts = array("q", bytes(8 * len(tensors)))
    if not all(map(Tensor.is_contiguous, tensors)):
        found = [*map(layout, tensors)]
        if None in found:
            return None
        layouts = array("q", found)  # type: ignore[arg-type]
    return TensorList(addresses, sizes, layouts, (first.device,), (first.dtype,))


_dtype, _is_cpu = attrgetter("dtype"), attrgetter("is_cpu")
