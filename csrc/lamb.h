// LAMB over many tensors at once. For each tensor, with g its gradient and t the step:
//   g' = grad_scale g min(1, max_grad_norm / grad_norm)
//   m = beta1 m + (1 - beta1) g'          v = beta2 v + (1 - beta2) g'^2
//   u = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay w
//   w -= lr r u                           r = |w| / |u| where adapted and neither is 0, else 1
//
//   params (w), exp_avgs (m), exp_avg_sqs (v)  int64 [count] on the host: addresses of contiguous float32 tensors
//   grads          the same, of the type grad_type: 0 float32, 1 bfloat16, 2 float16
//   copies         the same, of copy_type: the new params, rounded; or absent
//   sizes          int64 [count]: elements of each; 0 is fine
//   weight_decays, adapted  float32 [count] on the host: each tensor's; adapted other than 0: with trust ratio
//   lr, step, grad_scale, found_inf  one float32 each; step counts from 1; grad_scale may be absent (1), found_inf too
//                  (never); a found_inf other than 0 skips the update
//   grad_norm      one float64: the norm over all gradients, times grad_scale; may be absent (no clipping)
//   grad_averaging false: m += g' without the factor (1 - beta1); bias_correction false: both corrections are 1
//
// lamb writes params, exp_avgs, exp_avg_sqs and copies. Its two halves, for tensors of which other processes hold the
// other parts: lamb_moments writes exp_avgs, exp_avg_sqs and squares, float64 [count, 2], the sums of w^2 and u^2;
// lamb_apply reads them, summed over the processes, and writes params and copies. Tensors may not overlap. All results
// are the same for any number of threads.
//
// Must move 28 bytes an element with float32 gradients (16 read, 12 written), 26 with 16-bit ones, 2 more for a copy,
// as long as a tensor stays in the cache between the passes; 16 more (12 read, 4 written) beyond that. 21 flops each, a
// root and a division among them, or 28 beyond that.
#pragma once
#include <cstdint>

void lamb(uintptr_t params, uintptr_t grads, uintptr_t exp_avgs, uintptr_t exp_avg_sqs, uintptr_t copies,
          uintptr_t sizes, int64_t count, int grad_type, int copy_type, uintptr_t weight_decays, uintptr_t adapted,
          uintptr_t lr, uintptr_t step, uintptr_t grad_norm, uintptr_t grad_scale, uintptr_t found_inf, double beta1,
          double beta2, double eps, double max_grad_norm, bool grad_averaging, bool bias_correction);

void lamb_moments(uintptr_t params, uintptr_t grads, uintptr_t exp_avgs, uintptr_t exp_avg_sqs, uintptr_t sizes,
                  int64_t count, int grad_type, uintptr_t squares, uintptr_t weight_decays, uintptr_t step,
                  uintptr_t grad_norm, uintptr_t grad_scale, uintptr_t found_inf, double beta1, double beta2,
                  double eps, double max_grad_norm, bool grad_averaging, bool bias_correction);

void lamb_apply(uintptr_t params, uintptr_t exp_avgs, uintptr_t exp_avg_sqs, uintptr_t copies, uintptr_t sizes,
                int64_t count, int copy_type, uintptr_t squares, uintptr_t weight_decays, uintptr_t adapted,
                uintptr_t lr, uintptr_t step, uintptr_t found_inf, double beta1, double beta2, double eps,
                bool bias_correction);

// The same with tensors and scalars on the device, on a stream; weight_decays and adapted stay on the host. A GPU's
// second pass reads from memory: 40 bytes an element (28 read, 12 written), 28 flops. scratch: <op>_scratch(sizes,
// count) doubles on the device, whose content doesn't matter before or after.
namespace cuda {
int64_t lamb_scratch(uintptr_t sizes, int64_t count);
void lamb(uintptr_t params, uintptr_t grads, uintptr_t exp_avgs, uintptr_t exp_avg_sqs, uintptr_t copies,
          uintptr_t sizes, int64_t count, int grad_type, int copy_type, uintptr_t weight_decays, uintptr_t adapted,
          uintptr_t lr, uintptr_t step, uintptr_t grad_norm, uintptr_t grad_scale, uintptr_t found_inf, double beta1,
          double beta2, double eps, double max_grad_norm, bool grad_averaging, bool bias_correction, uintptr_t scratch,
          uintptr_t stream);

int64_t lamb_moments_scratch(uintptr_t sizes, int64_t count);
void lamb_moments(uintptr_t params, uintptr_t grads, uintptr_t exp_avgs, uintptr_t exp_avg_sqs, uintptr_t sizes,
                  int64_t count, int grad_type, uintptr_t squares, uintptr_t weight_decays, uintptr_t step,
                  uintptr_t grad_norm, uintptr_t grad_scale, uintptr_t found_inf, double beta1, double beta2,
                  double eps, double max_grad_norm, bool grad_averaging, bool bias_correction, uintptr_t scratch,
                  uintptr_t stream);

void lamb_apply(uintptr_t params, uintptr_t exp_avgs, uintptr_t exp_avg_sqs, uintptr_t copies, uintptr_t sizes,
                int64_t count, int copy_type, uintptr_t squares, uintptr_t weight_decays, uintptr_t adapted,
                uintptr_t lr, uintptr_t step, uintptr_t found_inf, double beta1, double beta2, double eps,
                bool bias_correction, uintptr_t stream);
}  // namespace cuda
