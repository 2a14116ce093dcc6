// y = relu(BN(x) + residual): batch normalisation and what follows it in a residual network, over rows of channels.
//
//   x, residual, y, dy, dx, dresidual [R, N], all stored alike (StoredAs): column n is of channel n % C
//   mean, variance, gamma, beta, running_mean, running_variance [C], sums [2, C] (dbeta, dgamma) float32
//   mask [ceil(R / 32), N] int32: bit r of word (g, n) is 1 where ReLU kept the element of row 32 g + r
// All contiguous, computed in float32, sums of many rows in double. The bits don't depend on the number of threads.
// R >= 0 (1 for moments), N a positive multiple of C: an NHWC tensor is [N H W, C], or any [N H W / k, k C].
//
// With e bytes an element and 1 bit for the mask, must move of R N elements: moments e (x); apply 3 e (x, residual, y);
// sums 3 e (dy, x, dresidual); dx 3 e (dy, x, dx); less e each for an absent residual or dresidual. Flops an element:
// 4, 5, 4 and 6. A training step of batch_norm + add + ReLU is so 10 e R N bytes, 19 R N flops.
#pragma once
#include <cstdint>

// Of each channel the mean and the biased variance. Where running statistics are given they become
// (1 - momentum) * running + momentum * own, the variance's own one unbiased.
void batch_norm_moments(uintptr_t x, uintptr_t mean, uintptr_t variance, uintptr_t running_mean,
                        uintptr_t running_variance, float momentum, int64_t R, int64_t N, int64_t C, int stored_as);

// residual 0: absent. mask 0: not wanted; it needs relu.
void batch_norm_apply(uintptr_t x, uintptr_t residual, uintptr_t mean, uintptr_t variance, uintptr_t gamma,
                      uintptr_t beta, uintptr_t y, uintptr_t mask, float eps, bool relu, int64_t R, int64_t N,
                      int64_t C, int stored_as);

// The gradients of beta and gamma, and where dresidual isn't 0 that of the residual. mask 0: there was no ReLU.
void batch_norm_sums(uintptr_t dy, uintptr_t x, uintptr_t mask, uintptr_t mean, uintptr_t variance, uintptr_t sums,
                     uintptr_t dresidual, float eps, int64_t R, int64_t N, int64_t C, int stored_as);

// The gradient of x; dy may be dresidual, whose mask is 0. sums are those of all `count` values that share mean and
// variance, which may be more than are here.
void batch_norm_dx(uintptr_t dy, uintptr_t x, uintptr_t mask, uintptr_t mean, uintptr_t variance, uintptr_t gamma,
                   uintptr_t sums, uintptr_t dx, float eps, int64_t count, int64_t R, int64_t N, int64_t C,
                   int stored_as);
