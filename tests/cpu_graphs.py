"""What `loop.graph.CudaGraphs` does on a GPU, on the CPU: records the ops of a step and does them again.

As with a CUDA graph, capturing executes nothing that can be seen afterwards; a replay runs the same ops on the same
memory, with every Python value and branch as it was at the capture. So a step that would go wrong in a CUDA graph,
because its Python holds a learning rate, a counter or last step's tensor, goes wrong here too.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from mlperf_fast.loop import run, step
from mlperf_fast.loop.capture_safety import capture_safe
from mlperf_fast.ops.lists import tables_after_capture


class CpuGraphs:
    def __init__(self, device: torch.device) -> None:
        pass

    def warm_up(self, run: Callable[[], None]) -> None:
        run()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        calls: list[Call] = []
        generator = torch.get_rng_state()
        try:
            with Recorder([]), capture_safe():
                run()
            with tables_after_capture(), Recorder(calls):
                run()
        finally:
            torch.set_rng_state(generator)
        return lambda: replay(calls)


Call = tuple[Any, tuple, dict[str, Any], Any]  # op, arguments, keyword arguments, result


STATS = ("running_mean", "running_var")  # batch norm updates them, though its schema doesn't say so


class Recorder(TorchDispatchMode):
    """Notes each op. One that writes into an argument gets a copy of it, so that nothing changes yet."""

    def __init__(self, calls: list[Call]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = {argument.name for argument in func._schema.arguments if argument.is_write or argument.name in STATS}
        copies = [
            tree_map(clone, value) if argument.name in written else value
            for argument, value in zip(func._schema.arguments, args, strict=False)
        ]
        copied = {name: tree_map(clone, value) if name in written else value for name, value in kwargs.items()}
        result = func(*copies, **copied)
        if written and func._schema.returns and func._schema.returns[0].alias_info is not None:
            result = args[0]  # an op in place returns what it wrote into
        if not is_view(func):
            self.calls.append((func, args, kwargs, result))
        return result


def is_view(func: Any) -> bool:
    """A view of memory that stays where it is needs no replay."""
    return any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)


def clone(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


@torch.no_grad()
def replay(calls: list[Call]) -> None:
    for func, args, kwargs, result in calls:
        again = func(*args, **kwargs)
        for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
            if isinstance(old, Tensor) and old is not new:
                old.copy_(new)


def capture_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that are made from now on with cuda_graph auto or on are captured by CpuGraphs."""
    monkeypatch.setattr(step, "CudaGraphs", CpuGraphs)
    for module in (step, run):
        monkeypatch.setattr(module, "eager_reason", lambda choice, _: "cuda_graph=off" if choice == "off" else None)
