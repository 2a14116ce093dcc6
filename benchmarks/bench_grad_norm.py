"""grad_norm: the norm of all gradients together and whether all are finite, against PyTorch and apex.

cpp, cuda, triton, ref   ops.grad_norm by each backend
torch foreach   torch.nn.utils.get_total_norm, and whether it is finite
torch loop      the same tensor by tensor
apex            NVIDIA's multi_tensor_l2norm
"""

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence

import torch

from mlperf_fast.ops.grad_norm import grad_norm

from . import command, multi_tensor
from .competitors import backends, library
from .measure import Local, Row
from .multi_tensor import Call, Grads, Update, scalar

DEVICES = ("cpu", "cuda")
UPDATE = Update("grad_norm", bytes=4, flops=2, resident=4)  # csrc/grad_norm.h


def measure(chosen: Namespace, sets: Mapping[str, Sequence[tuple[int, ...]]] | None = None) -> Iterator[Row]:
    yield from multi_tensor.measure(chosen, UPDATE, candidates, sets)


def candidates(chosen: Namespace, grads: Grads):
    return {
        **backends("grad_norm", chosen.device, torch.float32, lambda name: ours(grads, name)),
        "torch foreach": Local(theirs(grads, foreach=True)),
        "torch loop": Local(theirs(grads, foreach=False)),
        "apex": library("apex", chosen.device, lambda: apex(grads)),
    }


def ours(grads: Grads, backend: str) -> Call:
    found_inf = scalar(0, grads[0])
    return lambda number: grad_norm(grads[number % len(grads)], found_inf=found_inf, backend=backend)


def theirs(grads: Grads, *, foreach: bool) -> Call:
    return lambda number: torch.nn.utils.get_total_norm(grads[number % len(grads)], foreach=foreach).isfinite()


def apex(grads: Grads) -> Call:
    import amp_C
    from apex.multi_tensor_apply import multi_tensor_applier

    overflow = torch.zeros(1, dtype=torch.int32, device=grads[0][0].device)
    norm = amp_C.multi_tensor_l2norm
    return lambda number: multi_tensor_applier(norm, overflow, [grads[number % len(grads)]], False)


if __name__ == "__main__":
    sys.exit(command.main("grad_norm"))
