"""The step in CUDA graphs: one for each shape of batch, replayed on memory that each new batch is copied into.

    first batch of a shape    runs eagerly: that compiles and loads its kernels
    second                    is captured, which executes nothing, and replayed
    from then on              copied in, replayed

So a capture needs no made-up data, changes nothing, and exchanges nothing with other processes, which may meet other
shapes at other steps. All graphs share one pool of memory: a step leaves nothing there that the next one reads.
"""

from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor
from torch.utils import _pytree as pytree

from mlperf_fast.errors import UserError
from mlperf_fast.loop.capture_safety import CaptureUnsafe, capture_safe
from mlperf_fast.loop.dist import Ranks
from mlperf_fast.ops.lists import tables_after_capture
from mlperf_fast.profiling.ranges import named

MAX_GRAPHS = 32  # captures take their time from the run, and each graph keeps the memory of its inputs
CONSTANTS = (bool, int, float, str, type(None))  # parts of a batch that a graph holds as they are

Run = Callable[[], None]


def eager_reason(cuda_graph: str, ranks: Ranks) -> str | None:
    """Why the steps of this run are not captured, None where they are. UserError for cuda_graph=on that can't be."""
    if cuda_graph == "off":
        return "cuda_graph=off"
    reason = None
    if ranks.device.type != "cuda":
        reason = "device=cpu" if torch.cuda.is_available() else "no CUDA device"
    elif ranks.world > 1 and torch_dist.get_backend() != "nccl":
        reason = f"collectives of {torch_dist.get_backend()} can't be captured, only NCCL's"
    if reason and cuda_graph == "on":
        raise UserError(f"cuda_graph=on, but no step can be captured: {reason}. Set cuda_graph=auto to run without")
    return reason


class CudaGraphs:
    """Warms up and captures on one stream, into one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.trial: Replay | None = None

    def warm_up(self, run: Run) -> None:
        """Calls `run` on the stream of the captures: what autograd or a library keeps by stream is then there."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            run()
        current.wait_stream(self.stream)

    def capture(self, run: Run) -> Run:
        """What `run` does to the device, as a function that does it again; CaptureUnsafe where no graph can hold it."""
        if self.trial is None:
            # Under the checker autograd does some sums out of place, so this graph is never replayed. It is kept all
            # the same: a pool that no graph uses any more can't be used again.
            self.trial = self._capture(run, capture_safe())
        return self._capture(run, nullcontext())

    def _capture(self, run: Run, watched: AbstractContextManager[None]) -> "Replay":
        graph = torch.cuda.CUDAGraph()
        # thread_local: a thread that prefetches batches may allocate and copy meanwhile.
        capture = torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local")
        with tables_after_capture() as tables, capture, watched:
            run()
        return Replay(graph, tables)


@dataclass
class Replay:
    """Launches a graph; holds the tables that its kernels read."""

    graph: torch.cuda.CUDAGraph
    tables: list[Tensor]

    def __call__(self) -> None:
        with named("graph replay"):
            self.graph.replay()


class StepGraphs:
    """`graphs(batch)` does what `body(batch)` does.

    `forget()` drops what a capture that was broken off left behind. `required` makes a step that can't be captured a
    UserError; else it runs eagerly from then on, and `note` says why.
    """

    def __init__(
        self, body: Callable[[Any], None], forget: Run, graphs: CudaGraphs, device: torch.device, required: bool
    ) -> None:
        self.body, self.forget, self.graphs, self.device, self.required = body, forget, graphs, device, required
        self.note = ""
        self._any = False  # has a step been captured?
        self._over = False  # nothing more is captured
        self._seen: set[Hashable] = set()
        self._captured: dict[Hashable, tuple[list[Tensor], Run]] = {}

    @property
    def mode(self) -> str:
        """What the log says of the step: captured or eager, and why not all of it."""
        if not self.note:
            return "captured"
        return f"captured; {self.note}" if self._any else f"eager: {self.note}"

    def close(self) -> None:
        """Drops all graphs: NCCL can't end a communicator that one still uses."""
        self._over = True
        self._captured.clear()
        del self.graphs

    def __call__(self, batch: Any) -> None:
        leaves, structure = pytree.tree_flatten(batch)
        key = (str(structure), *map(_leaf_key, leaves))
        if key not in self._captured and not self._over:
            if key in self._seen:
                self._capture(key, batch)
            else:
                self._first(key, leaves)
        if key in self._captured:
            inputs, replay = self._captured[key]
            torch._foreach_copy_(inputs, [leaf for leaf in leaves if isinstance(leaf, Tensor)])
            replay()
        elif self._over:
            self.body(batch)
        else:
            self.graphs.warm_up(lambda: self.body(batch))

    def _first(self, key: Hashable, leaves: Iterable[Any]) -> None:
        """A shape that is new: will it be captured when it comes again?"""
        odd = next((leaf for leaf in leaves if not isinstance(leaf, (Tensor, *CONSTANTS))), None)
        away = next((leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.device != self.device), None)
        if odd is not None:
            self._stop(f"a batch holds a {type(odd).__name__}, expected tensors, numbers and text")
        elif away is not None:
            self._stop(f"a batch holds a tensor on {away.device}, expected all on {self.device}")
        else:
            self._seen.add(key)

    def _capture(self, key: Hashable, batch: Any) -> None:
        if len(self._captured) == MAX_GRAPHS:
            self._over = True
            self.note = f"batches of further shapes run eagerly, {MAX_GRAPHS} graphs is the limit"
            return
        static = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch)
        try:
            replay = self.graphs.capture(lambda: self.body(static))
        except CaptureUnsafe as error:
            self.forget()
            self._stop(str(error))
            return
        except RuntimeError as error:
            raise UserError(f"capturing the step failed: {error}. Run with cuda_graph=off, and report this") from error
        inputs = [leaf for leaf in pytree.tree_leaves(static) if isinstance(leaf, Tensor)]
        self._captured[key] = (inputs, replay)
        self._any = True

    def _stop(self, reason: str) -> None:
        if self.required:
            raise UserError(f"cuda_graph=on, but the step can't be captured: {reason}")
        self._over, self.note = True, reason


def _leaf_key(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device
    return type(leaf), leaf if isinstance(leaf, CONSTANTS) else id(leaf)
