#include <cmath>

#include "common/adapted.cuh"
#include "common/mixed_list.cuh"
#include "common/tensor_sums.cuh"
#include "lamb.h"

namespace {

// Lists of the table; copies may be absent, and the last one holds the tensors' own numbers.
enum List { kParams, kGrads, kExpAvgs, kExpAvgSqs, kCopies };

struct Numbers {
    float beta1, take1, log_beta1, beta2, take2, log_beta2, eps;  // m = beta1 m + take1 g
    double max_grad_norm;
    bool bias_correction;
    int grad_type, copy_type;
};

// u = correction m / (sqrt(v) inverse_root + eps) + weight_decay w
struct Direction {
    float correction, inverse_root, eps, weight_decay;

    // 1 - beta^t, which in float would cancel all but four digits of 1 - 0.999, as -expm1(t log beta).
    __device__ Direction(const Numbers& x, float t, float weight_decay)
        : correction(x.bias_correction ? 1 / -expm1f(t * x.log_beta1) : 1.0f),
          inverse_root(x.bias_correction ? 1 / sqrtf(-expm1f(t * x.log_beta2)) : 1.0f),
          eps(x.eps),
          weight_decay(weight_decay) {}
    __device__ __forceinline__ float operator()(float w, float m, float v) const {
        return correction * m / (sqrtf(v) * inverse_root + eps) + weight_decay * w;
    }
};

// The first pass, one chunk of one tensor a block: moments, and the sums of w^2 and u^2. Moves 24 bytes an element (16
// read, 8 written), 2 less with 16-bit gradients; 19 flops each: bound by memory.
template <int lists>
__global__ void __launch_bounds__(kChunkThreads)
    lamb_moments_kernel(const __grid_constant__ TensorTable<lists> table, const float* step, const double* grad_norm,
                        const float* grad_scale, const float* found_inf, const Numbers x, TwoSums* sums) {
    if (found_inf && *found_inf != 0) return;
    const double norm = grad_norm ? *grad_norm : 0, clip = norm > x.max_grad_norm ? x.max_grad_norm / norm : 1;
    const float scale = static_cast<float>(clip * (grad_scale ? *grad_scale : 1.0f));
    const auto chunk = table.chunk(blockIdx.x);
    const Direction direction(x, *step, of_tensor(table, chunk.tensor).weight_decay);
    const float* w = table.template data<const float>(kParams, chunk);
    float* m = table.template data<float>(kExpAvgs, chunk);
    float* v = table.template data<float>(kExpAvgSqs, chunk);
    double weights = 0, updates = 0;
    each_pack<4>(chunk.size, table.template aligned<lists - 1>(chunk), [&](auto width, int k) {
        const auto weight = load<width>(w + k);
        auto first = load<width>(m + k), second = load<width>(v + k);
        auto update = load_mixed<width>(table, kGrads, x.grad_type, chunk, k);
#pragma unroll
        for (int i = 0; i < width; ++i) {
            const float g = scale * update.at[i];
            first.at[i] = x.beta1 * first.at[i] + x.take1 * g;
            second.at[i] = x.beta2 * second.at[i] + x.take2 * g * g;
            update.at[i] = direction(weight.at[i], first.at[i], second.at[i]);
        }
        store(m + k, first);
        store(v + k, second);
        weights += pack_squares(weight);
        updates += pack_squares(update);
    });
    write_chunk_sums(table, weights, updates, sums);
}

// One tensor a block: its chunks' sums added up. Moves 16 bytes a chunk of 4,096 elements, 2 flops each.
template <int lists>
__global__ void __launch_bounds__(kChunkThreads)
    lamb_squares_kernel(const __grid_constant__ TensorTable<lists> table, const float* found_inf, const TwoSums* sums,
                        TwoSums* squares) {
    if (found_inf && *found_inf != 0) return;
    const TwoSums all = read_tensor_sums(table, sums);
    if (threadIdx.x == 0) squares[table.first_tensor + blockIdx.x] = all;
}

// The second pass, one chunk of one tensor a block. Moves 16 bytes an element (12 read, 4 written), 2 more for a copy;
// 9 flops each: bound by memory. Working the direction out again moves as much as keeping it, and needs no memory.
template <int lists>
__global__ void __launch_bounds__(kChunkThreads)
    lamb_apply_kernel(const __grid_constant__ TensorTable<lists> table, const TwoSums* squares, const float* lr,
                      const float* step, const float* found_inf, const Numbers x) {
    if (found_inf && *found_inf != 0) return;
    constexpr bool copied = lists - 1 > kCopies;
    const auto chunk = table.chunk(blockIdx.x);
    const OfTensor own = of_tensor(table, chunk.tensor);
    const TwoSums whole = squares[table.first_tensor + chunk.tensor];
    const bool has_ratio = own.adapted != 0 && whole.a > 0 && whole.b > 0;
    const float rate = *lr * (has_ratio ? static_cast<float>(sqrt(whole.a / whole.b)) : 1.0f);
    const Direction direction(x, *step, own.weight_decay);
    float* w = table.template data<float>(kParams, chunk);
    const float* m = table.template data<const float>(kExpAvgs, chunk);
    const float* v = table.template data<const float>(kExpAvgSqs, chunk);
    each_pack<4>(chunk.size, table.template aligned<lists - 1>(chunk), [&](auto width, int k) {
        auto weight = load<width>(w + k);
        const auto first = load<width>(m + k), second = load<width>(v + k);
#pragma unroll
        for (int i = 0; i < width; ++i) weight.at[i] -= rate * direction(weight.at[i], first.at[i], second.at[i]);
        store(w + k, weight);
        if constexpr (copied) store_mixed(table, kCopies, x.copy_type, chunk, k, weight);
    });
}

Numbers numbers(double beta1, double beta2, double eps, double max_grad_norm, bool grad_averaging, bool bias_correction,
                int grad_type, int copy_type) {
    const auto number = [](double x) { return static_cast<float>(x); };
    return {number(beta1),
            number(grad_averaging ? 1 - beta1 : 1),
            number(std::log(beta1)),
            number(beta2),
            number(1 - beta2),
            number(std::log(beta2)),
            number(eps),
            max_grad_norm,
            bias_correction,
            grad_type,
            copy_type};
}

// Calls launch(table) with tables of 5 lists, or of 6 where there are copies.
template <class Launch>
void each_lamb_table(const char* op, uintptr_t params, uintptr_t grads, uintptr_t exp_avgs, uintptr_t exp_avg_sqs,
                     uintptr_t copies, uintptr_t sizes, int64_t count, uintptr_t weight_decays, uintptr_t adapted,
                     Launch&& launch) {
    const std::vector<OfTensor> numbers = of_tensors(weight_decays, adapted, count);
    const uintptr_t own = reinterpret_cast<uintptr_t>(numbers.data());
    if (copies)
        each_table<6>(op, {params, grads, exp_avgs, exp_avg_sqs, copies, own}, sizes, count, launch);
    else
        each_table<5>(op, {params, grads, exp_avgs, exp_avg_sqs, own}, sizes, count, launch);
}

template <int lists>
void launch_moments(const TensorTable<lists>& table, uintptr_t step, uintptr_t grad_norm, uintptr_t grad_scale,
                    uintptr_t found_inf, const Numbers& x, TwoSums* sums, TwoSums* squares, uintptr_t stream) {
    LAUNCH(lamb_moments_kernel<lists>, table.chunks, kChunkThreads, 0, stream, table, pointer<float>(step),
           pointer<double>(grad_norm), pointer<float>(grad_scale), pointer<float>(found_inf), x, sums);
    LAUNCH(lamb_squares_kernel<lists>, table.tensors, kChunkThreads, 0, stream, table, pointer<float>(found_inf), sums,
           squares);
}

template <int lists>
void launch_apply(const TensorTable<lists>& table, const TwoSums* squares, uintptr_t lr, uintptr_t step,
                  uintptr_t found_inf, const Numbers& x, uintptr_t stream) {
    LAUNCH(lamb_apply_kernel<lists>, table.chunks, kChunkThreads, 0, stream, table, squares, pointer<float>(lr),
           pointer<float>(step), pointer<float>(found_inf), x);
}

}  // namespace

int64_t cuda::lamb_scratch(uintptr_t sizes, int64_t count) { return 2 * (chunks_of("lamb", sizes, count) + count); }

int64_t cuda::lamb_moments_scratch(uintptr_t sizes, int64_t count) {
    return 2 * chunks_of("lamb_moments", sizes, count);
}

void cuda::lamb(uintptr_t params, uintptr_t grads, uintptr_t exp_avgs, uintptr_t exp_avg_sqs, uintptr_t copies,
                uintptr_t sizes, int64_t count, int grad_type, int copy_type, uintptr_t weight_decays,
                uintptr_t adapted, uintptr_t lr, uintptr_t step, uintptr_t grad_norm, uintptr_t grad_scale,
                uintptr_t found_inf, double beta1, double beta2, double eps, double max_grad_norm, bool grad_averaging,
                bool bias_correction, uintptr_t scratch, uintptr_t stream) {
    const Numbers x = numbers(beta1, beta2, eps, max_grad_norm, grad_averaging, bias_correction, grad_type, copy_type);
    TwoSums *squares = pointer<TwoSums>(scratch), *sums = squares + count;
    each_lamb_table("lamb", params, grads, exp_avgs, exp_avg_sqs, copies, sizes, count, weight_decays, adapted,
                    [&](const auto& table) {
                        launch_moments(table, step, grad_norm, grad_scale, found_inf, x, sums, squares, stream);
                        launch_apply(table, squares, lr, step, found_inf, x, stream);
                    });
}

void cuda::lamb_moments(uintptr_t params, uintptr_t grads, uintptr_t exp_avgs, uintptr_t exp_avg_sqs, uintptr_t sizes,
                        int64_t count, int grad_type, uintptr_t squares, uintptr_t weight_decays, uintptr_t step,
                        uintptr_t grad_norm, uintptr_t grad_scale, uintptr_t found_inf, double beta1, double beta2,
                        double eps, double max_grad_norm, bool grad_averaging, bool bias_correction, uintptr_t scratch,
                        uintptr_t stream) {
    const Numbers x = numbers(beta1, beta2, eps, max_grad_norm, grad_averaging, bias_correction, grad_type, 0);
    each_lamb_table("lamb_moments", params, grads, exp_avgs, exp_avg_sqs, 0, sizes, count, weight_decays, 0,
                    [&](const auto& table) {
                        launch_moments(table, step, grad_norm, grad_scale, found_inf, x, pointer<TwoSums>(scratch),
                                       pointer<TwoSums>(squares), stream);
                    });
}

void cuda::lamb_apply(uintptr_t params, uintptr_t exp_avgs, uintptr_t exp_avg_sqs, uintptr_t copies, uintptr_t sizes,
                      int64_t count, int copy_type, uintptr_t squares, uintptr_t weight_decays, uintptr_t adapted,
                      uintptr_t lr, uintptr_t step, uintptr_t found_inf, double beta1, double beta2, double eps,
                      bool bias_correction, uintptr_t stream) {
    const Numbers x = numbers(beta1, beta2, eps, 0, true, bias_correction, 0, copy_type);
    // There are no gradients; their place in the table isn't read.
    each_lamb_table(
        "lamb_apply", params, params, exp_avgs, exp_avg_sqs, copies, sizes, count, weight_decays, adapted,
        [&](const auto& table) { launch_apply(table, pointer<TwoSums>(squares), lr, step, found_inf, x, stream); });
}
