"""Batch normalisation of rows of channels, with residual and ReLU, in Triton; csrc/batch_norm.h is its contract.

With e bytes an element and a bit for the mask, must move of R C elements: moments e, apply 3 e, sums 2 e, dx 4 e bytes
(less e for an absent residual or its gradient), and do about 4, 5, 4 and 6 flops each. All of it waits for memory.

Blocks of rows have sums of their own, which a second launch adds up in their order: the same bits in every run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32  # a tile's: as many as a word of the mask has bits
BLOCKS = 1024  # programs of a sum: 7 to 9 for each of a GPU's 108 to 148 multiprocessors, and one tile when they merge
MERGED = 8  # columns at once then: 32 bytes, the least that memory moves


@triton.jit
def _place(C, BLOCK_C: tl.constexpr):
    """Of this program: its block of rows, and its columns. Neighbours have the same rows."""
    across = tl.cdiv(C, BLOCK_C)
    block = (tl.program_id(0) // across).to(tl.int64)  # R * C may pass 2^31
    return block, (tl.program_id(0) % across) * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def _tile(group, cols, R, C, ROWS: tl.constexpr):
    """Of a group of rows: where its elements are, and which of them there are."""
    rows = group * ROWS + tl.arange(0, ROWS)
    return rows[:, None] * C + cols[None, :], (rows < R)[:, None] & (cols < C)[None, :]


@triton.jit
def _read(ptr, at, there):
    return tl.load(ptr + at, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _channels(ptr, cols, C):
    """A row of C values, at a tile's columns."""
    return tl.load(ptr + cols, mask=cols < C, other=0)


@triton.jit
def _rstd(variance_ptr, cols, C, eps):
    return 1.0 / tl.sqrt(_channels(variance_ptr, cols, C) + eps)


@triton.jit
def _kept_gradient(dy_ptr, mask_ptr, group, at, there, cols, C, ROWS: tl.constexpr):
    """dy where ReLU kept the element, else 0."""
    v = _read(dy_ptr, at, there)
    if mask_ptr is not None:
        words = _channels(mask_ptr + group * C, cols, C)
        v = tl.where(((words[None, :] >> tl.arange(0, ROWS)[:, None]) & 1) != 0, v, 0.0)
    return v


@triton.jit
def _batch_norm_moments_kernel(x_ptr, partial_ptr, R, C, STEPS, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Of STEPS * ROWS rows, into [blocks, 3, C]: a pivot, the mean's distance from it, squared distances from the mean.

    The pivot is the first ROWS rows' mean: what is summed has the size of the deviation, whatever the mean is. Moves
    e bytes an element and 12 C a block, about 4 flops an element; the first rows come from the caches again.
    """
    block, cols = _place(C, BLOCK_C)
    first = block * STEPS
    rows = R - first * ROWS
    at, there = _tile(first, cols, R, C, ROWS)
    pivot = tl.sum(_read(x_ptr, at, there), 0) / tl.minimum(rows, ROWS)
    total = tl.zeros([ROWS, BLOCK_C], tl.float32)
    squares = tl.zeros([ROWS, BLOCK_C], tl.float32)
    for group in range(first, tl.minimum(first + STEPS, tl.cdiv(R, ROWS))):
        at, there = _tile(group, cols, R, C, ROWS)
        d = tl.where(there, _read(x_ptr, at, there) - pivot[None, :], 0.0)
        total += d
        squares += d * d
    shift = tl.sum(total, 0) / tl.minimum(rows, STEPS * ROWS)
    to = partial_ptr + block * 3 * C + cols
    tl.store(to, pivot, mask=cols < C)
    tl.store(to + C, shift, mask=cols < C)
    tl.store(to + 2 * C, tl.sum(squares, 0) - tl.sum(total, 0) * shift, mask=cols < C)


@triton.jit
def _batch_norm_merge_moments_kernel(
    partial_ptr, moments_ptr, running_mean_ptr, running_variance_ptr, momentum, unbiased, R, C, blocks, height,
    BLOCKS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Mean and variance from those of blocks of `height` rows, the last maybe of less; then the running statistics,
    whose variance is `unbiased` times the own one.

    Moves 12 bytes a column and block and 24 a column; about 8 flops a column and block.
    """
    block = tl.arange(0, BLOCKS).to(tl.int64)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    there = (block < blocks)[:, None] & (cols < C)[None, :]
    at = block[:, None] * 3 * C + cols[None, :]
    rows = tl.maximum(tl.minimum(R - block * height, height), 0).to(tl.float32)[:, None]
    # Relative to the first pivot, as the blocks are to theirs: neighbouring floats subtract exactly.
    pivot = _channels(partial_ptr, cols, C)
    off = _read(partial_ptr, at, there) - pivot[None, :] + _read(partial_ptr + C, at, there)
    off = tl.where(there, off, 0.0)
    shift = tl.sum(rows * off, 0) / R
    off -= shift[None, :]
    variance = tl.sum(_read(partial_ptr + 2 * C, at, there) + rows * off * off, 0) / R
    variance = tl.where(variance < 0, 0.0, variance)  # NaN stays NaN
    mean = pivot + shift
    tl.store(moments_ptr + cols, mean, mask=cols < C)
    tl.store(moments_ptr + C + cols, variance, mask=cols < C)
    if running_mean_ptr is not None:
        own = _channels(running_mean_ptr, cols, C)
        tl.store(running_mean_ptr + cols, own + momentum * (mean - own), mask=cols < C)
        own = _channels(running_variance_ptr, cols, C)
        tl.store(running_variance_ptr + cols, own + momentum * (variance * unbiased - own), mask=cols < C)


@triton.jit
def _batch_norm_apply_kernel(
    x_ptr, residual_ptr, mean_ptr, variance_ptr, gamma_ptr, beta_ptr, y_ptr, mask_ptr, eps, R, C, RELU: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile a program. Moves 3 e bytes an element (2 e without a residual), 1 bit for the mask; about 5 flops."""
    group, cols = _place(C, BLOCK_C)
    at, there = _tile(group, cols, R, C, ROWS)
    mean = _channels(mean_ptr, cols, C)
    scale = _channels(gamma_ptr, cols, C) * _rstd(variance_ptr, cols, C, eps)
    beta = _channels(beta_ptr, cols, C)
    v = (_read(x_ptr, at, there) - mean[None, :]) * scale[None, :] + beta[None, :]
    if residual_ptr is not None:
        v += _read(residual_ptr, at, there)
    if RELU:
        kept = there & ~(v <= 0)  # NaN is kept, as torch's is
        if mask_ptr is not None:
            bits = kept.to(tl.int32) << tl.arange(0, ROWS)[:, None]
            tl.store(mask_ptr + group * C + cols, tl.sum(bits, 0), mask=cols < C)  # no two rows share a bit
        v = tl.where(kept, v, 0.0)
    tl.store(y_ptr + at, v.to(y_ptr.dtype.element_ty), mask=there)


@triton.jit
def _batch_norm_sums_kernel(
    dy_ptr, x_ptr, mask_ptr, mean_ptr, partial_ptr, dresidual_ptr, R, C, STEPS, ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Of STEPS * ROWS rows, into [blocks, 2, C]: the sums of dy and of dy (x - mean), dy 0 where ReLU was. That dy is
    the residual's gradient.

    Moves 3 e bytes an element (2 e without dresidual), 1 bit for the mask and 8 C a block; about 4 flops an element.
    """
    block, cols = _place(C, BLOCK_C)
    mean = _channels(mean_ptr, cols, C)
    plain = tl.zeros([ROWS, BLOCK_C], tl.float32)
    product = tl.zeros([ROWS, BLOCK_C], tl.float32)
    for group in range(block * STEPS, tl.minimum(block * STEPS + STEPS, tl.cdiv(R, ROWS))):
        at, there = _tile(group, cols, R, C, ROWS)
        v = _kept_gradient(dy_ptr, mask_ptr, group, at, there, cols, C, ROWS)
        if dresidual_ptr is not None:
            tl.store(dresidual_ptr + at, v.to(dresidual_ptr.dtype.element_ty), mask=there)
        plain += v
        product += v * (_read(x_ptr, at, there) - mean[None, :])
    to = partial_ptr + block * 2 * C + cols
    tl.store(to, tl.sum(plain, 0), mask=cols < C)
    tl.store(to + C, tl.sum(product, 0), mask=cols < C)


@triton.jit
def _batch_norm_merge_sums_kernel(
    partial_ptr, variance_ptr, sums_ptr, eps, C, blocks, BLOCKS: tl.constexpr, COLS: tl.constexpr
):
    """The gradients of beta and gamma. Moves 8 bytes a column and block and 12 a column; 2 flops a column and block."""
    block = tl.arange(0, BLOCKS).to(tl.int64)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    there = (block < blocks)[:, None] & (cols < C)[None, :]
    at = block[:, None] * 2 * C + cols[None, :]
    tl.store(sums_ptr + cols, tl.sum(_read(partial_ptr, at, there), 0), mask=cols < C)
    product = tl.sum(_read(partial_ptr + C, at, there), 0) * _rstd(variance_ptr, cols, C, eps)
    tl.store(sums_ptr + C + cols, product, mask=cols < C)


@triton.jit
def _batch_norm_dx_kernel(
    dy_ptr, x_ptr, mask_ptr, mean_ptr, variance_ptr, gamma_ptr, sums_ptr, dx_ptr, eps, share, R, C, ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile a program; `share` is 1 / the values that share the statistics.

    Moves 3 e bytes an element, 1 bit for a mask; about 6 flops an element.
    """
    group, cols = _place(C, BLOCK_C)
    at, there = _tile(group, cols, R, C, ROWS)
    rstd = _rstd(variance_ptr, cols, C, eps)
    mean = _channels(mean_ptr, cols, C)
    scale = _channels(gamma_ptr, cols, C) * rstd
    plain = _channels(sums_ptr, cols, C) * share
    slope = _channels(sums_ptr + C, cols, C) * rstd * share
    v = _kept_gradient(dy_ptr, mask_ptr, group, at, there, cols, C, ROWS)
    v -= plain[None, :] + (_read(x_ptr, at, there) - mean[None, :]) * slope[None, :]
    tl.store(dx_ptr + at, (v * scale[None, :]).to(dx_ptr.dtype.element_ty), mask=there)


def tile(C: int) -> dict[str, int]:
    """Compile-time sizes of all but the merging kernels: 16 elements a thread."""
    BLOCK_C = max(16, min(triton.next_power_of_2(C), 128))
    return {"ROWS": ROWS, "BLOCK_C": BLOCK_C, "num_warps": BLOCK_C // 16, "enable_fp_fusion": True}


def merging_tile(blocks: int) -> dict[str, int]:
    """Compile-time sizes of the merging kernels: all blocks at once, 16 of each value a thread."""
    most = max(64, triton.next_power_of_2(blocks))
    return {"BLOCKS": most, "COLS": MERGED, "num_warps": most // 64, "enable_fp_fusion": True}


def across(C: int) -> int:
    """Tiles beside each other."""
    return triton.cdiv(C, tile(C)["BLOCK_C"])


def blocks_of_rows(R: int, C: int) -> tuple[int, int]:
    """How many blocks have sums of their own, and of how many tiles each; a function of the shape alone."""
    groups = triton.cdiv(R, ROWS)
    steps = triton.cdiv(groups, max(1, BLOCKS // across(C)))
    return triton.cdiv(groups, steps), steps


def batch_norm_moments(
    x: Tensor, moments: Tensor, running_mean: Tensor | None, running_variance: Tensor | None, momentum: float
) -> None:
    """x [R, C] -> moments [2, C] float32: mean, biased variance. Running statistics [C] float32 change in place to
    (1 - momentum) * running + momentum * own, the variance's own one unbiased. R at least 1."""
    R, C = x.shape
    blocks, steps = blocks_of_rows(R, C)
    partial = torch.empty(blocks, 3, C, dtype=torch.float32, device=x.device)
    _batch_norm_moments_kernel[(blocks * across(C),)](x, partial, R, C, steps, **tile(C))
    _batch_norm_merge_moments_kernel[(triton.cdiv(C, MERGED),)](
        partial, moments, running_mean, running_variance, momentum, R / max(1, R - 1), R, C, blocks, steps * ROWS,
        **merging_tile(blocks),
    )  # fmt: skip


def batch_norm_apply(
    x: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor,
    beta: Tensor,
    y: Tensor,
    mask: Tensor | None,
    eps: float,
    relu: bool,
) -> None:
    """x, residual, y [R, C] of one dtype; mean, variance, gamma, beta [C] float32; mask, which needs relu,
    [ceil(R / 32), C] int32: bit r of word (g, c) is 1 where the element of row 32 g + r was kept."""
    R, C = x.shape
    if R > 0:
        _batch_norm_apply_kernel[(triton.cdiv(R, ROWS) * across(C),)](
            x, residual, mean, variance, gamma, beta, y, mask, eps, R, C, RELU=relu, **tile(C)
        )


def batch_norm_sums(
    dy: Tensor,
    x: Tensor,
    mask: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    sums: Tensor,
    dresidual: Tensor | None,
    eps: float,
) -> None:
    """dy, x [R, C] of one dtype, mask as batch_norm_apply's or None -> sums [2, C] float32: dbeta, dgamma; and
    dresidual (None: not wanted), like dy. R at least 1."""
    R, C = x.shape
    blocks, steps = blocks_of_rows(R, C)
    partial = torch.empty(blocks, 2, C, dtype=torch.float32, device=x.device)
    _batch_norm_sums_kernel[(blocks * across(C),)](dy, x, mask, mean, partial, dresidual, R, C, steps, **tile(C))
    _batch_norm_merge_sums_kernel[(triton.cdiv(C, MERGED),)](
        partial, variance, sums, eps, C, blocks, **merging_tile(blocks)
    )


def batch_norm_dx(
    dy: Tensor,
    x: Tensor,
    mask: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor,
    sums: Tensor,
    dx: Tensor,
    eps: float,
    count: int,
) -> None:
    """Writes dx [R, C], of dy's and x's dtype. sums are those of all `count` values that share mean and variance. R at
    least 1."""
    R, C = x.shape
    _batch_norm_dx_kernel[(triton.cdiv(R, ROWS) * across(C),)](
        dy, x, mask, mean, variance, gamma, sums, dx, eps, 1 / count, R, C, **tile(C)
    )
