#include "layer_norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/as_stored.h"
#include "common/check.h"
#include "common/dropout.h"
#include "common/parallel.h"
#include "common/rows.h"
#include "common/simd.h"

namespace {

constexpr int64_t kGrain = 8 << 10;  // elements that make another thread worth waking

template <bool kDropout, class E>
void fwd(const E* x, const float* bias, const E* residual, const float* gamma, const float* beta, E* y, float* mean,
         float* rstd, int64_t B, int64_t N, float eps, const Dropout& dropout) {
    const Padded added(bias, N), factor(gamma, N), offset(beta, N), zeros(nullptr, N);
    const bool streamed = streams(y, B, N);
    parallel_shares(B, std::max<int64_t>(1, kGrain / N), [&](int64_t first, int64_t last) {
        Buffer sums(padded(N)), x_row(padded(N)), residual_row(padded(N)), y_row(padded(N));
        std::vector<uint16_t> bits(Dropout::padded(N));
        float* s = sums.data();
        for (int64_t b = first; b < last; ++b) {
            const int64_t at = b * N;
            const float* h = read(x + at, x_row.data(), N);
            const float* r = residual ? read(residual + at, residual_row.data(), N) : zeros.data;
            if (kDropout) dropout.row(bits.data(), b, N);
            Vec total[kParts] = {};
            for (int64_t n = 0; n < N; n += kBlock)
#pragma GCC unroll 4
                for (int i = 0; i < kParts; ++i) {
                    const int64_t k = n + i * kLanes;
                    Vec v = load(h + k) + load(added.data + k);
                    if (kDropout) v = dropout.apply(bits.data() + k, v);
                    v += load(r + k);
                    store(s + k, v);
                    total[i] += v;
                }
            const auto [m, scaled] = moments(s, total, N, eps);
            mean[b] = m, rstd[b] = scaled;
            float* out = begin_write(y + at, y_row.data(), N);
            for (int64_t n = 0; n < N; n += kBlock)
#pragma GCC unroll 4
                for (int i = 0; i < kParts; ++i) {
                    const int64_t k = n + i * kLanes;
                    const Vec v = (load(s + k) - m) * scaled * load(factor.data + k) + load(offset.data + k);
                    put(out + k, v, streamed);
                }
            end_write(y + at, out, N);
        }
        if (streamed) stream_end();
    });
}

template <bool kDropout, class E>
void bwd(const E* x, const float* bias, const E* residual, const float* gamma, const float* mean, const float* rstd,
         const E* dy, E* dx, E* dresidual, float* sums, int64_t B, int64_t N, const Dropout& dropout) {
    const Padded added(bias, N), factor(gamma, N), zeros(nullptr, N);
    const float share = 1.0f / static_cast<float>(N);
    const int64_t P = padded(N), rows = block_rows(B), blocks = (B + rows - 1) / rows;
    const bool streamed = streams(dx, B, N), residual_streamed = dresidual != nullptr && streams(dresidual, B, N);
    Buffer partial(blocks * 3 * P);
    parallel_shares(blocks, std::max<int64_t>(1, kGrain / (rows * N)), [&](int64_t first, int64_t last) {
        Buffer normal(P), x_row(P), residual_row(P), dy_row(P), dx_row(P), dresidual_row(P);
        std::vector<uint16_t> bits(Dropout::padded(N));
        float* normalized = normal.data();
        for (int64_t b = first * rows; b < std::min(B, last * rows); ++b) {
            const int64_t at = b * N;
            float *dgamma = partial.data() + b / rows * 3 * P, *dbeta = dgamma + P, *dbias = dbeta + P;
            const float* h = read(x + at, x_row.data(), N);
            const float* r = residual ? read(residual + at, residual_row.data(), N) : zeros.data;
            const float* g = read(dy + at, dy_row.data(), N);
            if (kDropout) dropout.row(bits.data(), b, N);
            const float m = mean[b], scaled = rstd[b];
            Vec total[kParts] = {}, product[kParts] = {};
            for (int64_t n = 0; n < N; n += kBlock)
#pragma GCC unroll 4
                for (int i = 0; i < kParts; ++i) {
                    const int64_t k = n + i * kLanes;
                    Vec v = load(h + k) + load(added.data + k);
                    if (kDropout) v = dropout.apply(bits.data() + k, v);
                    const Vec z = (v + load(r + k) - m) * scaled, d = load(g + k), weighted = d * load(factor.data + k);
                    store(normalized + k, z);
                    store(dgamma + k, load(dgamma + k) + d * z);
                    store(dbeta + k, load(dbeta + k) + d);
                    total[i] += weighted;
                    product[i] += weighted * z;
                }
            const float mean_total = sum(total) * share, mean_product = sum(product) * share;
            float* to = begin_write(dx + at, dx_row.data(), N);
            float* to_residual =
                dresidual ? begin_write(dresidual + at, dresidual_row.data(), N) : dresidual_row.data();
            for (int64_t n = 0; n < N; n += kBlock)
#pragma GCC unroll 4
                for (int i = 0; i < kParts; ++i) {
                    const int64_t k = n + i * kLanes;
                    const Vec weighted = load(g + k) * load(factor.data + k);
                    Vec d = scaled * (weighted - mean_total - load(normalized + k) * mean_product);
                    if (kDropout) {
                        put(to_residual + k, d, residual_streamed);
                        d = dropout.apply(bits.data() + k, d);
                    }
                    put(to + k, d, streamed);
                    store(dbias + k, load(dbias + k) + d);
                }
            end_write(dx + at, to, N);
            if (kDropout && dresidual) end_write(dresidual + at, to_residual, N);
        }
        if (streamed || residual_streamed) stream_end();
    });
    std::fill(sums, sums + 3 * N, 0.0f);
    for (int64_t block = 0; block < blocks; ++block)
        for (int row = 0; row < 3; ++row)
            for (int64_t n = 0; n < N; ++n) sums[row * N + n] += partial.data()[(block * 3 + row) * P + n];
}

void check(int64_t B, int64_t N, uintptr_t state, int64_t threshold) {
    require_at_least("layer_norm", "B", B, 0);
    require_at_least("layer_norm", "N", N, 1);
    checked_product("layer_norm", B, N);
    if (threshold < 0 || threshold > 65535 || (threshold > 0 && state == 0))
        throw std::invalid_argument("layer_norm: threshold must be 0 to 65535, with a state where it isn't 0");
}

}  // namespace

void layer_norm_fwd(uintptr_t x, uintptr_t bias, uintptr_t residual, uintptr_t gamma, uintptr_t beta, uintptr_t y,
                    uintptr_t mean, uintptr_t rstd, int64_t B, int64_t N, float eps, uintptr_t state, int64_t site,
                    int64_t threshold, int stored_as) {
    check(B, N, state, threshold);
    const Dropout dropout(pointer<int64_t>(state), site, threshold);
    as_stored(stored_as, [&](auto kind) {
        using E = decltype(kind);
        const auto run = threshold ? fwd<true, E> : fwd<false, E>;
        run(pointer<E>(x), pointer<float>(bias), pointer<E>(residual), pointer<float>(gamma), pointer<float>(beta),
            pointer<E>(y), pointer<float>(mean), pointer<float>(rstd), B, N, eps, dropout);
    });
}

void layer_norm_bwd(uintptr_t x, uintptr_t bias, uintptr_t residual, uintptr_t gamma, uintptr_t mean, uintptr_t rstd,
                    uintptr_t dy, uintptr_t dx, uintptr_t dresidual, uintptr_t sums, int64_t B, int64_t N,
                    uintptr_t state, int64_t site, int64_t threshold, int stored_as) {
    check(B, N, state, threshold);
    const Dropout dropout(pointer<int64_t>(state), site, threshold);
    as_stored(stored_as, [&](auto kind) {
        using E = decltype(kind);
        const auto run = threshold ? bwd<true, E> : bwd<false, E>;
        run(pointer<E>(x), pointer<float>(bias), pointer<E>(residual), pointer<float>(gamma), pointer<float>(mean),
            pointer<float>(rstd), pointer<E>(dy), pointer<E>(dx), pointer<E>(dresidual), pointer<float>(sums), B, N,
            dropout);
    });
}
