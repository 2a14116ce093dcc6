// The L2 norm over all elements of many gradients, and whether all are finite, in one pass.
//
//   norm = grad_scale sqrt(sum of squares)
//   found_inf = 1 where an element is infinite or NaN; else as it was
//   unscaling:  grads[i] *= grad_scale in place, rounded to their type
//
//   grads          int64 [count] on the host: addresses of contiguous tensors, sorted by type
//   counts         int64 [3]: how many are float32, then bfloat16, then float16; count is their sum
//   sizes          int64 [count]: elements of each; 0 is fine
//   grad_scale, found_inf  one float32 each, or absent
//   norm           one float64, written: summed in blocks of 1,024 elements counted from each tensor's start, and these
//                  sums in double, where squares of finite floats neither overflow nor vanish, so that the sum is
//                  finite exactly if every element is
// The order of the sum doesn't depend on the number of threads. Must read each element once, and write it once if
// unscaling: 4 or 8 bytes an element, half of that in 16 bits; 2 or 3 flops.
#pragma once
#include <cstdint>

void grad_norm(uintptr_t grads, uintptr_t sizes, uintptr_t counts, uintptr_t grad_scale, uintptr_t found_inf,
               uintptr_t norm, bool unscale);

// The same with tensors and scalars on the device, on a stream; counts stay on the host. On the GPU each block adds up
// 4,096 elements. scratch: grad_norm_scratch(sizes, count) doubles on the device, whose content doesn't matter.
namespace cuda {
int64_t grad_norm_scratch(uintptr_t sizes, int64_t count);
void grad_norm(uintptr_t grads, uintptr_t sizes, uintptr_t counts, uintptr_t grad_scale, uintptr_t found_inf,
               uintptr_t norm, bool unscale, uintptr_t scratch, uintptr_t stream);
}  // namespace cuda
