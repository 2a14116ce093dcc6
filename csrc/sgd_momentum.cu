#include "common/mixed_list.cuh"
#include "sgd_momentum.h"

namespace {

enum List { kParams, kGrads, kBuffers, kCopies };

struct Numbers {
    float momentum, take, weight_decay;  // take = 1 - dampening
    bool nesterov, lr_inside;
    int grad_type, copy_type;
};

// One chunk of one tensor a block. Moves 20 bytes an element (12 read, 8 written), 2 less with 16-bit gradients, 2 more
// for a copy; 9 flops each: bound by memory.
template <bool copied>
__global__ void __launch_bounds__(kChunkThreads)
    sgd_momentum_kernel(const __grid_constant__ TensorTable<3 + copied> table, const float* lr, const float* step,
                        const float* grad_scale, const float* found_inf, const Numbers x) {
    if (found_inf && *found_inf != 0) return;
    const bool first = *step == 1;
    const float rate = *lr, scale = grad_scale ? *grad_scale : 1.0f;
    const float take = (first ? 1.0f : x.take) * (x.lr_inside ? rate : 1.0f);
    const float direct = x.nesterov ? rate : 0.0f;
    const float by_buffer = (x.nesterov ? x.momentum : 1.0f) * (x.lr_inside ? 1.0f : rate);
    const auto chunk = table.chunk(blockIdx.x);
    float* p = table.template data<float>(kParams, chunk);
    float* b = table.template data<float>(kBuffers, chunk);
    each_pack<4>(chunk.size, table.aligned(chunk), [&](auto width, int k) {
        auto weight = load<width>(p + k), buffer = load<width>(b + k);
        const auto grad = load_mixed<width>(table, kGrads, x.grad_type, chunk, k);
#pragma unroll
        for (int i = 0; i < width; ++i) {
            const float g = scale * grad.at[i] + x.weight_decay * weight.at[i];
            buffer.at[i] = first ? take * g : x.momentum * buffer.at[i] + take * g;
            weight.at[i] -= direct * g + by_buffer * buffer.at[i];
        }
        store(b + k, buffer);
        store(p + k, weight);
        if constexpr (copied) store_mixed(table, kCopies, x.copy_type, chunk, k, weight);
    });
}

}  // namespace

void cuda::sgd_momentum(uintptr_t params, uintptr_t grads, uintptr_t momentum_buffers, uintptr_t copies,
                        uintptr_t sizes, int64_t count, int grad_type, int copy_type, uintptr_t lr, uintptr_t step,
                        uintptr_t grad_scale, uintptr_t found_inf, double momentum, double dampening, bool nesterov,
                        double weight_decay, bool lr_inside, uintptr_t stream) {
    const Numbers x{static_cast<float>(momentum),
                    static_cast<float>(1 - dampening),
                    static_cast<float>(weight_decay),
                    nesterov,
                    lr_inside,
                    grad_type,
                    copy_type};
    const auto update = [&](auto copied, const auto& table) {
        LAUNCH(sgd_momentum_kernel<copied()>, table.chunks, kChunkThreads, 0, stream, table, pointer<float>(lr),
               pointer<float>(step), pointer<float>(grad_scale), pointer<float>(found_inf), x);
    };
    if (copies)
        each_table<4>("sgd_momentum", {params, grads, momentum_buffers, copies}, sizes, count,
                      [&](const auto& table) { update(std::true_type(), table); });
    else
        each_table<3>("sgd_momentum", {params, grads, momentum_buffers}, sizes, count,
                      [&](const auto& table) { update(std::false_type(), table); });
}
