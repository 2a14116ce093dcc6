"""Runs one block under the allocator that its environment sets, for bench_memory.py."""

import torch
import torch.nn.functional as F

from mlperf_fast import _C

from .peer import serve

LAYER_NORM_SHAPE = {False: (8192, 1024), True: (64, 32)}  # by `quick`


def prepare(case):
    """`block`: what to run. The allocator was set by the environment, and by the import of _C that obeys it."""
    torch.set_num_threads(case["threads"])
    blocks = {"layer norm": layer_norm, "DLRM step": dlrm_step}
    return blocks[case["block"]](case["quick"]), f"malloc tuned: {_C.memory_is_tuned}"


def layer_norm(quick):
    """PyTorch's eager dropout + residual + LayerNorm, forward and backward."""
    shape = LAYER_NORM_SHAPE[quick]
    x, residual = (torch.randn(shape, requires_grad=True) for _ in range(2))
    norm, dout = torch.nn.LayerNorm(shape[-1]), torch.randn(shape)
    inputs = (x, residual, *norm.parameters())
    return lambda number: torch.autograd.grad(norm(residual + F.dropout(x, 0.1)), inputs, dout)


def dlrm_step(quick):
    """The whole step in plain PyTorch, 26 x 128 with 1,000,000 rows in all, batch 2048, sparse table gradient."""
    from . import shapes
    from .dlrm_plain import PlainDLRM, plain_step

    model = shapes.demo_model() if quick else shapes.closed_model()
    rows, batch = (shapes.equal_rows(2600), 64) if quick else (shapes.equal_rows(1_000_000), 2048)
    step = plain_step(PlainDLRM(rows, model.dim, model.bottom, model.top, sparse=True), lr=0.01)
    inputs = [shapes.dlrm_inputs(rows, batch, "uniform", seed) for seed in range(2)]
    return lambda number: step(*inputs[number % 2])


if __name__ == "__main__":
    serve(prepare)
