"""What a step in a CUDA graph may not do, found where it happens and before it runs.

A captured step is replayed without its Python: the host can't look at a value, choose a shape by it, or send data.
`capture_safe()` refuses each of these with the op's name and the line that called it. The capture itself runs under
it, so that a step that can't be captured is refused while the capture can still be ended in order. On the CPU the
tests run every workload's step under it: there a copy to the host is no copy, so the Python calls that would be one
on a GPU are refused by name.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mlperf_fast.ops.backend import IMPLEMENTATIONS

SHAPE_BY_DATA = "gives a shape that depends on the data"
WAITS = "makes the host wait for the device"
FROM_HOST = "copies host data to the device"
TO_HOST = "copies to the host"
# Torch tags most ops that wait or choose a shape; these it doesn't tag in every version.
BY_NAME = {
    "aten::lift_fresh": f"{FROM_HOST} (torch.tensor, from_numpy, or a list as an index)",
    "aten::equal": WAITS,
    "aten::is_nonzero": WAITS,
    "aten::_linalg_check_errors": WAITS,
    "aten::_pin_memory": "allocates pinned memory",
}
# Tensor methods that read the values on the host, without an op where the tensor is on the CPU already.
HOST_METHODS = {
    "tolist": WAITS,
    "numpy": TO_HOST,
    "cpu": TO_HOST,
    "__array__": TO_HOST,
    "cuda": FROM_HOST,
    "pin_memory": "allocates pinned memory",
}
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")
TORCH = str(Path(torch.__file__).parent)


class CaptureUnsafe(Exception):
    """Says which op of a step a captured graph can't hold, why, and where it was called."""


@contextmanager
def capture_safe() -> Iterator[None]:
    """Within the block, whatever a CUDA graph can't hold raises CaptureUnsafe instead of running."""
    with _HostCalls() as calls, _Ops(calls):
        yield


class _HostCalls(TorchFunctionMode):
    """Refuses Python calls that read or send values although no op shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.setting_a_number = False  # x[i] = 1.0: the number becomes an argument of a kernel, no copy

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in HOST_METHODS and isinstance(args[0], Tensor):
            _refuse(f"Tensor.{name}", HOST_METHODS[name])
        if name == "to" and "cpu" in (*args[1:], *(kwargs or {}).values()):
            _refuse("Tensor.to", TO_HOST)
        self.setting_a_number = name == "__setitem__" and not isinstance(args[2], Tensor)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.setting_a_number = False


class _Ops(TorchDispatchMode):
    """Refuses ops, the ones inside our own ops' implementations too."""

    def __init__(self, calls: _HostCalls) -> None:
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name().partition(".")[0]
        reason = None if self.calls.setting_a_number and name != "aten::_local_scalar_dense" else BY_NAME.get(name)
        reason = reason or _by_tag(func, kwargs) or self._by_arguments(name, args, kwargs)
        if reason:
            _refuse(name, reason)
        if name not in IMPLEMENTATIONS or "cpp" in args:  # native CPU code reads what it likes: it is the host
            return func(*args, **kwargs)
        with capture_safe():
            return IMPLEMENTATIONS[name](*args, **kwargs)

    def _by_arguments(self, name: str, args: Any, kwargs: Any) -> str | None:
        if name in INDEXING and not self.calls.setting_a_number:
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            return f"{SHAPE_BY_DATA} (a mask as an index; use torch.where or masked_fill)" if masks else None
        if name == "aten::_to_copy" and kwargs.get("device") is not None:
            return _copy(args[0], kwargs["device"], kwargs.get("non_blocking", False))
        if name == "aten::copy_":
            return _copy(args[1], args[0].device, len(args) > 2 and args[2])
        return None


def _by_tag(func: Any, kwargs: Any) -> str | None:
    if torch.Tag.data_dependent_output in func.tags:
        return WAITS
    indexes = func.name().startswith(INDEXING)  # tagged, though only a mask gives such a shape
    if torch.Tag.dynamic_output_shape in func.tags and not indexes and kwargs.get("output_size") is None:
        return SHAPE_BY_DATA
    return None


def _copy(source: Tensor, device: torch.device, non_blocking: bool) -> str | None:
    """The fault of a copy from `source` to `device`, if any. From pinned memory a graph can hold one."""
    if source.device.type == device.type or (source.is_pinned() and non_blocking):
        return None
    return TO_HOST if device.type == "cpu" else f"{FROM_HOST}, which isn't pinned"


def _refuse(name: str, reason: str) -> None:
    """Raises with the innermost line that is neither torch's nor this file's."""
    frame = sys._getframe(1)
    while frame.f_back and (frame.f_code.co_filename == __file__ or frame.f_code.co_filename.startswith(TORCH)):
        frame = frame.f_back
    raise CaptureUnsafe(f"{name} {reason}, at {frame.f_code.co_filename}:{frame.f_lineno}")
