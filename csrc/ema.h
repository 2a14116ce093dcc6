// Exponential moving averages of many tensors at once: averages[i] = decay averages[i] + (1 - decay) params[i].
//
//   averages       int64 [count] on the host: addresses of contiguous float32 tensors
//   params         the same, of the type param_type: 0 float32, 1 bfloat16, 2 float16
//   sizes          int64 [count]: elements of each; 0 is fine
//   decay, found_inf  one float32 each; found_inf may be absent (never); other than 0, it skips the update
// Writes averages only. Tensors may not overlap. Must move 12 bytes an element (8 read, 4 written), 10 with 16-bit
// params; 3 flops each.
#pragma once
#include <cstdint>

void ema(uintptr_t averages, uintptr_t params, uintptr_t sizes, int64_t count, int param_type, uintptr_t decay,
         uintptr_t found_inf);

// The same with tensors and scalars on the device, on a stream.
namespace cuda {
void ema(uintptr_t averages, uintptr_t params, uintptr_t sizes, int64_t count, int param_type, uintptr_t decay,
         uintptr_t found_inf, uintptr_t stream);
}
