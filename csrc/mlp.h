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

// The whole perceptron in one call, float32, for layers that are small (their weights fit a core's own cache): there
// the calls, passes and meetings of threads around the products take as long as the products.
//
//   widths           int64 [count + 1]: the inputs, then each layer's outputs
//   weights, biases  tables of `count` addresses: [N_l, N_{l-1}] and [N_l], as are
//   outs             [B, N_l]: written forward, read backward
//   dweights, dbiases  as weights and biases; written whole
//   x, dx [B, N_0], dx absent (0) where nobody asks for it   dout [B, N_L]
//
// With W weights in all and O = B times the sum of the layers' outputs, must move: forward 4 (B N_0 + W + O), backward
// 4 (2 B N_0 + 2 W + O + B N_L). Flops: forward 2 B W; backward 4 B W, without dx 2 B N_0 N_1 less. Products and sums
// over samples round by the number of threads, as a BLAS does.
void mlp_small_fwd(uintptr_t x, uintptr_t weights, uintptr_t biases, uintptr_t outs, uintptr_t widths, int64_t count,
                   int64_t B, bool relu_last);
void mlp_small_bwd(uintptr_t x, uintptr_t weights, uintptr_t outs, uintptr_t dout, uintptr_t dweights,
                   uintptr_t dbiases, uintptr_t dx, uintptr_t widths, int64_t count, int64_t B, bool relu_last);
