#include "common/multi_tensor.cuh"
#include "sgd.h"

namespace {

// One chunk of one tensor a block. Moves 12 bytes an element (8 read, 4 written), 2 flops each: bound by memory.
__global__ void __launch_bounds__(kChunkThreads)
    sgd_kernel(const __grid_constant__ TensorTable<2> table, const float* lr, const float* grad_scale,
               const float* found_inf) {
    if (found_inf && *found_inf != 0) return;
    const float rate = *lr * (grad_scale ? *grad_scale : 1.0f);
    const auto chunk = table.chunk(blockIdx.x);
    float* w = table.data<float>(0, chunk);
    const float* g = table.data<const float>(1, chunk);
    each_pack<4>(chunk.size, aligned(w, g), [&](auto width, int k) {
        auto weight = load<width>(w + k);
        const auto grad = load<width>(g + k);
#pragma unroll
        for (int i = 0; i < width; ++i) weight.at[i] -= rate * grad.at[i];
        store(w + k, weight);
    });
}

}  // namespace

void cuda::sgd(uintptr_t params, uintptr_t grads, uintptr_t sizes, int64_t count, uintptr_t lr, uintptr_t grad_scale,
               uintptr_t found_inf, uintptr_t stream) {
    each_table<2>("sgd", {params, grads}, sizes, count, [&](const TensorTable<2>& table) {
        LAUNCH(sgd_kernel, table.chunks, kChunkThreads, 0, stream, table, pointer<float>(lr),
               pointer<float>(grad_scale), pointer<float>(found_inf));
    });
}
