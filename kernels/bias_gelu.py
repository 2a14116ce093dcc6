"""gelu(x + bias), the form with tanh, in Triton: one pass forward, one backward.

With e bytes an element, must move 2 e B N bytes forward and 3 e B N backward, and do about 25 B N and 35 B N flops.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048  # elements at once: 16 a thread
STEPS = 8  # tiles a program, one below the other, so that few partial sums are written


@triton.jit
def _gate(v):
    """(1 + tanh u) / 2, without the cancellation of the sum. The exponent is cut where the result is 0 anyway."""
    return 1.0 / (1.0 + tl.exp(tl.minimum(-1.5957691216 * v * (1.0 + 0.044715 * v * v), 88.0)))


@triton.jit
def _bias_gelu_fwd_kernel(x_ptr, bias_ptr, y_ptr, B, N, ROWS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Moves 2 e bytes an element, about 25 flops."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # B * N may pass 2^31
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (rows < B)[:, None] & (cols < N)[None, :]
    at = rows[:, None] * N + cols[None, :]
    v = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    v += tl.load(bias_ptr + cols, mask=cols < N, other=0.0)[None, :]
    tl.store(y_ptr + at, (v * _gate(v)).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _bias_gelu_bwd_kernel(
    x_ptr, bias_ptr, dy_ptr, dx_ptr, sums_ptr, B, N, ROWS: tl.constexpr, STEPS: tl.constexpr, BLOCK_N: tl.constexpr
):
    """dx, and column sums of STEPS * ROWS rows. Moves 3 e bytes an element, 4 N a block of rows; about 35 flops."""
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    bias = tl.load(bias_ptr + cols, mask=cols < N, other=0.0)[None, :]
    total = tl.zeros([ROWS, BLOCK_N], tl.float32)
    for step in range(STEPS):
        rows = (tl.program_id(0).to(tl.int64) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        mask = (rows < B)[:, None] & (cols < N)[None, :]
        at = rows[:, None] * N + cols[None, :]
        v = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32) + bias
        dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        s = _gate(v)
        d = dy * (s + v * s * (1.0 - s) * 1.5957691216 * (1.0 + 0.134145 * v * v))
        total += d
        tl.store(dx_ptr + at, d.to(dx_ptr.dtype.element_ty), mask=mask)
    tl.store(sums_ptr + tl.program_id(0) * N + cols, tl.sum(total, 0), mask=cols < N)


def tile(N: int) -> dict[str, int]:
    """Compile-time sizes."""
    BLOCK_N = max(16, min(triton.next_power_of_2(N), 256))
    return {"ROWS": TILE // BLOCK_N, "BLOCK_N": BLOCK_N, "num_warps": 4, "enable_fp_fusion": True}


def bias_gelu_fwd(x: Tensor, bias: Tensor, y: Tensor) -> None:
    """x, y [B, N] contiguous, of one dtype; bias [N] float32."""
    (B, N), sizes = x.shape, tile(x.shape[1])
    if B > 0:
        grid = (triton.cdiv(B, sizes["ROWS"]), triton.cdiv(N, sizes["BLOCK_N"]))
        _bias_gelu_fwd_kernel[grid](x, bias, y, B, N, **sizes)


def bias_gelu_bwd(x: Tensor, bias: Tensor, dy: Tensor, dx: Tensor, dbias: Tensor) -> None:
    """Writes dx [B, N] and dbias [N] float32. Blocks of rows have sums of their own: the same bits in every run."""
    (B, N), sizes = x.shape, tile(x.shape[1])
    blocks = triton.cdiv(B, sizes["ROWS"] * STEPS)
    sums = torch.empty(blocks, N, dtype=torch.float32, device=x.device)
    if B > 0:
        grid = (blocks, triton.cdiv(N, sizes["BLOCK_N"]))
        _bias_gelu_bwd_kernel[grid](x, bias, dy, dx, sums, B, N, STEPS=STEPS, **sizes)
    torch.sum(sums, 0, out=dbias)
