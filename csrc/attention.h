// Self-attention of b sequences that lie one behind the other: out = dropout(softmax(scale q k^T)) v within each.
//
//   qkv, dqkv [T, 3, H, D]   out, dout [T, H, D]    all stored alike (StoredAs); each head's q, k and v are [D]
//   lse [T, H] float32       log of the sum of exp(scale q k) over a query's keys
//   cu_seqlens [b + 1] int32 sequence i has tokens cu_seqlens[i] .. cu_seqlens[i + 1]: 0 first, never less than before,
//                            at most T, no sequence longer than `longest`; std::invalid_argument names the one that is
//   state [2] int64          common/dropout.h; may be absent with threshold 0. The matrix's row is token * H + head,
//   its
//                            column the key's place in its own sequence
// All contiguous, computed in float32. T, b, longest >= 0, H, D >= 1. Tokens of no sequence, behind the last: 0.
//
// With S the sum over sequences of length^2, flops are 4 S H D forward and 10 S H D backward, which computes q k^T
// again; each element of S also costs H exponentials, and with dropout H times 8 integer operations, in both
// directions. With e bytes an element must move 4 e T H D forward (qkv, out) and 8 e T H D backward (qkv, out, dout,
// dqkv).
#pragma once
#include <cstdint>

// Also writes lse.
void attention_fwd(uintptr_t qkv, uintptr_t cu_seqlens, uintptr_t out, uintptr_t lse, int64_t T, int64_t H, int64_t D,
                   int64_t b, int64_t longest, float scale, uintptr_t state, int64_t site, int64_t threshold,
                   int stored_as);

// dqkv, whole. The bits of neither direction depend on the number of threads.
void attention_bwd(uintptr_t qkv, uintptr_t cu_seqlens, uintptr_t out, uintptr_t lse, uintptr_t dout, uintptr_t dqkv,
                   int64_t T, int64_t H, int64_t D, int64_t b, int64_t longest, float scale, uintptr_t state,
                   int64_t site, int64_t threshold, int stored_as);
