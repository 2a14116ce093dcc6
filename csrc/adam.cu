#include <cmath>

#include "adam.h"
#include "common/mixed_list.cuh"

namespace {

enum List { kParams, kGrads, kExpAvgs, kExpAvgSqs, kCopies };

struct Numbers {
    float beta1, take1, log_beta1, beta2, take2, log_beta2, eps, weight_decay;  // take = 1 - beta
    bool decoupled;
    int grad_type, copy_type;
};

// One chunk of one tensor a block. Moves 28 bytes an element (16 read, 12 written), 2 less with 16-bit gradients, 2
// more for a copy; 14 flops each: bound by memory.
template <bool copied>
__global__ void __launch_bounds__(kChunkThreads)
    adam_kernel(const __grid_constant__ TensorTable<4 + copied> table, const float* lr, const float* step,
                const float* grad_scale, const float* found_inf, const Numbers x) {
    if (found_inf && *found_inf != 0) return;
    const float rate = *lr, t = *step, scale = grad_scale ? *grad_scale : 1.0f;
    const float keep = x.decoupled ? 1 - rate * x.weight_decay : 1.0f;
    const float gradient_decay = x.decoupled ? 0.0f : x.weight_decay;
    // 1 - beta^t, which in float would cancel all but four digits of 1 - 0.999.
    const float step_size = rate / -expm1f(t * x.log_beta1);
    const float inverse_root = 1 / sqrtf(-expm1f(t * x.log_beta2));
    const auto chunk = table.chunk(blockIdx.x);
    float* p = table.template data<float>(kParams, chunk);
    float* m = table.template data<float>(kExpAvgs, chunk);
    float* v = table.template data<float>(kExpAvgSqs, chunk);
    each_pack<4>(chunk.size, table.aligned(chunk), [&](auto width, int k) {
        auto weight = load<width>(p + k), first = load<width>(m + k), second = load<width>(v + k);
        const auto grad = load_mixed<width>(table, kGrads, x.grad_type, chunk, k);
#pragma unroll
        for (int i = 0; i < width; ++i) {
            const float g = scale * grad.at[i] + gradient_decay * weight.at[i];
            first.at[i] = x.beta1 * first.at[i] + x.take1 * g;
            second.at[i] = x.beta2 * second.at[i] + x.take2 * g * g;
            weight.at[i] = keep * weight.at[i] - step_size * first.at[i] / (sqrtf(second.at[i]) * inverse_root + x.eps);
        }
        store(m + k, first);
        store(v + k, second);
        store(p + k, weight);
        if constexpr (copied) store_mixed(table, kCopies, x.copy_type, chunk, k, weight);
    });
}

}  // namespace

void cuda::adam(uintptr_t params, uintptr_t grads, uintptr_t exp_avgs, uintptr_t exp_avg_sqs, uintptr_t copies,
                uintptr_t sizes, int64_t count, int grad_type, int copy_type, uintptr_t lr, uintptr_t step,
                uintptr_t grad_scale, uintptr_t found_inf, double beta1, double beta2, double eps, double weight_decay,
                bool decoupled, uintptr_t stream) {
    const auto number = [](double x) { return static_cast<float>(x); };
    const Numbers x{number(beta1),
                    number(1 - beta1),
                    number(std::log(beta1)),
                    number(beta2),
                    number(1 - beta2),
                    number(std::log(beta2)),
                    number(eps),
                    number(weight_decay),
                    decoupled,
                    grad_type,
                    copy_type};
    const auto update = [&](auto copied, const auto& table) {
        LAUNCH(adam_kernel<copied()>, table.chunks, kChunkThreads, 0, stream, table, pointer<float>(lr),
               pointer<float>(step), pointer<float>(grad_scale), pointer<float>(found_inf), x);
    };
    if (copies)
        each_table<5>("adam", {params, grads, exp_avgs, exp_avg_sqs, copies}, sizes, count,
                      [&](const auto& table) { update(std::true_type(), table); });
    else
        each_table<4>("adam", {params, grads, exp_avgs, exp_avg_sqs}, sizes, count,
                      [&](const auto& table) { update(std::false_type(), table); });
}
