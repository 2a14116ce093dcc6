"""Multi-tensor SGD in Triton: one launch walks chunks of all tensors through a table of their addresses.

Must move 12 bytes an element (weight and gradient read, weight written) and do 2 flops; the tables add 40 bytes a
chunk. Bound by memory from some hundred thousand elements on, by the launch below.
"""

from array import array

import numpy as np
import triton
import triton.language as tl
from torch import Tensor

from mlperf_fast.ops.lists import capturing, device_table

CHUNK = 4096  # elements a program: four vectors of 16 bytes a thread and tensor, and still parallel for small models

_tables: dict[tuple, Tensor] = {}


@triton.jit
def _sgd_kernel(
    addresses_ptr,
    sizes_ptr,
    chunks_ptr,
    lr_ptr,
    grad_scale_ptr,
    found_inf_ptr,
    count,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One chunk of one tensor a program. Moves 12 bytes an element, 2 flops."""
    skip = False
    if found_inf_ptr is not None:
        skip = tl.load(found_inf_ptr) != 0
    if not skip:
        tensor = tl.load(chunks_ptr + 2 * tl.program_id(0))
        start = tl.load(chunks_ptr + 2 * tl.program_id(0) + 1)
        p_address = tl.load(addresses_ptr + tensor)
        g_address = tl.load(addresses_ptr + count + tensor)
        if ALIGNED:
            p_address = tl.multiple_of(p_address, 16)
            g_address = tl.multiple_of(g_address, 16)
        n = start * CHUNK + tl.arange(0, CHUNK)
        mask = n < tl.load(sizes_ptr + tensor)
        p_ptrs = p_address.to(tl.pointer_type(tl.float32)) + n
        g_ptrs = g_address.to(tl.pointer_type(tl.float32)) + n
        rate = tl.load(lr_ptr)
        if grad_scale_ptr is not None:
            rate *= tl.load(grad_scale_ptr)
        p = tl.load(p_ptrs, mask=mask, other=0.0)
        g = tl.load(g_ptrs, mask=mask, other=0.0)
        tl.store(p_ptrs, p - rate * g, mask=mask)


def tile() -> dict[str, int]:
    """Compile-time sizes."""
    return {"CHUNK": CHUNK, "num_warps": 8, "enable_fp_fusion": True}


def sgd(params: array, grads: array, sizes: array, lr: Tensor, grad_scale: Tensor | None, found_inf: Tensor | None):
    """params, grads: addresses (int64) of float32 tensors on lr's device; sizes: their elements.

    The table is kept by the tensors' addresses, so eager steps whose gradients come to lie in the same memory send
    it once. Gradients that move with each step get a new table, one copy, each time.
    """
    key = (lr.device, params.tobytes(), grads.tobytes(), sizes.tobytes())
    table = _tables.get(key)
    if table is None or capturing():  # a graph needs a table of its own: this one may be dropped
        table = device_table(_numbers(params, grads, sizes), lr.device)
        if not capturing():
            if len(_tables) == 8:
                del _tables[next(iter(_tables))]
            _tables[key] = table
    count = len(params)
    chunks = (len(table) - 3 * count) // 2
    if chunks:
        aligned = all(address % 16 == 0 for address in (*params, *grads))
        addresses, elements, places = table.split([2 * count, count, 2 * chunks])
        _sgd_kernel[(chunks,)](addresses, elements, places, lr, grad_scale, found_inf, count, ALIGNED=aligned, **tile())


def _numbers(params: array, grads: array, sizes: array) -> np.ndarray:
    """[2 count] addresses, [count] elements, and for each chunk its tensor and its number there [2 chunks]."""
    elements = np.array(sizes)
    counts = -(-elements // CHUNK)
    tensor = np.repeat(np.arange(len(sizes)), counts)
    number = np.arange(len(tensor)) - (np.cumsum(counts) - counts)[tensor]
    return np.concatenate([params, grads, elements, np.stack([tensor, number], axis=1).reshape(-1)])
