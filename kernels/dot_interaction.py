"""DLRM's pairwise dot interaction in Triton: one program a sample, the Gram matrix in tensor-core tiles.

With e bytes an element and P = T (T + 1) / 2 pairs, B samples must move e B ((T + 2) D + P) bytes forward and
e B ((2 T + 3) D + P) backward; the flops they must do are 2 B P D forward and 4 B P D backward. A tile of
R x R with R = next power of two of T + 1 does 2 B R^2 D: for T = 26 about 2.9 times the needed ones, which tensor
cores hide behind the memory traffic in 16-bit; in float32 they run as plain fused multiply-adds ("ieee", no tf32).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlperf_fast.errors import UserError

MAX_TABLES = 127  # R = 128: the float32 accumulator of one sample then fills a quarter of the register file


@triton.jit
def _features(dense_ptr, sparse_ptr, b, rows, cols, T, D):
    """The tile [rows, cols] of F = [dense; sparse] of sample b, zero outside."""
    dense_ptrs = dense_ptr + b * D + cols[None, :]
    sparse_ptrs = sparse_ptr + (b * T + rows[:, None] - 1) * D + cols[None, :]
    # The dense row's sparse pointer lies before its sample and is never read: the select takes the other one.
    ptrs = tl.where(rows[:, None] == 0, dense_ptrs, sparse_ptrs)
    return tl.load(ptrs, mask=(rows[:, None] <= T) & (cols[None, :] < D), other=0.0)


@triton.jit
def _dot_interaction_fwd_kernel(
    dense_ptr, sparse_ptr, out_ptr, T, D, R: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr
):
    """Moves e ((T + 2) D + P) bytes a sample (see the head of the file), 2 R^2 D flops."""
    b = tl.program_id(0).to(tl.int64)  # b * T * D passes 2^31 from 650,000 samples of 26 x 128
    rows = tl.arange(0, R)
    out_ptr += b * (D + T * (T + 1) // 2)
    gram = tl.zeros([R, R], tl.float32)
    for start in range(0, D, BLOCK_D):
        cols = start + tl.arange(0, BLOCK_D)
        f = _features(dense_ptr, sparse_ptr, b, rows, cols, T, D)
        tl.store(
            out_ptr + tl.broadcast_to(cols[None, :], [R, BLOCK_D]), f, mask=(rows[:, None] == 0) & (cols[None, :] < D)
        )
        if UPCAST:
            f = f.to(tl.float32)
        gram = tl.dot(f, tl.trans(f), gram, input_precision="ieee")
    i = rows[:, None]
    j = rows[None, :]
    tl.store(out_ptr + D + i * (i - 1) // 2 + j, gram.to(out_ptr.dtype.element_ty), mask=(j < i) & (i <= T))


@triton.jit
def _dot_interaction_bwd_kernel(
    dense_ptr,
    sparse_ptr,
    dout_ptr,
    ddense_ptr,
    dsparse_ptr,
    T,
    D,
    R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """dF = S F, where S is the symmetric matrix with dout's pairs off the diagonal and zeros on it.

    Moves e ((2 T + 3) D + P) bytes a sample (see the head of the file), 2 R^2 D flops.
    """
    b = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, R)
    dout_ptr += b * (D + T * (T + 1) // 2)
    high = tl.maximum(rows[:, None], rows[None, :])
    low = tl.minimum(rows[:, None], rows[None, :])
    s = tl.load(dout_ptr + D + high * (high - 1) // 2 + low, mask=(low < high) & (high <= T), other=0.0)
    if UPCAST:
        s = s.to(tl.float32)
    for start in range(0, D, BLOCK_D):
        cols = start + tl.arange(0, BLOCK_D)
        f = _features(dense_ptr, sparse_ptr, b, rows, cols, T, D)
        through = tl.load(dout_ptr + cols[None, :], mask=(rows[:, None] == 0) & (cols[None, :] < D), other=0.0)
        if UPCAST:
            f = f.to(tl.float32)
        df = tl.dot(s, f, through.to(tl.float32), input_precision="ieee")
        ddense_ptrs = ddense_ptr + b * D + cols[None, :]
        dsparse_ptrs = dsparse_ptr + (b * T + rows[:, None] - 1) * D + cols[None, :]
        ptrs = tl.where(rows[:, None] == 0, ddense_ptrs, dsparse_ptrs)
        tl.store(ptrs, df.to(ddense_ptr.dtype.element_ty), mask=(rows[:, None] <= T) & (cols[None, :] < D))


def tile(T: int, D: int, dtype: torch.dtype) -> dict[str, int]:
    """Compile-time sizes of both kernels. tl.dot wants at least 16 in each direction; float32 runs without tensor
    cores and keeps its operands in registers, so that large tiles want shorter steps and more warps."""
    R = max(16, triton.next_power_of_2(T + 1))
    steps = {128: 16, 64: 32}.get(R, 64) if dtype is torch.float32 else {128: 64, 64: 64}.get(R, 128)
    warps = {128: 16, 64: 8}.get(R, 4) if dtype is torch.float32 else {128: 8, 16: 2}.get(R, 4)
    BLOCK_D = max(16, min(triton.next_power_of_2(D), steps))
    registers = min(255, 2048 // warps)  # all there are: ptxas, left to itself, spills a few for a higher occupancy
    return {"R": R, "BLOCK_D": BLOCK_D, "num_warps": warps, "maxnreg": registers, "enable_fp_fusion": True}


def dot_interaction_fwd(dense: Tensor, sparse: Tensor, out: Tensor) -> None:
    """dense [B, D], sparse [B, T, D] -> out [B, D + T (T + 1) / 2]; contiguous, of one dtype."""
    _launch(_dot_interaction_fwd_kernel, sparse, dense, sparse, out)


def dot_interaction_bwd(dense: Tensor, sparse: Tensor, dout: Tensor, ddense: Tensor, dsparse: Tensor) -> None:
    """Writes ddense [B, D] and dsparse [B, T, D] whole; contiguous, all of one dtype."""
    _launch(_dot_interaction_bwd_kernel, sparse, dense, sparse, dout, ddense, dsparse)


def _launch(kernel, sparse: Tensor, *tensors: Tensor) -> None:
    B, T, D = sparse.shape
    if T > MAX_TABLES:
        raise UserError(f"dot_interaction: backend triton takes up to {MAX_TABLES} sparse features, found {T}")
    # The interpreter keeps bfloat16 as bare 16-bit integers, which its dot would multiply as such.
    upcast = triton.knobs.runtime.interpret and sparse.dtype is torch.bfloat16
    if B > 0:
        kernel[(B,)](*tensors, T, D, UPCAST=upcast, **tile(T, D, sparse.dtype))
