// SGD with momentum over many tensors at once. For each element, with g the unscaled gradient and b its buffer:
//   g += weight_decay p
//   b = momentum b + (1 - dampening) g, but b = g where step is 1
//   p -= lr b, or with Nesterov's momentum p -= lr (g + momentum b)
// With lr_inside, lr multiplies g on its way into b instead, and p -= b, or g + momentum b: then a buffer's past
// gradients keep the learning rate of their own step.
//
//   params, momentum_buffers  int64 [count] on the host: addresses of contiguous float32 tensors
//   grads          the same, of the type grad_type: 0 float32, 1 bfloat16, 2 float16
//   copies         the same, of copy_type: the new params, rounded; or absent
//   sizes          int64 [count]: elements of each; 0 is fine
//   lr, step, grad_scale, found_inf  one float32 each; step counts from 1; grad_scale may be absent (1), found_inf too
//                  (never); a found_inf other than 0 skips the update
// Writes params, momentum_buffers and copies. Tensors may not overlap. What the buffers held before step 1 is not used.
// Must move 20 bytes an element with float32 gradients (12 read, 8 written), 18 with 16-bit ones, 2 more for a copy;
// 9 flops each.
#pragma once
#include <cstdint>

void sgd_momentum(uintptr_t params, uintptr_t grads, uintptr_t momentum_buffers, uintptr_t copies, uintptr_t sizes,
                  int64_t count, int grad_type, int copy_type, uintptr_t lr, uintptr_t step, uintptr_t grad_scale,
                  uintptr_t found_inf, double momentum, double dampening, bool nesterov, double weight_decay,
                  bool lr_inside);

// The same with tensors and scalars on the device, on a stream.
namespace cuda {
void sgd_momentum(uintptr_t params, uintptr_t grads, uintptr_t momentum_buffers, uintptr_t copies, uintptr_t sizes,
                  int64_t count, int grad_type, int copy_type, uintptr_t lr, uintptr_t step, uintptr_t grad_scale,
                  uintptr_t found_inf, double momentum, double dampening, bool nesterov, double weight_decay,
                  bool lr_inside, uintptr_t stream);
}
