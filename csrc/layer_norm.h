// y = LN(residual + dropout(x + bias)) over rows: what closes each half of a transformer's layer, in one pass.
//
//   x, residual, y, dy, dx, dresidual [B, N], all stored alike (StoredAs)
//   bias, gamma, beta [N], mean, rstd [B], sums [3, N] float32     state [2] int64 (common/dropout.h)
// All contiguous, computed in float32. bias and residual may be absent (0); state too, with threshold 0: no dropout.
// B >= 0, N >= 1; eps counts in float32 whatever the rows are stored as.
//
// With e bytes an element, must move 3 e B N forward (x, residual, y) and 5 e B N backward (x, residual, dy, dx,
// dresidual), less e B N each for an absent residual, and backward without dropout, when dresidual is dx. Flops: about
// 10 B N forward, 20 B N backward, and with dropout 8 B N integer operations each.
#pragma once
#include <cstdint>

// Also writes each row's mean and 1 / sqrt(variance + eps).
void layer_norm_fwd(uintptr_t x, uintptr_t bias, uintptr_t residual, uintptr_t gamma, uintptr_t beta, uintptr_t y,
                    uintptr_t mean, uintptr_t rstd, int64_t B, int64_t N, float eps, uintptr_t state, int64_t site,
                    int64_t threshold, int stored_as);

// The gradients dx and dresidual (0: not wanted), and the rows of sums: dgamma, dbeta, dbias. The bits don't depend on
// the number of threads.
void layer_norm_bwd(uintptr_t x, uintptr_t bias, uintptr_t residual, uintptr_t gamma, uintptr_t mean, uintptr_t rstd,
                    uintptr_t dy, uintptr_t dx, uintptr_t dresidual, uintptr_t sums, int64_t B, int64_t N,
                    uintptr_t state, int64_t site, int64_t threshold, int stored_as);
