"""Tensors of one dtype in one buffer, each a view into it: one exchange moves them all, and a share is a slice."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from mlperf_fast.errors import UserError

# Elements. Each tensor starts at a multiple, and so does each share: its address is one of 2 KiB or more, and a cut
# through a tensor leaves whole blocks on both sides, whose sums of squares (ops/grad_norm.py, ops/lamb.py) are the same
# as in the whole tensor.
BLOCK = 1024


class Flat:
    """Where tensors lie in a buffer, in equal shares for so many processes; zeros between them.

    starts    the place of each tensor's first element    share     elements of one share, a multiple of BLOCK
    elements  of the whole buffer
    """

    def __init__(self, tensors: Mapping[str, Tensor], shares: int = 1) -> None:
        for name, x in tensors.items():
            if not x.is_contiguous():
                raise UserError(f"{name!r} must be contiguous to be flat, found strides {list(x.stride())} for shape "
                                f"{list(x.shape)}")  # fmt: skip
        self.names, self.shapes = list(tensors), [x.shape for x in tensors.values()]
        room = [-(-prod(shape) // BLOCK) * BLOCK for shape in self.shapes]
        *self.starts, end = accumulate(room, initial=0)
        self.share = -(-end // (shares * BLOCK)) * BLOCK
        self.elements = shares * self.share

    def zeros(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A buffer for all of them."""
        return torch.zeros(self.elements, dtype=dtype, device=device)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The tensors in a whole buffer, in their shapes."""
        return [
            buffer[start : start + prod(shape)].view(shape)
            for start, shape in zip(self.starts, self.shapes, strict=True)
        ]

    def pieces(self, number: int, parts: Sequence[int]) -> list[tuple[int, int, int, int]]:
        """What share `number` holds of them, tensor i being cut into parts[i] equal parts before.

        (tensor, part, first element in the share, elements), empty ones left out.
        """
        first, last = number * self.share, (number + 1) * self.share
        found = []
        for i, (start, shape, n) in enumerate(zip(self.starts, self.shapes, parts, strict=True)):
            size = prod(shape) // n
            for part in range(n):
                begin, end = max(start + part * size, first), min(start + (part + 1) * size, last)
                if begin < end:
                    found.append((i, part, begin - first, end - begin))
        return found


@torch.no_grad()
def flatten_(parameters: Mapping[str, Tensor], shares: int = 1) -> tuple[Flat, Tensor]:
    """Moves parameters of one dtype into one buffer; they stay the same objects, with the same values and names.

    A state_dict of the model is what it was; what it saves is the buffer, once. Whatever else held the parameters'
    memory (an optimizer made before, a captured graph) would go on with the old one, so flatten first.
    """
    flat = Flat(parameters, shares)
    first = next(iter(parameters.values()))
    if any(x.dtype != first.dtype or x.device != first.device for x in parameters.values()):
        raise UserError("flat parameters must have one dtype and one device; flatten them in groups")
    buffer = flat.zeros(first.dtype, first.device)
    for parameter, view in zip(parameters.values(), flat.views(buffer), strict=True):
        view.copy_(parameter)
        parameter.data = view
    return flat, buffer
