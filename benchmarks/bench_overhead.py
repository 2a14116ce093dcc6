"""overhead: what a call costs when there is nothing to compute, and what the import costs.

raw _C call       a native function on ready integers, and the same with the addresses taken from tensors
public ops        with checks and dispatch, one-element inputs; torch.add for scale
import            mlperf_fast, its ops and a whole workload in a fresh process that has imported torch already
"""

import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator

import torch

from mlperf_fast import _C
from mlperf_fast.ops.adam import adam_
from mlperf_fast.ops.dot_interaction import dot_interaction
from mlperf_fast.ops.embedding_bag import embedding_bag, embedding_bag_sgd_
from mlperf_fast.ops.grad_norm import grad_norm
from mlperf_fast.ops.lamb import lamb_
from mlperf_fast.ops.lars import lars_
from mlperf_fast.ops.sgd import sgd_
from mlperf_fast.ops.sgd_momentum import sgd_momentum_

from . import command
from .measure import Candidate, Local, Row, compare, summary

DEVICES = ("cpu",)
IMPORTS = ("mlperf_fast", "mlperf_fast.ops", "mlperf_fast.workloads.dlrm.workload")


def import_seconds() -> list[tuple[float, float]]:
    """Wall and CPU seconds of each of IMPORTS, in a process that imported torch. Later ones include earlier."""
    program = "import torch, time; wall, cpu = time.perf_counter(), time.process_time()\n"
    for module in IMPORTS:
        program += f"import {module}; print(time.perf_counter() - wall, time.process_time() - cpu)\n"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return [(float(wall), float(cpu)) for wall, cpu in (line.split() for line in answer.stdout.splitlines())]


def calls() -> dict[str, Callable[[int], object]]:
    """Name -> call. `raw` ones do nothing inside: their batch is empty."""
    x, g, m, v = (torch.ones(1) for _ in range(4))
    lr, step = torch.zeros(()), torch.ones(())
    dense, sparse = torch.ones(1, 1), torch.ones(1, 1, 1)
    weight, offsets, ids = torch.ones(4, 1), torch.tensor([0, 4]), torch.zeros(1, 1, dtype=torch.int32)
    needing = dense.clone().requires_grad_()

    def both_ways(number: int) -> object:
        return torch.autograd.grad(dot_interaction(needing, sparse).sum(), needing)

    def sum_both_ways(number: int) -> object:
        return torch.autograd.grad((needing * sparse[0]).sum(), needing)

    return {
        "torch.add": lambda number: torch.add(x, x),
        "raw _C call": lambda number: _C.dot_interaction_fwd(64, 64, 64, 0, 1, 1, False),
        "raw _C call, 3 addresses": lambda number: _C.dot_interaction_fwd(
            dense.data_ptr(), sparse.data_ptr(), x.data_ptr(), 0, 1, 1, False
        ),
        "dot_interaction": lambda number: dot_interaction(dense, sparse),
        "dot_interaction fwd+bwd": both_ways,
        "torch mul fwd+bwd": sum_both_ways,
        "embedding_bag": lambda number: embedding_bag(weight, offsets, ids),
        "embedding_bag_sgd_": lambda number: embedding_bag_sgd_(weight, offsets, ids, sparse, lr),
        "sgd_": lambda number: sgd_([x], [g], lr),
        "sgd_momentum_": lambda number: sgd_momentum_([x], [g], [m], lr, step),
        "adam_": lambda number: adam_([x], [g], [m], [v], lr, step),
        "lars_": lambda number: lars_([x], [g], [m], lr),
        "lamb_": lambda number: lamb_([x], [g], [m], [v], lr, step),
        "grad_norm": lambda number: grad_norm([g]),
    }


def measure(chosen: Namespace) -> Iterator[Row]:
    """Rows of one column each: overhead has no competitor; the unit is the millisecond, as everywhere."""
    candidates: dict[str, Candidate | str] = {name: Local(call) for name, call in calls().items()}
    for name, timing in compare(candidates, command.effort(chosen)).items():
        yield Row("call overhead", name, "fp32", chosen.threads, 0, 0, "none", {"ours": timing}, "ours")
    samples = [import_seconds() for _ in range(1 if chosen.quick else 9)]
    for module, found in zip(IMPORTS, zip(*samples, strict=True), strict=True):
        timing = summary(found, 1)
        yield Row("import, beyond torch's own", module, "-", chosen.threads, 0, 0, "none", {"ours": timing}, "ours")


if __name__ == "__main__":
    sys.exit(command.main("overhead"))
