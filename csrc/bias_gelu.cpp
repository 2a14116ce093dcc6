#include "bias_gelu.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/as_stored.h"
#include "common/check.h"
#include "common/exp.h"
#include "common/parallel.h"

namespace {

constexpr int64_t kGrain = 4 << 10;  // elements that make another thread worth waking
constexpr float kRoot = 0.7978845608f, kCubic = 0.044715f;

// Rows summed at once. A function of the shape alone: each block has a sum of its own, added up in order afterwards.
int64_t block_rows(int64_t B) { return std::max<int64_t>(64, (B + 255) / 256); }

// 1 / x for x >= 1, from 1e37 on 1e-37, by Newton's steps from a guess by the exponent: a division measured four times
// slower.
inline float reciprocal(float x) {
    x = x > 1e37f ? 1e37f : x;
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits = 0x7EF311C3u - bits;
    float r;
    std::memcpy(&r, &bits, 4);
    for (int step = 0; step < 4; ++step) r = r + r * (1.0f - x * r);
    return r;
}

// (1 + tanh u) / 2, without the cancellation of the sum.
inline float gate(float v) { return reciprocal(1.0f + fast_exp(-2.0f * kRoot * v * (1.0f + kCubic * v * v))); }

// Rows are functions of their own, so that `restrict` holds.
template <class E>
__attribute__((noinline)) void fwd_row(const E* __restrict x, const float* __restrict bias, E* __restrict y,
                                       int64_t N) {
    for (int64_t n = 0; n < N; ++n) {
        const float v = to_float(x[n]) + bias[n];
        y[n] = from_float<E>(v * gate(v));
    }
}

// Adds to `sum`.
template <class E>
__attribute__((noinline)) void bwd_row(const E* __restrict x, const float* __restrict bias, const E* __restrict dy,
                                       E* __restrict dx, float* __restrict sum, int64_t N) {
    for (int64_t n = 0; n < N; ++n) {
        const float v = to_float(x[n]) + bias[n], s = gate(v);
        const float slope = 2.0f * kRoot * (1.0f + 3.0f * kCubic * v * v);
        const float d = to_float(dy[n]) * (s + v * s * (1.0f - s) * slope);
        dx[n] = from_float<E>(d);
        sum[n] += d;
    }
}

template <class E>
void fwd(const E* x, const float* bias, E* y, int64_t B, int64_t N) {
    parallel_shares(B, std::max<int64_t>(1, kGrain / N), [&](int64_t first, int64_t last) {
        for (int64_t at = first * N; at < last * N; at += N) fwd_row(x + at, bias, y + at, N);
    });
}

template <class E>
void bwd(const E* x, const float* bias, const E* dy, E* dx, float* dbias, int64_t B, int64_t N) {
    const int64_t rows = block_rows(B), blocks = (B + rows - 1) / rows;
    std::vector<float> sums(blocks * N);
    parallel_shares(blocks, std::max<int64_t>(1, kGrain / (rows * N)), [&](int64_t first, int64_t last) {
        for (int64_t b = first * rows; b < std::min(B, last * rows); ++b)
            bwd_row(x + b * N, bias, dy + b * N, dx + b * N, sums.data() + b / rows * N, N);
    });
    std::fill(dbias, dbias + N, 0.0f);
    for (int64_t block = 0; block < blocks; ++block)
        for (int64_t n = 0; n < N; ++n) dbias[n] += sums[block * N + n];
}

void check(int64_t B, int64_t N) {
    require_at_least("bias_gelu", "B", B, 0);
    require_at_least("bias_gelu", "N", N, 1);
    checked_product("bias_gelu", B, N);
}

}  // namespace

void bias_gelu_fwd(uintptr_t x, uintptr_t bias, uintptr_t y, int64_t B, int64_t N, int stored_as) {
    check(B, N);
    as_stored(stored_as, [&](auto kind) {
        using E = decltype(kind);
        fwd(pointer<const E>(x), pointer<const float>(bias), pointer<E>(y), B, N);
    });
}

void bias_gelu_bwd(uintptr_t x, uintptr_t bias, uintptr_t dy, uintptr_t dx, uintptr_t dbias, int64_t B, int64_t N,
                   int stored_as) {
    check(B, N);
    as_stored(stored_as, [&](auto kind) {
        using E = decltype(kind);
        bwd(pointer<const E>(x), pointer<const float>(bias), pointer<const E>(dy), pointer<E>(dx),
            pointer<float>(dbias), B, N);
    });
}
