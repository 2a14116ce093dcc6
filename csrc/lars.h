// LARS over many tensors at once. For each tensor, with g its unscaled gradient and b its momentum buffer:
//   r = eta |w| / (|g| + weight_decay |w| + eps)     where adapted and neither norm is 0, else 1
//   b = momentum b + r (g + weight_decay w)          w -= lr b
// or with lr_inside b = momentum b + lr r (g + weight_decay w), w -= b.
//
//   params (w), momentum_buffers (b)  int64 [count] on the host: addresses of contiguous float32 tensors
//   grads          the same, of the type grad_type: 0 float32, 1 bfloat16, 2 float16
//   copies         the same, of copy_type: the new params, rounded; or absent
//   sizes          int64 [count] on the host: elements of each; 0 is fine
//   weight_decays, adapted  float32 [count] on the host: each tensor's; adapted other than 0: with trust ratio
//   lr, grad_scale, found_inf  one float32 each; grad_scale may be absent (1), found_inf too (never); a found_inf other
//                  than 0 skips the update
// Writes params, momentum_buffers and copies. Tensors may not overlap. Norms are summed in an order that doesn't depend
// on the number of threads.
//
// Must move 20 bytes an element with float32 gradients (12 read, 8 written), 18 with 16-bit ones, 2 more for a copy, as
// long as a tensor stays in the cache between the passes; 8 more (6 with 16-bit gradients) beyond that. 11 flops each,
// 7 where not adapted.
#pragma once
#include <cstdint>

void lars(uintptr_t params, uintptr_t grads, uintptr_t momentum_buffers, uintptr_t copies, uintptr_t sizes,
          int64_t count, int grad_type, int copy_type, uintptr_t weight_decays, uintptr_t adapted, uintptr_t lr,
          uintptr_t grad_scale, uintptr_t found_inf, double momentum, double eta, double eps, bool lr_inside);

// The same with tensors and scalars on the device, on a stream; weight_decays and adapted stay on the host.
// scratch: lars_scratch(sizes, count) doubles on the device, whose content doesn't matter before or after.
namespace cuda {
int64_t lars_scratch(uintptr_t sizes, int64_t count);
void lars(uintptr_t params, uintptr_t grads, uintptr_t momentum_buffers, uintptr_t copies, uintptr_t sizes,
          int64_t count, int grad_type, int copy_type, uintptr_t weight_decays, uintptr_t adapted, uintptr_t lr,
          uintptr_t grad_scale, uintptr_t found_inf, double momentum, double eta, double eps, bool lr_inside,
          uintptr_t scratch, uintptr_t stream);
}  // namespace cuda
