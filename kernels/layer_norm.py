"""Layer normalisation of residual + dropout(x + bias) in Triton: rows stay in registers, each is read once.

With e bytes an element, B rows of N must move 3 e B N bytes forward and 5 e B N backward (see csrc/layer_norm.h), and
do about 10 B N flops forward, 20 B N backward; with dropout 8 B N integer operations more. All of it waits for memory.
"""

import torch
import triton
import triton.language as tl
from mlperf_fast.kernels.dropout import random_bits
from torch import Tensor

from mlperf_fast.errors import UserError

MAX_COLS = 4096  # 8 warps then hold 16 elements a thread, and as many of each of the three sums; twice that spills
BLOCKS = 512  # sums of gradients that are added up at the end: a few for each of a GPU's 108 to 148 multiprocessors


@triton.jit
def _sum_of_rows(
    x_ptr, bias_ptr, residual_ptr, state_ptr, site, threshold, scale, rows, cols, mask, at, ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """residual + dropout(x + bias) of a tile, float32; and which of its elements are kept."""
    h = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        h += tl.load(bias_ptr + cols, mask=mask, other=0.0)
    kept = mask
    if state_ptr is not None:
        kept = mask & (random_bits(state_ptr, site, rows, 0, ROWS, BLOCK_N) >= threshold)
        h = tl.where(kept, h * scale, 0.0)
    if residual_ptr is not None:
        h += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    return h, kept


@triton.jit
def mean_and_rstd(h, mask, N, eps):
    """Of each row of a tile: the mean, and 1 / sqrt(variance + eps)."""
    # The mean is rounded, and its error would count as variance: both are corrected by the mean difference.
    mean = tl.sum(h, 1) / N
    d = tl.where(mask, h - mean[:, None], 0.0)
    shift = tl.sum(d, 1) / N
    variance = tl.sum(d * d, 1) / N - shift * shift
    return mean + shift, 1.0 / tl.sqrt(tl.where(variance < 0, 0.0, variance) + eps)


@triton.jit
def _layer_norm_fwd_kernel(
    x_ptr, bias_ptr, residual_ptr, gamma_ptr, beta_ptr, y_ptr, mean_ptr, rstd_ptr, state_ptr, site, threshold, scale,
    eps, B, N, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """ROWS rows a program. Moves 3 e bytes an element (2 e without a residual), about 10 flops an element."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK_N)[None, :]
    mask = (rows < B)[:, None] & (cols < N)
    at = rows[:, None].to(tl.int64) * N + cols  # B * N may pass 2^31
    h, _ = _sum_of_rows(
        x_ptr, bias_ptr, residual_ptr, state_ptr, site, threshold, scale, rows, cols, mask, at, ROWS, BLOCK_N
    )
    mean, rstd = mean_and_rstd(h, mask, N, eps)
    tl.store(mean_ptr + rows, mean, mask=rows < B)
    tl.store(rstd_ptr + rows, rstd, mask=rows < B)
    gamma = tl.load(gamma_ptr + cols, mask=cols < N, other=0.0)
    beta = tl.load(beta_ptr + cols, mask=cols < N, other=0.0)
    y = (h - mean[:, None]) * rstd[:, None] * gamma + beta
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _layer_norm_bwd_kernel(
    x_ptr, bias_ptr, residual_ptr, gamma_ptr, mean_ptr, rstd_ptr, dy_ptr, dx_ptr, dresidual_ptr, sums_ptr, state_ptr,
    site, threshold, scale, B, N, STEPS, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """STEPS * ROWS rows a program, whose sums for gamma, beta and bias stay in registers until the end.

    Moves 5 e bytes an element (3 e without a residual, 4 e without dropout) and 12 N a program, about 20 flops an
    element.
    """
    cols = tl.arange(0, BLOCK_N)[None, :]
    gamma = tl.load(gamma_ptr + cols, mask=cols < N, other=0.0)
    dgamma = tl.zeros([ROWS, BLOCK_N], tl.float32)
    dbeta = tl.zeros([ROWS, BLOCK_N], tl.float32)
    dbias = tl.zeros([ROWS, BLOCK_N], tl.float32)
    for step in range(STEPS):
        rows = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        mask = (rows < B)[:, None] & (cols < N)
        at = rows[:, None].to(tl.int64) * N + cols
        h, kept = _sum_of_rows(
            x_ptr, bias_ptr, residual_ptr, state_ptr, site, threshold, scale, rows, cols, mask, at, ROWS, BLOCK_N
        )
        mean = tl.load(mean_ptr + rows, mask=rows < B, other=0.0)[:, None]
        rstd = tl.load(rstd_ptr + rows, mask=rows < B, other=0.0)[:, None]
        z = tl.where(mask, (h - mean) * rstd, 0.0)
        dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dgamma += dy * z
        dbeta += dy
        g = dy * gamma
        dh = rstd * (g - (tl.sum(g, 1) / N)[:, None] - z * (tl.sum(g * z, 1) / N)[:, None])
        if dresidual_ptr is not None:
            tl.store(dresidual_ptr + at, dh.to(dresidual_ptr.dtype.element_ty), mask=mask)
        dx = tl.where(kept, dh * scale, 0.0)
        dbias += dx
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    to = sums_ptr + tl.program_id(0) * 3 * N + cols
    tl.store(to, tl.sum(dgamma, 0)[None, :], mask=cols < N)
    tl.store(to + N, tl.sum(dbeta, 0)[None, :], mask=cols < N)
    tl.store(to + 2 * N, tl.sum(dbias, 0)[None, :], mask=cols < N)


def tile(N: int) -> dict[str, int]:
    """Compile-time sizes of both kernels: a whole row, and several of short ones; 8 to 16 elements a thread."""
    BLOCK_N = max(16, triton.next_power_of_2(N))
    ROWS = max(1, 1024 // BLOCK_N)
    warps = min(8, max(4, ROWS * BLOCK_N // 512))
    # Without a limit of its own ptxas stops at 80 registers in one case, and spills.
    return {"ROWS": ROWS, "BLOCK_N": BLOCK_N, "num_warps": warps, "maxnreg": 255, "enable_fp_fusion": True}


def dropout_arguments(state: Tensor | None, site: int, threshold: int) -> tuple[Tensor | None, int, int, float]:
    """Absent where nothing is dropped, so that no bits are drawn."""
    return state if threshold else None, site, threshold, 65536 / (65536 - threshold)


def tile_of(op: str, N: int) -> dict[str, int]:
    if N > MAX_COLS:
        raise UserError(f"{op}: backend triton takes rows of up to {MAX_COLS} elements, found {N}")
    return tile(N)


def layer_norm_fwd(x, bias, residual, gamma, beta, y, mean, rstd, eps, state, site, threshold) -> None:
    """x, residual, y [B, N] of one dtype; bias, gamma, beta [N], mean, rstd [B] float32; bias, residual may be None."""
    (B, N), sizes = x.shape, tile_of("layer_norm", x.shape[1])
    if B > 0:
        dropout = dropout_arguments(state, site, threshold)
        _layer_norm_fwd_kernel[(triton.cdiv(B, sizes["ROWS"]),)](
            x, bias, residual, gamma, beta, y, mean, rstd, *dropout, eps, B, N, **sizes
        )


def layer_norm_bwd(x, bias, residual, gamma, mean, rstd, dy, dx, dresidual, sums, state, site, threshold) -> None:
    """Writes dx, dresidual (None: not wanted) [B, N] and sums [3, N] float32: dgamma, dbeta, dbias.

    Each program has sums of its own, added up afterwards: the same bits in every run.
    """
    (B, N), sizes = x.shape, tile_of("layer_norm", x.shape[1])
    if B == 0:
        sums.zero_()
        return
    steps = triton.cdiv(triton.cdiv(B, sizes["ROWS"]), BLOCKS)
    programs = triton.cdiv(triton.cdiv(B, sizes["ROWS"]), steps)
    partial = torch.empty(programs, 3, N, dtype=torch.float32, device=x.device)
    _layer_norm_bwd_kernel[(programs,)](
        x, bias, residual, gamma, mean, rstd, dy, dx, dresidual, partial, *dropout_arguments(state, site, threshold),
        B, N, steps, **sizes,
    )  # fmt: skip
    torch.sum(partial, 0, out=sums)
