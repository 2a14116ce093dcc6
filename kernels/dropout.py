"""Dropout's random bits in Triton: the generator of csrc/common/dropout.h and ops/dropout.py, bit for bit."""

import triton
import triton.language as tl

ROUNDS = tl.constexpr(7)


@triton.jit
def random_bits(state_ptr, site, rows, first_col, ROWS: tl.constexpr, COLS: tl.constexpr):
    """[ROWS, COLS] int32 of 0 to 65,535 for the matrix's rows `rows` [ROWS] and its columns from `first_col` on, a
    multiple of 8, as is COLS. An element is kept where they are at least the threshold.

    Eight neighbours share a counter, and end up in one thread.
    """
    GROUPS: tl.constexpr = COLS // 8
    zero = tl.zeros([ROWS, GROUPS], tl.uint32)
    group = zero + (first_col // 8 + tl.arange(0, GROUPS))[None, :].to(tl.uint32)
    row = zero + rows[:, None].to(tl.uint32)
    step = zero + tl.load(state_ptr + 1).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(tl.load(state_ptr), group, row, step, zero + tl.cast(site, tl.uint32), ROUNDS)
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [ROWS, GROUPS * 4])
    halves = tl.join(words & 0xFFFF, words >> 16)
    return tl.reshape(halves, [ROWS, COLS]).to(tl.int32)
