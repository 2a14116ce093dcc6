// y = dropout(LN(word[ids] + position[positions] + segment[segments])): what a BERT begins with, in one pass.
//
//   ids, positions, segments [T] int32      word [V, H], position [P, H], segment [S, H], y, dy [T, H], all stored
//   alike (StoredAs)      gamma, beta [H], mean, rstd [T], dsum [T, H], sums [2, H] float32
//   state [2] int64 (common/dropout.h); may be absent with threshold 0: no dropout
// All contiguous, computed in float32. T >= 0, H >= 1. Dropout's rows are tokens.
//
// Errors: an id outside its table is an IndexError that names token, table and id, before anything is written.
//
// With e bytes an element, must move 2 e T H forward (a word's row, y; the rows of the other tables stay in the caches)
// and 2 e T H + 4 H (V + P + S) backward (a word's row, dy, and dense gradients, zeros included). Flops: about 10 T H
// forward, 20 T H backward; with dropout 8 T H integer operations each.
#pragma once
#include <cstdint>

// Also writes each token's mean and 1 / sqrt(variance + eps).
void embedding_layer_norm_fwd(uintptr_t ids, uintptr_t positions, uintptr_t segments, uintptr_t word,
                              uintptr_t position, uintptr_t segment, uintptr_t gamma, uintptr_t beta, uintptr_t y,
                              uintptr_t mean, uintptr_t rstd, int64_t T, int64_t V, int64_t P, int64_t S, int64_t H,
                              float eps, uintptr_t state, int64_t site, int64_t threshold, int stored_as);

// The gradient of the three rows' sum, dsum, and the rows of sums: dgamma, dbeta. The sum itself is computed again.
void embedding_layer_norm_bwd(uintptr_t ids, uintptr_t positions, uintptr_t segments, uintptr_t word,
                              uintptr_t position, uintptr_t segment, uintptr_t gamma, uintptr_t mean, uintptr_t rstd,
                              uintptr_t dy, uintptr_t dsum, uintptr_t sums, int64_t T, int64_t V, int64_t P, int64_t S,
                              int64_t H, uintptr_t state, int64_t site, int64_t threshold, int stored_as);

// The dense gradients, float32: dword[ids[t]] is the sum of dsum[t] over the tokens in turn, as are dposition and
// dsegment; 0: not wanted. Threads own columns, so the bits of none of these functions depend on their number.
void embedding_layer_norm_tables(uintptr_t ids, uintptr_t positions, uintptr_t segments, uintptr_t dsum,
                                 uintptr_t dword, uintptr_t dposition, uintptr_t dsegment, int64_t T, int64_t V,
                                 int64_t P, int64_t S, int64_t H);
