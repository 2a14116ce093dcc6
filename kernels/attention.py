"""Attention of sequences of any lengths in Triton: a program a block of one sequence's tokens and one head.

Flops and bytes as in csrc/attention.h: with S the sum over sequences of length^2, 4 S H D flops forward and 10 S H D
backward, which are 14 S H D here: queries' and keys' gradients are two kernels, so that none needs atomics, and each
computes the scores and their gradient. Tiles of 16-bit numbers go through tensor cores and are summed in float32;
float32 multiplies as float32, never as tf32.

Programs read cu_seqlens on the device: its entries are cut to 0 .. T, so that whatever it holds nothing outside of the
tensors is touched.
"""

import torch
import triton
import triton.language as tl
from mlperf_fast.kernels.dropout import random_bits

from mlperf_fast.errors import UserError

HEAD_SIZES = (16, 32, 64, 128)  # what a tile holds whole
# Queries and keys in a block of each kernel, in 16 bits. More of what comes by turns would spill backward.
FORWARD, QUERIES, KEYS = (64, 64), (64, 32), (32, 64)
LOG2_E = tl.constexpr(1.4426950408889634)  # exp2 is what the hardware has


@triton.jit
def _bounds(cu_seqlens_ptr, sequence, T, longest):
    """First token and length of a sequence."""
    first = tl.minimum(tl.maximum(tl.load(cu_seqlens_ptr + sequence), 0), T)
    last = tl.minimum(tl.maximum(tl.load(cu_seqlens_ptr + sequence + 1), first), T)
    return first, tl.minimum(last - first, longest)


@triton.jit
def _zero_rest(x_ptr, cu_seqlens_ptr, b, T, row, BLOCK: tl.constexpr, D: tl.constexpr):
    """Rows of the tokens behind the last sequence: [D] at x_ptr + token * row."""
    first = tl.minimum(tl.maximum(tl.load(cu_seqlens_ptr + b), 0), T)
    tokens = tl.arange(0, BLOCK)
    for start in range(first + tl.program_id(0) * BLOCK, T, tl.num_programs(0) * BLOCK):
        at = (start + tokens[:, None]).to(tl.int64) * row + tl.arange(0, D)[None, :]
        tl.store(x_ptr + at, tl.zeros([BLOCK, D], x_ptr.dtype.element_ty), mask=(start + tokens < T)[:, None])


@triton.jit
def _rows(x_ptr, first, stride, count, BLOCK: tl.constexpr, D: tl.constexpr, UPCAST: tl.constexpr):
    """[BLOCK, D] from row `first` on, zeros from row `count` on."""
    rows = first + tl.arange(0, BLOCK)[:, None]
    x = tl.load(x_ptr + rows * stride + tl.arange(0, D)[None, :], mask=rows < count, other=0.0)
    return x.to(tl.float32) if UPCAST else x


@triton.jit
def _attention_fwd_kernel(
    qkv_ptr, cu_seqlens_ptr, out_ptr, lse_ptr, state_ptr, site, threshold, keep_scale, scale, T, H, b, longest,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """BLOCK_M queries against all keys of their sequence. Over all programs 4 e T H D bytes, and a sequence's keys and
    values once more for each further block of its queries; 4 S H D flops."""
    head, sequence = tl.program_id(1), tl.program_id(2)
    if sequence == b:
        _zero_rest(out_ptr + head * D, cu_seqlens_ptr, b, T, H * D, BLOCK_M, D)
        return
    first, length = _bounds(cu_seqlens_ptr, sequence, T, longest)
    start = tl.program_id(0) * BLOCK_M
    if start >= length:
        return
    qkv_ptr += first.to(tl.int64) * 3 * H * D + head * D
    q = _rows(qkv_ptr, start, 3 * H * D, length, BLOCK_M, D, UPCAST)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    queries = start + tl.arange(0, BLOCK_M)
    for key in range(0, length, BLOCK_N):
        k = _rows(qkv_ptr + H * D, key, 3 * H * D, length, BLOCK_N, D, UPCAST)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)
        s = tl.where((key + tl.arange(0, BLOCK_N) < length)[None, :], s, float("-inf"))
        largest = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2(s - largest[:, None])
        shrink = tl.exp2(m - largest)
        total = total * shrink + tl.sum(p, 1)
        m = largest
        if state_ptr is not None:
            bits = random_bits(state_ptr, site, (first + queries) * H + head, key, BLOCK_M, BLOCK_N)
            p = tl.where(bits >= threshold, p, 0.0)
        v = _rows(qkv_ptr + 2 * H * D, key, 3 * H * D, length, BLOCK_N, D, UPCAST)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    out = acc * (keep_scale / total)[:, None]
    at = (first + queries).to(tl.int64) * H + head
    tl.store(lse_ptr + at, (m + tl.log2(total)) / LOG2_E, mask=queries < length)
    at = at[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=(queries < length)[:, None])


@triton.jit
def _attention_bwd_dq_kernel(
    qkv_ptr, cu_seqlens_ptr, out_ptr, lse_ptr, dout_ptr, dqkv_ptr, delta_ptr, state_ptr, site, threshold, keep_scale,
    scale, T, H, b, longest, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The gradient of BLOCK_M queries, and delta, the products out . dout, for the other kernel. Over all programs
    6 e T H D bytes, and keys and values once more for each further block of queries; 6 S H D flops."""
    head, sequence = tl.program_id(1), tl.program_id(2)
    if sequence == b:
        for part in tl.static_range(3):
            _zero_rest(dqkv_ptr + (part * H + head) * D, cu_seqlens_ptr, b, T, 3 * H * D, BLOCK_M, D)
        return
    first, length = _bounds(cu_seqlens_ptr, sequence, T, longest)
    start = tl.program_id(0) * BLOCK_M
    if start >= length:
        return
    queries = start + tl.arange(0, BLOCK_M)
    result = first.to(tl.int64) * H * D + head * D  # where the sequence begins in out and dout
    qkv_ptr += 3 * first.to(tl.int64) * H * D + head * D
    q = _rows(qkv_ptr, start, 3 * H * D, length, BLOCK_M, D, UPCAST)
    dout = _rows(dout_ptr + result, start, H * D, length, BLOCK_M, D, UPCAST)
    out = _rows(out_ptr + result, start, H * D, length, BLOCK_M, D, UPCAST)
    delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1)
    at = (first + queries).to(tl.int64) * H + head
    tl.store(delta_ptr + at, delta, mask=queries < length)
    lse = tl.load(lse_ptr + at, mask=queries < length, other=0.0) * LOG2_E
    dq = tl.zeros([BLOCK_M, D], tl.float32)
    for key in range(0, length, BLOCK_N):
        k = _rows(qkv_ptr + H * D, key, 3 * H * D, length, BLOCK_N, D, UPCAST)
        v = _rows(qkv_ptr + 2 * H * D, key, 3 * H * D, length, BLOCK_N, D, UPCAST)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)
        p = tl.where((key + tl.arange(0, BLOCK_N) < length)[None, :], tl.exp2(s - lse[:, None]), 0.0)
        dp = tl.dot(dout, tl.trans(v), input_precision="ieee")
        if state_ptr is not None:
            bits = random_bits(state_ptr, site, (first + queries) * H + head, key, BLOCK_M, BLOCK_N)
            dp = tl.where(bits >= threshold, dp * keep_scale, 0.0)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    to = dqkv_ptr + 3 * first.to(tl.int64) * H * D + head * D + queries[:, None] * 3 * H * D + tl.arange(0, D)[None, :]
    tl.store(to, (dq * scale).to(dqkv_ptr.dtype.element_ty), mask=(queries < length)[:, None])


@triton.jit
def _attention_bwd_dkv_kernel(
    qkv_ptr, cu_seqlens_ptr, lse_ptr, dout_ptr, dqkv_ptr, delta_ptr, state_ptr, site, threshold, keep_scale, scale, T,
    H, b, longest, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The gradients of BLOCK_N keys and values, from all queries of their sequence. Over all programs 6 e T H D bytes,
    and queries and dout once more for each further block of keys; 8 S H D flops."""
    head, sequence = tl.program_id(1), tl.program_id(2)
    first, length = _bounds(cu_seqlens_ptr, sequence, T, longest)
    start = tl.program_id(0) * BLOCK_N
    if start >= length:
        return
    keys = start + tl.arange(0, BLOCK_N)
    begin = 3 * first.to(tl.int64) * H * D + head * D
    qkv_ptr += begin
    dout_ptr += first.to(tl.int64) * H * D + head * D
    k = _rows(qkv_ptr + H * D, start, 3 * H * D, length, BLOCK_N, D, UPCAST)
    v = _rows(qkv_ptr + 2 * H * D, start, 3 * H * D, length, BLOCK_N, D, UPCAST)
    dk = tl.zeros([BLOCK_N, D], tl.float32)
    dv = tl.zeros([BLOCK_N, D], tl.float32)
    for query in range(0, length, BLOCK_M):
        queries = query + tl.arange(0, BLOCK_M)
        at = (first + queries).to(tl.int64) * H + head
        lse = tl.load(lse_ptr + at, mask=queries < length, other=0.0) * LOG2_E
        delta = tl.load(delta_ptr + at, mask=queries < length, other=0.0)
        q = _rows(qkv_ptr, query, 3 * H * D, length, BLOCK_M, D, UPCAST)
        dout = _rows(dout_ptr, query, H * D, length, BLOCK_M, D, UPCAST)
        # Transposed, keys by queries: so both products below take it as it lies.
        s = tl.dot(k, tl.trans(q), input_precision="ieee") * (scale * LOG2_E)
        p = tl.exp2(s - lse[None, :])  # rows of no query meet zeros of q and dout below
        dp = tl.dot(v, tl.trans(dout), input_precision="ieee")
        kept_p = p
        if state_ptr is not None:
            bits = tl.trans(random_bits(state_ptr, site, (first + queries) * H + head, start, BLOCK_M, BLOCK_N))
            kept_p = tl.where(bits >= threshold, p * keep_scale, 0.0)
            dp = tl.where(bits >= threshold, dp * keep_scale, 0.0)
        dv = tl.dot(kept_p.to(dout.dtype), dout, dv, input_precision="ieee")
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
    to = dqkv_ptr + begin + H * D + keys[:, None] * 3 * H * D + tl.arange(0, D)[None, :]
    tl.store(to, (dk * scale).to(dqkv_ptr.dtype.element_ty), mask=(keys < length)[:, None])
    tl.store(to + H * D, dv.to(dqkv_ptr.dtype.element_ty), mask=(keys < length)[:, None])


def tile(D: int, dtype: torch.dtype, blocks: tuple[int, int]) -> dict[str, int]:
    """Compile-time sizes. float32 runs without tensor cores and keeps its operands in registers: smaller blocks, and
    more warps."""
    BLOCK_M, BLOCK_N, narrow = *blocks, 128
    if dtype is torch.float32:
        BLOCK_M, BLOCK_N, narrow = 32 if D < 128 else 16, 32, 64
    warps = 8 if narrow <= D else 4
    return {
        "BLOCK_M": BLOCK_M,
        "BLOCK_N": BLOCK_N,
        "D": D,
        "num_warps": warps,
        "maxnreg": 255,
        "enable_fp_fusion": True,
    }


def _launch(kernel, own, blocks, extra, tensors, qkv, cu_seqlens, longest, scale, state, site, threshold) -> None:
    """A grid of blocks of the longest sequence, heads, and sequences with `extra` behind, which zeroes the rest."""
    T, _, H, D = qkv.shape
    if D not in HEAD_SIZES:
        raise UserError(f"attention: backend triton takes heads of {', '.join(map(str, HEAD_SIZES))}, found {D}")
    sizes, b = tile(D, qkv.dtype, blocks), cu_seqlens.shape[0] - 1
    if T == 0 or b + extra == 0:
        return
    # The interpreter keeps bfloat16 as bare 16-bit integers, which its dot would multiply as such.
    upcast = triton.knobs.runtime.interpret and qkv.dtype is torch.bfloat16
    # Absent where nothing is dropped, so that no bits are drawn.
    dropout = state if threshold else None, site, threshold, 65536 / (65536 - threshold)
    grid = max(1, triton.cdiv(longest, sizes[own])), H, b + extra
    kernel[grid](qkv, cu_seqlens, *tensors, *dropout, scale, T, H, b, longest, UPCAST=upcast, **sizes)


def attention_fwd(qkv, cu_seqlens, out, lse, *call) -> None:
    """qkv [T, 3, H, D], out [T, H, D] of one dtype, lse [T, H] float32, cu_seqlens [b + 1] int32; contiguous.

    call: longest, scale, state, site, threshold.
    """
    _launch(_attention_fwd_kernel, "BLOCK_M", FORWARD, 1, (out, lse), qkv, cu_seqlens, *call)


def attention_bwd(qkv, cu_seqlens, out, lse, dout, dqkv, *call) -> None:
    """Writes dqkv [T, 3, H, D]; the rest as forward. The same bits in every run: no atomics."""
    delta = torch.empty_like(lse)
    _launch(_attention_bwd_dq_kernel, "BLOCK_M", QUERIES, 1, (out, lse, dout, dqkv, delta), qkv, cu_seqlens, *call)
    _launch(_attention_bwd_dkv_kernel, "BLOCK_N", KEYS, 0, (lse, dout, dqkv, delta), qkv, cu_seqlens, *call)
