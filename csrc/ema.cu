#include "common/mixed_list.cuh"
#include "ema.h"

namespace {

// One chunk of one tensor a block. Moves 12 bytes an element (8 read, 4 written), 2 less with 16-bit params, 3 flops
// each: bound by memory.
__global__ void __launch_bounds__(kChunkThreads)
    ema_kernel(const __grid_constant__ TensorTable<2> table, const float* decay, const float* found_inf,
               const int param_type) {
    if (found_inf && *found_inf != 0) return;
    const float keep = *decay, take = 1 - keep;
    const auto chunk = table.chunk(blockIdx.x);
    float* averages = table.data<float>(0, chunk);
    each_pack<4>(chunk.size, table.aligned(chunk), [&](auto width, int k) {
        auto average = load<width>(averages + k);
        const auto weight = load_mixed<width>(table, 1, param_type, chunk, k);
#pragma unroll
        for (int i = 0; i < width; ++i) average.at[i] = keep * average.at[i] + take * weight.at[i];
        store(averages + k, average);
    });
}

}  // namespace

void cuda::ema(uintptr_t averages, uintptr_t params, uintptr_t sizes, int64_t count, int param_type, uintptr_t decay,
               uintptr_t found_inf, uintptr_t stream) {
    each_table<2>("ema", {averages, params}, sizes, count, [&](const auto& table) {
        LAUNCH(ema_kernel, table.chunks, kChunkThreads, 0, stream, table, pointer<float>(decay),
               pointer<float>(found_inf), param_type);
    });
}
