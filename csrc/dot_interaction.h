// DLRM's pairwise interaction. With F = [dense; sparse], R = T + 1 rows of length D:
//   out = [dense, strict lower triangle of F F^T, row-major: (1,0), (2,0), (2,1), (3,0) ...]
//
//   dense [B, D]   sparse [B, T, D]   out [B, D + T (T + 1) / 2]   and gradients of the same shapes
// All contiguous; float32, or bfloat16 for all of them (bf16), summed in float32. B >= 0, T >= 1, D >= 1.
//
// With e bytes an element and P = T (T + 1) / 2 pairs, must move: forward e B (R D + D + P), backward
// e B (2 R D + D + P). Flops: forward 2 B P D; backward 4 B P D.
#pragma once
#include <cstdint>

void dot_interaction_fwd(uintptr_t dense, uintptr_t sparse, uintptr_t out, int64_t B, int64_t T, int64_t D, bool bf16);

// Writes ddense and dsparse whole; ddense includes the pass-through part dout[:, :D].
void dot_interaction_bwd(uintptr_t dense, uintptr_t sparse, uintptr_t dout, uintptr_t ddense, uintptr_t dsparse,
                         int64_t B, int64_t T, int64_t D, bool bf16);

// On CUDA, and in float16 too. dtype: 0 float32, 1 bfloat16, 2 float16. A sample must fit into a block's shared memory,
// whatever D is: in float32 up to 1,759 features forward and 580 backward on H100 (1,263 and 416 on A100), in 16 bits
// 2,895 and 1,103 (2,079 and 783). ValueError beyond that.
namespace cuda {
void dot_interaction_fwd(uintptr_t dense, uintptr_t sparse, uintptr_t out, int64_t B, int64_t T, int64_t D, int dtype,
                         uintptr_t stream);
void dot_interaction_bwd(uintptr_t dense, uintptr_t sparse, uintptr_t dout, uintptr_t ddense, uintptr_t dsparse,
                         int64_t B, int64_t T, int64_t D, int dtype, uintptr_t stream);
}  // namespace cuda
