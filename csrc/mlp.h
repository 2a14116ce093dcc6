// The layers of a multilayer perceptron, around their matrix products: y = relu(x W^T + bias), or without the ReLU.
//
//   y, dy, g [B, N]   bias, dbias [N] float32
// All contiguous; y, dy and g float32, or bfloat16 for all of them (bf16), computed in float32. B >= 0, N >= 1.
//
// With e bytes an element, must move: forward 2 e B N; backward 3 e B N with ReLU, e B N without. Flops: forward 2 B N,
// backward 2 B N. A mask or a sum of its own would each read dy once more.
#pragma once
#include <cstdint>

// In place: y = y + bias, then with `relu` what is below 0 becomes 0; NaN stays NaN.
void mlp_bias_fwd(uintptr_t y, uintptr_t bias, int64_t B, int64_t N, bool relu, bool bf16);

// dbias = the column sums of g, where with `relu` g = dy where the layer's output y is above 0, else 0; without it g is
// dy itself, y isn't read and g isn't written. g may be dy. The bits don't depend on the number of threads.
void mlp_bias_bwd(uintptr_t y, uintptr_t dy, uintptr_t g, uintptr_t dbias, int64_t B, int64_t N, bool relu, bool bf16);
