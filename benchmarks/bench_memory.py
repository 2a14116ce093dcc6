"""memory: what the allocator is worth on a CPU: plain PyTorch under four settings, each in its own process.

default       glibc as it comes: every large tensor is mapped and unmapped, a page fault for each 4 KiB
huge pages    glibc.malloc.hugetlb=1 alone: large blocks are advised to be huge pages (glibc 2.35 or newer)
tuned         what importing mlperf_fast._C does: freed memory stays in the process
tuned + huge  both
`tuned` is the column that the ratios refer to.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack

from . import command
from .measure import Candidate, Row, compare
from .peer_memory import LAYER_NORM_SHAPE

DEVICES = ("cpu",)
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
MODES = {
    "tuned": {"MLPERF_FAST_MALLOC": "1"},
    "default": {"MLPERF_FAST_MALLOC": "0"},
    "huge pages": {"MLPERF_FAST_MALLOC": "0", **HUGE_PAGES},
    "tuned + huge": {"MLPERF_FAST_MALLOC": "1", **HUGE_PAGES},
}
BLOCKS = {"layer norm": "dropout + residual + LayerNorm fwd+bwd", "DLRM step": "DLRM step, plain PyTorch"}


def measure(chosen: Namespace) -> Iterator[Row]:
    elements = LAYER_NORM_SHAPE[chosen.quick]
    shapes = {
        "layer norm": f"[{elements[0]}, {elements[1]}]",
        "DLRM step": "B 2048, 26×128, 1 M rows",
    }
    for block, op in list(BLOCKS.items())[: 1 if chosen.quick else None]:  # each takes a process for every setting
        with ExitStack() as stack:
            candidates: dict[str, Candidate | str] = {}
            facts: dict[str, str | None] = {}
            for mode in ("tuned", "default") if chosen.quick else MODES:
                case = {"block": block, "quick": chosen.quick}
                child = command.peer(sys.executable, "peer_memory", "", MODES[mode], **case)
                candidates[mode], facts[mode] = stack.enter_context(child)
            results = compare(candidates, command.effort(chosen))
        yield Row(op, shapes[block], "fp32", chosen.threads, 0, 0, "none", results, "tuned", facts)


if __name__ == "__main__":
    sys.exit(command.main("memory"))
