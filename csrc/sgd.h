// Plain SGD over many tensors at once: params[i] -= lr * grad_scale * grads[i].
//
//   params, grads  int64 [count] on the host: addresses of contiguous float32 tensors
//   sizes          int64 [count] on the host: elements of each; 0 is fine
//   lr, grad_scale, found_inf  one float32 each; grad_scale may be absent (1), found_inf too (never); a found_inf
//                  other than 0 skips the update
// Writes params only. Tensors may not overlap. Must move 12 bytes an element (8 read, 4 written), 2 flops each.
#pragma once
#include <cstdint>

void sgd(uintptr_t params, uintptr_t grads, uintptr_t sizes, int64_t count, uintptr_t lr, uintptr_t grad_scale,
         uintptr_t found_inf);

// The same with tensors and scalars on the device, on a stream.
namespace cuda {
void sgd(uintptr_t params, uintptr_t grads, uintptr_t sizes, int64_t count, uintptr_t lr, uintptr_t grad_scale,
         uintptr_t found_inf, uintptr_t stream);
}
