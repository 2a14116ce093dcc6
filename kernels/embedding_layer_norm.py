"""Word, position and segment rows, their sum normalised, dropout: what BERT begins with, in Triton.

With e bytes an element, T tokens of H must move 2 e T H bytes forward, and backward as much, 4 T H for the gradient of
the rows' sum, and what torch's sum of it into dense tables moves. About 10 T H flops forward, 20 T H backward; with
dropout 8 T H integer operations more.

Numbers are checked on the way, without a host: a row outside its table counts as zeros, and the first that is seen goes
into errors = [kind, token, number], kind 1, 2, 3 for word, position, segment.
"""

import torch
import triton
import triton.language as tl
from mlperf_fast.kernels.dropout import random_bits
from mlperf_fast.kernels.layer_norm import BLOCKS, dropout_arguments, mean_and_rstd, tile_of


@triton.jit
def _row_of(ids_ptr, table_ptr, errors_ptr, kind, count, tokens, cols, T, H):
    """A tile of one table's rows for these tokens, float32."""
    number = tl.load(ids_ptr + tokens, mask=tokens < T, other=0)
    good = (number >= 0) & (number < count)
    if errors_ptr is not None:
        first = tl.min(tl.where((tokens < T) & ~good, tokens, 0x7FFFFFFF))
        if first < 0x7FFFFFFF:  # noqa: SIM102 (Triton evaluates both sides of an `and`)
            if tl.atomic_cas(errors_ptr, tl.cast(0, tl.int64), tl.cast(kind, tl.int64)) == 0:
                tl.store(errors_ptr + 1, first.to(tl.int64))
                tl.store(errors_ptr + 2, tl.max(tl.where(tokens == first, number, -0x80000000)).to(tl.int64))
    mask = ((tokens < T) & good)[:, None] & (cols < H)
    return tl.load(table_ptr + number[:, None].to(tl.int64) * H + cols, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _sum_of_rows(
    ids_ptr, positions_ptr, segments_ptr, word_ptr, position_ptr, segment_ptr, errors_ptr, V, P, S, tokens, cols, T, H,
):  # fmt: skip
    h = _row_of(ids_ptr, word_ptr, errors_ptr, 1, V, tokens, cols, T, H)
    h += _row_of(positions_ptr, position_ptr, errors_ptr, 2, P, tokens, cols, T, H)
    return h + _row_of(segments_ptr, segment_ptr, errors_ptr, 3, S, tokens, cols, T, H)


@triton.jit
def _embedding_layer_norm_fwd_kernel(
    ids_ptr, positions_ptr, segments_ptr, word_ptr, position_ptr, segment_ptr, gamma_ptr, beta_ptr, y_ptr, mean_ptr,
    rstd_ptr, errors_ptr, state_ptr, site, threshold, scale, eps, V, P, S, T, H, ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """ROWS tokens a program. Moves 2 e bytes an element, about 10 flops an element."""
    tokens = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK_N)[None, :]
    h = _sum_of_rows(
        ids_ptr, positions_ptr, segments_ptr, word_ptr, position_ptr, segment_ptr, errors_ptr, V, P, S, tokens, cols, T,
        H,
    )  # fmt: skip
    mask = (tokens < T)[:, None] & (cols < H)
    mean, rstd = mean_and_rstd(h, mask, H, eps)
    tl.store(mean_ptr + tokens, mean, mask=tokens < T)
    tl.store(rstd_ptr + tokens, rstd, mask=tokens < T)
    gamma = tl.load(gamma_ptr + cols, mask=cols < H, other=0.0)
    beta = tl.load(beta_ptr + cols, mask=cols < H, other=0.0)
    y = (h - mean[:, None]) * rstd[:, None] * gamma + beta
    if state_ptr is not None:
        y = tl.where(random_bits(state_ptr, site, tokens, 0, ROWS, BLOCK_N) >= threshold, y * scale, 0.0)
    at = tokens[:, None].to(tl.int64) * H + cols  # T * H may pass 2^31
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _embedding_layer_norm_bwd_kernel(
    ids_ptr, positions_ptr, segments_ptr, word_ptr, position_ptr, segment_ptr, gamma_ptr, mean_ptr, rstd_ptr, dy_ptr,
    dsum_ptr, sums_ptr, state_ptr, site, threshold, scale, V, P, S, T, H, STEPS, ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """STEPS * ROWS tokens a program, whose sums for gamma and beta stay in registers until the end.

    Moves 2 e + 4 bytes an element and 8 H a program, about 20 flops an element.
    """
    cols = tl.arange(0, BLOCK_N)[None, :]
    gamma = tl.load(gamma_ptr + cols, mask=cols < H, other=0.0)
    dgamma = tl.zeros([ROWS, BLOCK_N], tl.float32)
    dbeta = tl.zeros([ROWS, BLOCK_N], tl.float32)
    for step in range(STEPS):
        tokens = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        mask = (tokens < T)[:, None] & (cols < H)
        at = tokens[:, None].to(tl.int64) * H + cols
        h = _sum_of_rows(
            ids_ptr, positions_ptr, segments_ptr, word_ptr, position_ptr, segment_ptr, None, V, P, S, tokens, cols, T, H
        )
        mean = tl.load(mean_ptr + tokens, mask=tokens < T, other=0.0)[:, None]
        rstd = tl.load(rstd_ptr + tokens, mask=tokens < T, other=0.0)[:, None]
        z = tl.where(mask, (h - mean) * rstd, 0.0)
        dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if state_ptr is not None:
            dy = tl.where(random_bits(state_ptr, site, tokens, 0, ROWS, BLOCK_N) >= threshold, dy * scale, 0.0)
        dgamma += dy * z
        dbeta += dy
        g = dy * gamma
        dh = rstd * (g - (tl.sum(g, 1) / H)[:, None] - z * (tl.sum(g * z, 1) / H)[:, None])
        tl.store(dsum_ptr + at, dh, mask=mask)
    to = sums_ptr + tl.program_id(0) * 2 * H + cols
    tl.store(to, tl.sum(dgamma, 0)[None, :], mask=cols < H)
    tl.store(to + H, tl.sum(dbeta, 0)[None, :], mask=cols < H)


def embedding_layer_norm_fwd(
    ids, positions, segments, word, position, segment, gamma, beta, y, mean, rstd, eps, state, site, threshold, errors
) -> None:
    """ids, positions, segments [T] int32; word, position, segment [rows, H] and y [T, H] of one dtype; gamma, beta [H],
    mean, rstd [T] float32; errors [3] int64."""
    (T, H), sizes = y.shape, tile_of("embedding_layer_norm", y.shape[1])
    if T > 0:
        tables = (ids, positions, segments, word, position, segment)
        rows = (word.shape[0], position.shape[0], segment.shape[0])
        _embedding_layer_norm_fwd_kernel[(triton.cdiv(T, sizes["ROWS"]),)](
            *tables,
            gamma,
            beta,
            y,
            mean,
            rstd,
            errors,
            *dropout_arguments(state, site, threshold),
            eps,
            *rows,
            T,
            H,
            **sizes,
        )


def embedding_layer_norm_bwd(
    ids, positions, segments, word, position, segment, gamma, mean, rstd, dy, dsum, sums, state, site, threshold
) -> None:
    """Writes dsum [T, H] and sums [2, H], dgamma and dbeta, in float32.

    Each program has sums of its own, added up afterwards: the same bits in every run.
    """
    (T, H), sizes = dy.shape, tile_of("embedding_layer_norm", dy.shape[1])
    if T == 0:
        sums.zero_()
        return
    steps = triton.cdiv(triton.cdiv(T, sizes["ROWS"]), BLOCKS)
    programs = triton.cdiv(triton.cdiv(T, sizes["ROWS"]), steps)
    partial = torch.empty(programs, 2, H, dtype=torch.float32, device=dy.device)
    tables = (ids, positions, segments, word, position, segment)
    rows = (word.shape[0], position.shape[0], segment.shape[0])
    _embedding_layer_norm_bwd_kernel[(programs,)](
        *tables,
        gamma,
        mean,
        rstd,
        dy,
        dsum,
        partial,
        *dropout_arguments(state, site, threshold),
        *rows,
        T,
        H,
        steps,
        **sizes,
    )
    torch.sum(partial, 0, out=sums)
