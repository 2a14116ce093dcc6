// y = act(x * weight + bias + residual): a convolution of 3x3 with padding 1 and stride 1, for inference.
//
//   x [N, H, W, C]   weight [K, 3, 3, C]   bias [K]   residual (0: none), y [N, H, W, K], all float32 and contiguous
//   relu: act(v) = max(v, 0), and NaN for NaN; else act(v) = v
// N >= 0, the others >= 1. y may be residual, but not x.
//
// By Winograd's F(2x2, 3x3) (Lavin and Gray, Fast algorithms for convolutional neural networks): a tile of 2x2 outputs
// takes 16 C K multiplications in place of 36. Flops with T = N ceil(H / 2) ceil(W / 2) tiles: 32 T C K, and 32 T C +
// 24 T K additions. Must move 4 N H W (C + K, and K more with a residual) bytes.
#pragma once
#include <cstdint>

void conv3x3(uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t residual, uintptr_t y, int64_t N, int64_t H,
             int64_t W, int64_t C, int64_t K, bool relu);
