#include "common/mixed_list.cuh"
#include "common/tensor_sums.cuh"
#include "grad_norm.h"

namespace {

// One chunk of one tensor a block: its sum of squares, and the elements times grad_scale if unscaling. Moves 4 bytes an
// element, 2 where it is stored in 16 bits, and as many again if unscaling; 2 or 3 flops: bound by memory.
template <bool unscale>
__global__ void __launch_bounds__(kChunkThreads)
    grad_norm_kernel(const __grid_constant__ TensorTable<1> table, const int type, const float* grad_scale,
                     double* sums) {
    const auto chunk = table.chunk(blockIdx.x);
    const float scale = unscale ? *grad_scale : 1.0f;
    double sum = 0;
    each_pack<4>(chunk.size, table.aligned(chunk), [&](auto width, int k) {
        auto g = load_mixed<width>(table, 0, type, chunk, k);
        sum += pack_squares(g);
        if constexpr (unscale) {
#pragma unroll
            for (int i = 0; i < width; ++i) g.at[i] *= scale;
            store_mixed(table, 0, type, chunk, k, g);
        }
    });
    sum = block_reduce(sum, 0.0, Sum());
    if (threadIdx.x == 0) sums[table.chunks_before + blockIdx.x] = sum;
}

// One block: adds up the chunks' sums, each thread those of its own places, in the same order each time. Moves 8 bytes
// a chunk of 4,096 elements; flops: 1 a chunk.
__global__ void __launch_bounds__(1024)
    grad_norm_total_kernel(const double* sums, const int64_t chunks, const float* grad_scale, float* found_inf,
                           double* norm) {
    double sum = 0;
    for (int64_t chunk = threadIdx.x; chunk < chunks; chunk += blockDim.x) sum += sums[chunk];
    sum = block_reduce(sum, 0.0, Sum());
    if (threadIdx.x != 0) return;
    if (found_inf && !isfinite(sum)) *found_inf = 1;
    *norm = sqrt(sum) * (grad_scale ? *grad_scale : 1.0f);
}

}  // namespace

int64_t cuda::grad_norm_scratch(uintptr_t sizes, int64_t count) { return chunks_of("grad_norm", sizes, count); }

void cuda::grad_norm(uintptr_t grads, uintptr_t sizes, uintptr_t counts, uintptr_t grad_scale, uintptr_t found_inf,
                     uintptr_t norm, bool unscale, uintptr_t scratch, uintptr_t stream) {
    int64_t before = 0, chunks = 0;
    for (const int type : {kFloat32, kBFloat16, kFloat16}) {
        const int64_t count = pointer<int64_t>(counts)[type];
        const uintptr_t offset = before * sizeof(int64_t);
        double* sums = pointer<double>(scratch) + chunks;
        each_table<1>("grad_norm", {grads + offset}, sizes + offset, count, [&](const TensorTable<1>& table) {
            if (unscale)
                LAUNCH(grad_norm_kernel<true>, table.chunks, kChunkThreads, 0, stream, table, type,
                       pointer<float>(grad_scale), sums);
            else
                LAUNCH(grad_norm_kernel<false>, table.chunks, kChunkThreads, 0, stream, table, type,
                       pointer<float>(grad_scale), sums);
        });
        chunks += grad_norm_scratch(sizes + offset, count);
        before += count;
    }
    LAUNCH(grad_norm_total_kernel, 1, 1024, 0, stream, pointer<double>(scratch), chunks, pointer<float>(grad_scale),
           pointer<float>(found_inf), pointer<double>(norm));
}
