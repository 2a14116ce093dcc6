// Adam and AdamW over many tensors at once. For each element, with g the unscaled gradient and t the step:
//   Adam:   g += weight_decay p        AdamW (decoupled): p -= lr weight_decay p
//   m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
//   p -= lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
//
//   params, exp_avgs (m), exp_avg_sqs (v)  int64 [count] on the host: addresses of contiguous float32 tensors
//   grads          the same, of the type grad_type: 0 float32, 1 bfloat16, 2 float16
//   copies         the same, of copy_type: the new params, rounded; or absent
//   sizes          int64 [count]: elements of each; 0 is fine
//   lr, step, grad_scale, found_inf  one float32 each; step counts from 1; grad_scale may be absent (1), found_inf too
//                  (never); a found_inf other than 0 skips the update
// Writes params, exp_avgs, exp_avg_sqs and copies. Tensors may not overlap.
// Must move 28 bytes an element with float32 gradients (16 read, 12 written), 26 with 16-bit ones, 2 more for a copy;
// 14 flops each, a root and a division among them.
#pragma once
#include <cstdint>

void adam(uintptr_t params, uintptr_t grads, uintptr_t exp_avgs, uintptr_t exp_avg_sqs, uintptr_t copies,
          uintptr_t sizes, int64_t count, int grad_type, int copy_type, uintptr_t lr, uintptr_t step,
          uintptr_t grad_scale, uintptr_t found_inf, double beta1, double beta2, double eps, double weight_decay,
          bool decoupled);

// The same with tensors and scalars on the device, on a stream.
namespace cuda {
void adam(uintptr_t params, uintptr_t grads, uintptr_t exp_avgs, uintptr_t exp_avg_sqs, uintptr_t copies,
          uintptr_t sizes, int64_t count, int grad_type, int copy_type, uintptr_t lr, uintptr_t step,
          uintptr_t grad_scale, uintptr_t found_inf, double beta1, double beta2, double eps, double weight_decay,
          bool decoupled, uintptr_t stream);
}
