// y = gelu(x + bias), the form with tanh: gelu(v) = v / (1 + exp(-2 u)) with u = sqrt(2 / pi) (v + 0.044715 v^3).
//
//   x, y, dy, dx [B, N], all stored alike (StoredAs)   bias, dbias [N] float32
// All contiguous, computed in float32. B >= 0, N >= 1.
//
// With e bytes an element, must move 2 e B N forward and 3 e B N backward. Flops: about 25 B N forward, 35 B N
// backward.
#pragma once
#include <cstdint>

void bias_gelu_fwd(uintptr_t x, uintptr_t bias, uintptr_t y, int64_t B, int64_t N, int stored_as);

// dx, and its column sums dbias. The bits don't depend on the number of threads.
void bias_gelu_bwd(uintptr_t x, uintptr_t bias, uintptr_t dy, uintptr_t dx, uintptr_t dbias, int64_t B, int64_t N,
                   int stored_as);
