"""Names for stretches of the run that profilers show, called as the code calls them.

`with named("forward"):` costs a tenth of a microsecond unless a profiler was asked for: then the range goes to torch's
profiler or, as NVTX, to Nsight.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

RANGES = (
    "data wait", "step", "graph replay", "forward", "backward", "gradient exchange", "unscale", "optimizer", "evaluate",
)  # fmt: skip
Kind = Literal["torch", "nvtx"]

_OFF: AbstractContextManager[None] = nullcontext()
_kind: Kind | None = None


def named(name: str) -> AbstractContextManager[object]:
    """A context whose time is shown under `name`, one of RANGES."""
    if _kind is None:
        return _OFF
    return torch.profiler.record_function(name) if _kind == "torch" else _nvtx(name)


@contextmanager
def shown(kind: Kind) -> Iterator[None]:
    """Within the block ranges are shown to torch's profiler, or to Nsight."""
    global _kind
    before, _kind = _kind, kind
    try:
        yield
    finally:
        _kind = before


@contextmanager
def _nvtx(name: str) -> Iterator[None]:
    torch.cuda.nvtx.range_push(name)
    try:
        yield
    finally:
        torch.cuda.nvtx.range_pop()
