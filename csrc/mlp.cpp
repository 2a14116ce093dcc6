#include "mlp.h"

#include <algorithm>
#include <vector>

#include "common/bfloat16.h"
#include "common/check.h"
#include "common/parallel.h"

namespace {

constexpr int64_t kGrain = 8 << 10;  // elements that make another thread worth waking

// Rows summed at once. A function of the shape alone: each block has a sum of its own, added up in order afterwards.
int64_t block_rows(int64_t B) { return std::max<int64_t>(64, (B + 255) / 256); }

template <bool kRelu, class E>
void fwd(E* y, const float* bias, int64_t B, int64_t N) {
    parallel_shares(B, std::max<int64_t>(1, kGrain / N), [&](int64_t first, int64_t last) {
        for (E* row = y + first * N; row < y + last * N; row += N)
#pragma omp simd
            for (int64_t n = 0; n < N; ++n) {
                const float v = to_float(row[n]) + bias[n];
                row[n] = from_float<E>(kRelu && v <= 0 ? 0 : v);
            }
    });
}

template <bool kRelu, class E>
void bwd(const E* y, const E* dy, E* g, float* dbias, int64_t B, int64_t N) {
    const int64_t rows = block_rows(B), blocks = (B + rows - 1) / rows;
    std::vector<float> sums(blocks * N);
    parallel_shares(blocks, std::max<int64_t>(1, kGrain / (rows * N)), [&](int64_t first, int64_t last) {
        for (int64_t block = first; block < last; ++block) {
            float* sum = sums.data() + block * N;
            for (int64_t at = block * rows * N; at < std::min(B, (block + 1) * rows) * N; at += N)
#pragma omp simd
                for (int64_t n = 0; n < N; ++n) {
                    float v = to_float(dy[at + n]);
                    if (kRelu) {
                        v = to_float(y[at + n]) <= 0 ? 0 : v;
                        g[at + n] = from_float<E>(v);
                    }
                    sum[n] += v;
                }
        }
    });
    std::fill(dbias, dbias + N, 0.0f);
    for (int64_t block = 0; block < blocks; ++block)
        for (int64_t n = 0; n < N; ++n) dbias[n] += sums[block * N + n];
}

void check(int64_t B, int64_t N) {
    require_at_least("mlp", "B", B, 0);
    require_at_least("mlp", "N", N, 1);
}

template <class E>
void fwd(uintptr_t y, uintptr_t bias, int64_t B, int64_t N, bool relu) {
    relu ? fwd<true>(pointer<E>(y), pointer<float>(bias), B, N) : fwd<false>(pointer<E>(y), pointer<float>(bias), B, N);
}

template <class E>
void bwd(uintptr_t y, uintptr_t dy, uintptr_t g, uintptr_t dbias, int64_t B, int64_t N, bool relu) {
    const auto run = [&](auto function) {
        function(pointer<const E>(y), pointer<const E>(dy), pointer<E>(g), pointer<float>(dbias), B, N);
    };
    relu ? run(bwd<true, E>) : run(bwd<false, E>);
}

}  // namespace

void mlp_bias_fwd(uintptr_t y, uintptr_t bias, int64_t B, int64_t N, bool relu, bool bf16) {
    check(B, N);
    bf16 ? fwd<BFloat16>(y, bias, B, N, relu) : fwd<float>(y, bias, B, N, relu);
}

void mlp_bias_bwd(uintptr_t y, uintptr_t dy, uintptr_t g, uintptr_t dbias, int64_t B, int64_t N, bool relu, bool bf16) {
    check(B, N);
    bf16 ? bwd<BFloat16>(y, dy, g, dbias, B, N, relu) : bwd<float>(y, dy, g, dbias, B, N, relu);
}
