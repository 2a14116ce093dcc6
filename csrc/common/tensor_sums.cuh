// Two sums over each whole tensor (of squares, for norms), in two launches and without atomics: each chunk writes its
// own sums, then one block a tensor adds up those of its chunks, always in the same order.
#pragma once
#include "multi_tensor.cuh"

namespace {

struct TwoSums {
    double a, b;
};

// A pack's sum of squares: in float where that is safe, which is most of the time, else again in double.
template <int width>
__device__ __forceinline__ double pack_squares(const Pack<float, width>& x) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < width; ++i) sum += x.at[i] * x.at[i];
    if (sum > 1e-30f && sum < 1e38f) return sum;
    double exact = 0;
#pragma unroll
    for (int i = 0; i < width; ++i) exact += static_cast<double>(x.at[i]) * x.at[i];
    return exact;
}

// The block's sums over its chunk, from those of its threads, to their place among all chunks. All threads call it.
template <int lists>
__device__ __forceinline__ void write_chunk_sums(const TensorTable<lists>& table, double a, double b, TwoSums* sums) {
    a = block_reduce(a, 0.0, Sum());
    b = block_reduce(b, 0.0, Sum());
    if (threadIdx.x == 0) sums[table.chunks_before + blockIdx.x] = {a, b};
}

// The sums over tensor number blockIdx.x of the table; every thread gets them. All threads call it.
template <int lists>
__device__ __forceinline__ TwoSums read_tensor_sums(const TensorTable<lists>& table, const TwoSums* sums) {
    const int tensor = blockIdx.x, first = table.first_chunk[tensor];
    const int past = tensor + 1 < table.tensors ? table.first_chunk[tensor + 1] : table.chunks;
    TwoSums all{0, 0};
    for (int chunk = first + threadIdx.x; chunk < past; chunk += blockDim.x) {
        const TwoSums one = sums[table.chunks_before + chunk];
        all.a += one.a;
        all.b += one.b;
    }
    return {block_reduce(all.a, 0.0, Sum()), block_reduce(all.b, 0.0, Sum())};
}

}  // namespace

// All chunks of the tensors: how many TwoSums they need.
inline int64_t chunks_of(const char* op, uintptr_t sizes, int64_t count) {
    int64_t chunks = 0;
    require_at_least(op, "count", count, 0);
    for (int64_t i = 0; i < count; ++i) chunks += (pointer<int64_t>(sizes)[i] + kChunkElements - 1) / kChunkElements;
    return chunks;
}
