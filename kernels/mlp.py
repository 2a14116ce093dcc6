"""The layers of a multilayer perceptron in Triton, around their matrix products, which are cuBLAS's.

Forward there is nothing left to do: cuBLAS adds the bias and clamps as it writes the product. Backward one pass masks
the gradient by the output's sign and sums its columns, the bias's gradient, where a mask and a sum of their own would
read the gradient twice. With e bytes an element it must move 3 e B N bytes with ReLU and e B N without, and do 2 B N
flops; it is bound by memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048  # elements at once: 16 a thread
STEPS = 8  # tiles a program, one below the other, so that few partial sums are written


@triton.jit
def _mlp_bias_bwd_kernel(
    y_ptr, dy_ptr, g_ptr, sums_ptr, B, N, ROWS: tl.constexpr, STEPS: tl.constexpr, BLOCK_N: tl.constexpr
):
    """g = dy where y > 0, else 0 (g absent: dy itself), and column sums of STEPS * ROWS rows.

    Moves 3 e B N bytes, e B N without g, and 4 N for each block of rows; 2 B N flops.
    """
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(0).to(tl.int64) * ROWS * STEPS  # B * N may pass 2^31
    total = tl.zeros([ROWS, BLOCK_N], tl.float32)
    for step in range(STEPS):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < B)[:, None] & (cols < N)[None, :]
        at = rows[:, None] * N + cols[None, :]
        g = tl.load(dy_ptr + at, mask=mask, other=0.0)
        if g_ptr is not None:
            y = tl.load(y_ptr + at, mask=mask, other=0.0).to(tl.float32)
            g = tl.where(y <= 0, tl.zeros_like(g), g)  # a NaN in y lets dy pass, as in torch
            tl.store(g_ptr + at, g, mask=mask)
        total += g.to(tl.float32)
    tl.store(sums_ptr + tl.program_id(0) * N + cols, tl.sum(total, 0), mask=cols < N)


def tile(N: int) -> dict[str, int]:
    """Compile-time sizes."""
    BLOCK_N = max(16, min(triton.next_power_of_2(N), 128))
    return {"ROWS": TILE // BLOCK_N, "STEPS": STEPS, "BLOCK_N": BLOCK_N, "num_warps": 4, "enable_fp_fusion": True}


def mlp_bias_bwd(y: Tensor, dy: Tensor, g: Tensor | None) -> Tensor:
    """y, dy, g [B, N] contiguous, of one dtype; g may be dy. Writes g, returns its column sums [N] in float32.

    Each block of rows has sums of its own, added up afterwards: the same bits in every run.
    """
    B, N = dy.shape
    sizes = tile(N)
    blocks = triton.cdiv(B, sizes["ROWS"] * STEPS)
    sums = torch.empty(blocks, N, dtype=torch.float32, device=dy.device)
    if B > 0:
        _mlp_bias_bwd_kernel[(blocks, triton.cdiv(N, sizes["BLOCK_N"]))](y, dy, g, sums, B, N, **sizes)
    return sums.sum(0)
