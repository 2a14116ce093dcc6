"""Multi-tensor SGD in Triton: one launch walks chunks of all tensors through a table of their addresses.

Must move 12 bytes an element (weight and gradient read, weight written) and do 2 flops; the tables add 40 bytes a
chunk. Bound by memory from some hundred thousand elements on, by the launch below.
"""

from array import array

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlperf_fast.errors import UserError

CHUNK = 4096  # elements a program: four vectors of 16 bytes a thread and tensor, and still parallel for small models

_tables: dict[tuple, tuple[Tensor, Tensor, Tensor]] = {}
_captured: list[tuple[Tensor, Tensor, Tensor]] = []  # tables that a captured graph reads for as long as it lives


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

    Tables are kept by the tensors' addresses, so a step that is captured after a warm-up step with the same tensors
    copies nothing from the host. Gradients that move with each step get a new table, one copy, each time.
    """
    capturing = lr.is_cuda and torch.cuda.is_current_stream_capturing()
    key = (lr.device, params.tobytes(), grads.tobytes(), sizes.tobytes())
    if key not in _tables:
        if capturing:
            raise UserError(
                "sgd_: a captured step on backend triton needs the table of addresses that a step before the capture "
                "made, but the tensors have moved since; keep the gradients' memory with zero_grad(set_to_none=False)"
            )
        if len(_tables) == 8:
            del _tables[next(iter(_tables))]
        _tables[key] = _make_tables(params, grads, sizes, lr.device)
    tables = _tables[key]
    if capturing:
        _captured.append(tables)
    addresses, elements, chunks = tables
    if len(chunks):
        aligned = all(address % 16 == 0 for address in (*params, *grads))
        _sgd_kernel[(len(chunks),)](
            addresses, elements, chunks, lr, grad_scale, found_inf, len(params), ALIGNED=aligned, **tile()
        )


def _make_tables(params: array, grads: array, sizes: array, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Addresses [2, count], elements [count], and for each chunk its tensor and its number there [chunks, 2]."""
    elements = torch.tensor(sizes)
    counts = (elements + CHUNK - 1) // CHUNK
    tensor = torch.arange(len(sizes)).repeat_interleave(counts)
    number = torch.arange(len(tensor)) - (counts.cumsum(0) - counts)[tensor]
    tables = torch.tensor([*params, *grads]), elements, torch.stack([tensor, number], dim=1)
    return tuple(table.to(device) for table in tables)  # type: ignore[return-value]
