#include "common/adapted.cuh"
#include "common/mixed_list.cuh"
#include "common/tensor_sums.cuh"
#include "lars.h"

namespace {

// Lists of the table; copies may be absent, and the last one holds the tensors' own numbers.
enum List { kParams, kGrads, kBuffers, kCopies };

// The squares of weights and gradients, in double: those of floats neither overflow nor vanish. One chunk of one tensor
// a block. Moves 8 bytes an element (2 less with 16-bit gradients), 4 flops each: bound by memory.
template <int lists>
__global__ void __launch_bounds__(kChunkThreads)
    lars_norms_kernel(const __grid_constant__ TensorTable<lists> table, const float* found_inf, const int grad_type,
                      TwoSums* sums) {
    if (found_inf && *found_inf != 0) return;
    const auto chunk = table.chunk(blockIdx.x);
    if (of_tensor(table, chunk.tensor).adapted == 0) return;
    const float* p = table.template data<const float>(kParams, chunk);
    double weights = 0, gradients = 0;
    each_pack<4>(chunk.size, table.template aligned<lists - 1>(chunk), [&](auto width, int k) {
        const auto weight = load<width>(p + k);
        const auto grad = load_mixed<width>(table, kGrads, grad_type, chunk, k);
#pragma unroll
        for (int i = 0; i < width; ++i) {
            weights += static_cast<double>(weight.at[i]) * weight.at[i];
            gradients += static_cast<double>(grad.at[i]) * grad.at[i];
        }
    });
    write_chunk_sums(table, weights, gradients, sums);
}

// One tensor a block: its trust ratio. Moves 16 bytes a chunk of 4096 elements, 2 flops each.
template <int lists>
__global__ void __launch_bounds__(kChunkThreads)
    lars_ratio_kernel(const __grid_constant__ TensorTable<lists> table, const float* grad_scale, const float* found_inf,
                      const double eta, const double eps, const TwoSums* sums, float* ratios) {
    if (found_inf && *found_inf != 0) return;
    const OfTensor own = of_tensor(table, blockIdx.x);
    double ratio = 1;
    if (own.adapted != 0) {
        const TwoSums squares = read_tensor_sums(table, sums);
        const double weight = sqrt(squares.a), gradient = sqrt(squares.b) * (grad_scale ? fabsf(*grad_scale) : 1.0f);
        if (weight > 0 && gradient > 0) ratio = eta * weight / (gradient + own.weight_decay * weight + eps);
    }
    if (threadIdx.x == 0) ratios[table.first_tensor + blockIdx.x] = static_cast<float>(ratio);
}

// One chunk of one tensor a block. Moves 20 bytes an element (12 read, 8 written), 2 less with 16-bit gradients, 2 more
// for a copy; 7 flops each: bound by memory.
template <int lists>
__global__ void __launch_bounds__(kChunkThreads)
    lars_update_kernel(const __grid_constant__ TensorTable<lists> table, const float* lr, const float* grad_scale,
                       const float* found_inf, const float momentum, const bool lr_inside, const int grad_type,
                       const int copy_type, const float* ratios) {
    if (found_inf && *found_inf != 0) return;
    constexpr bool copied = lists - 1 > kCopies;
    const auto chunk = table.chunk(blockIdx.x);
    const float weight_decay = of_tensor(table, chunk.tensor).weight_decay;
    const float rate = lr_inside ? 1.0f : *lr, scale = grad_scale ? *grad_scale : 1.0f;
    const float take = ratios[table.first_tensor + chunk.tensor] * (lr_inside ? *lr : 1.0f);
    float* p = table.template data<float>(kParams, chunk);
    float* b = table.template data<float>(kBuffers, chunk);
    each_pack<4>(chunk.size, table.template aligned<lists - 1>(chunk), [&](auto width, int k) {
        auto weight = load<width>(p + k), buffer = load<width>(b + k);
        const auto grad = load_mixed<width>(table, kGrads, grad_type, chunk, k);
#pragma unroll
        for (int i = 0; i < width; ++i) {
            buffer.at[i] = momentum * buffer.at[i] + take * (scale * grad.at[i] + weight_decay * weight.at[i]);
            weight.at[i] -= rate * buffer.at[i];
        }
        store(b + k, buffer);
        store(p + k, weight);
        if constexpr (copied) store_mixed(table, kCopies, copy_type, chunk, k, weight);
    });
}

}  // namespace

int64_t cuda::lars_scratch(uintptr_t sizes, int64_t count) {
    return 2 * chunks_of("lars", sizes, count) + (count + 1) / 2;
}

void cuda::lars(uintptr_t params, uintptr_t grads, uintptr_t momentum_buffers, uintptr_t copies, uintptr_t sizes,
                int64_t count, int grad_type, int copy_type, uintptr_t weight_decays, uintptr_t adapted, uintptr_t lr,
                uintptr_t grad_scale, uintptr_t found_inf, double momentum, double eta, double eps, bool lr_inside,
                uintptr_t scratch, uintptr_t stream) {
    TwoSums* sums = pointer<TwoSums>(scratch);
    float* ratios = reinterpret_cast<float*>(sums + chunks_of("lars", sizes, count));
    const std::vector<OfTensor> numbers = of_tensors(weight_decays, adapted, count);
    const uintptr_t own = reinterpret_cast<uintptr_t>(numbers.data());
    const auto update = [&](auto lists, const auto& table) {
        const float *rate = pointer<float>(lr), *scale = pointer<float>(grad_scale), *skip = pointer<float>(found_inf);
        LAUNCH(lars_norms_kernel<lists()>, table.chunks, kChunkThreads, 0, stream, table, skip, grad_type, sums);
        LAUNCH(lars_ratio_kernel<lists()>, table.tensors, kChunkThreads, 0, stream, table, scale, skip, eta, eps, sums,
               ratios);
        LAUNCH(lars_update_kernel<lists()>, table.chunks, kChunkThreads, 0, stream, table, rate, scale, skip, momentum,
               lr_inside, grad_type, copy_type, ratios);
    };
    if (copies)
        each_table<5>("lars", {params, grads, momentum_buffers, copies, own}, sizes, count,
                      [&](const auto& table) { update(std::integral_constant<int, 5>(), table); });
    else
        each_table<4>("lars", {params, grads, momentum_buffers, own}, sizes, count,
                      [&](const auto& table) { update(std::integral_constant<int, 4>(), table); });
}
