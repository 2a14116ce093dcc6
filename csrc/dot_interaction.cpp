#include "dot_interaction.h"

#include <algorithm>
#include <array>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/bfloat16.h"
#include "common/check.h"
#include "common/parallel.h"
#include "common/simd.h"

// One sample is a matrix of R = T + 1 rows of D floats: the dense vector, then the T pooled ones. It fits the
// first-level cache, so forward and backward are two small matrix products a sample, in register tiles, and no index of
// the triangle is ever stored. Meanwhile the next sample is fetched, a few lines a tile: all at once would hold up the
// loads. Where D is no multiple of the register's lanes, or the tensors are bfloat16, a sample is first copied into
// float rows that are padded with zeros.

namespace {

// Register tiles. Forward: kTall x 4 dot products. Backward: kRows rows x kWide registers.
#if defined(__AVX512F__)  // 32 registers
constexpr int kTall = 4, kRows = 9;
#else  // 16
constexpr int kTall = 2, kRows = 6;
#endif
constexpr int kWide = 2;

struct Matrix {
    const float *dense, *sparse;
    int64_t width;  // a multiple of kLanes
    const float* row(int64_t i) const { return i ? sparse + (i - 1) * width : dense; }
};

// Fetches [from, from + bytes) bit by bit, in `steps` calls of step().
class Ahead {
   public:
    Ahead(const void* from, int64_t bytes, int64_t steps)
        : at_(static_cast<const char*>(from)), end_(at_ + bytes), stride_((bytes / kLine / steps + 1) * kLine) {}
    void step() {
        const char* until = std::min(at_ + stride_, end_);
        for (; at_ < until; at_ += kLine) __builtin_prefetch(at_);
    }

   private:
    static constexpr int64_t kLine = 64;
    const char *at_, *end_;
    int64_t stride_;
};

// out[i (i - 1) / 2 + j] = row i . row j, for j < i.
void lower_triangle(const Matrix& m, int64_t R, float* out, Ahead& ahead) {
    for (int64_t i0 = 0; i0 < R; i0 += kTall)
        for (int64_t j0 = 0; j0 < std::min(i0 + kTall, R) - 1; j0 += 4) {
            const float *p[kTall], *q[4];  // past the last row: the last one again, not stored
            for (int k = 0; k < kTall; ++k) p[k] = m.row(std::min(i0 + k, R - 1));
            for (int k = 0; k < 4; ++k) q[k] = m.row(std::min(j0 + k, R - 1));
            ahead.step();
            Vec sums[kTall][4] = {};
            for (int64_t d = 0; d < m.width; d += kLanes) {
                Vec b[4];
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k) b[k] = load(q[k] + d), keep(b[k]);
#pragma GCC unroll 4
                for (int i = 0; i < kTall; ++i) {
                    Vec a = load(p[i] + d);
                    keep(a);
#pragma GCC unroll 4
                    for (int j = 0; j < 4; ++j) sums[i][j] += a * b[j];
                }
            }
#pragma GCC unroll 4
            for (int i = 0; i < kTall; ++i) {
                const int64_t row = i0 + i;
                float* to = out + row * (row - 1) / 2 + j0;
                float four[4];
                const bool whole = row < R && j0 + 4 <= row;
                store_sums(whole ? to : four, sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
                if (!whole && row < R)
                    for (int64_t j = 0; j0 + j < row; ++j) to[j] = four[j];
            }
        }
}
int64_t forward_steps(int64_t R) { return (R / kTall + 1) * (R / 4 + 1) / 2 + 1; }

// What the gradient of one sample needs and makes.
struct Backward {
    Matrix m;
    int64_t R;
    const float* weights;  // [R, R]: the triangle of dout and its mirror image, zeros between them
    const float* direct;   // [width]: the part of dout that the dense vector passed straight on
    float *ddense, *dsparse;
    float* row(int64_t i) const { return i ? dsparse + (i - 1) * m.width : ddense; }
};

// Rows first .. first + Rows of the gradient: row i = sum over j of weights[i, j] * row j, in `Wide` registers at d.
// Streaming: past the caches.
template <int Rows, int Wide, bool Streaming>
void gradient_tile(const Backward& s, int64_t first, int64_t d) {
    float* to[Rows];
    Vec sums[Rows][Wide] = {};
#pragma GCC unroll 9
    for (int r = 0; r < Rows; ++r) {
        to[r] = s.row(first + r) + d;
        if (!Streaming)
            for (int w = 0; w < Wide; ++w) __builtin_prefetch(to[r] + w * kLanes, 1);
    }
    if (first == 0)
        for (int w = 0; w < Wide; ++w) sums[0][w] = load(s.direct + d + w * kLanes);
    const float *from = s.m.dense + d, *next = s.m.sparse + d;
    const float* weights = s.weights + first;  // weights is symmetric: [j, i] lie side by side for the tile's rows i
    for (int64_t j = 0; j < s.R; ++j, weights += s.R, from = next, next += s.m.width) {
        Vec x[Wide];
#pragma GCC unroll 2
        for (int w = 0; w < Wide; ++w) x[w] = load(from + w * kLanes), keep(x[w]);
#pragma GCC unroll 9
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
            for (int w = 0; w < Wide; ++w) sums[r][w] += weights[r] * x[w];
    }
#pragma GCC unroll 9
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
        for (int w = 0; w < Wide; ++w)
            Streaming ? stream(to[r] + w * kLanes, sums[r][w]) : store(to[r] + w * kLanes, sums[r][w]);
}

template <int Rows, bool Streaming>
void gradient_rows(const Backward& s, int64_t first, Ahead& ahead) {
    int64_t d = 0;
    for (; d + kWide * kLanes <= s.m.width; d += kWide * kLanes) {
        ahead.step();
        gradient_tile<Rows, kWide, Streaming>(s, first, d);
    }
    for (; d < s.m.width; d += kLanes) gradient_tile<Rows, 1, Streaming>(s, first, d);
}

// [n - 1] is gradient_rows<n, Streaming>: the number of accumulators must be known when compiling, or they live in
// memory.
template <bool Streaming, size_t... N>
constexpr auto make_gradient_rows(std::index_sequence<N...>) {
    return std::array{&gradient_rows<static_cast<int>(N) + 1, Streaming>...};
}

template <bool Streaming>
void gradient(const Backward& s, Ahead& ahead) {
    constexpr auto kGradientRows = make_gradient_rows<Streaming>(std::make_index_sequence<kRows>());
    for (int64_t first = 0; first < s.R; first += kRows)
        kGradientRows[std::min<int64_t>(kRows, s.R - first) - 1](s, first, ahead);
}
int64_t backward_steps(int64_t R, int64_t width) { return (R + kRows - 1) / kRows * (width / (kWide * kLanes) + 1); }

// weights[i, j] = weights[j, i] = triangle[i (i - 1) / 2 + j]; the diagonal stays zero.
void mirror(const float* triangle, int64_t R, float* weights) {
    for (int64_t i = 1; i < R; triangle += i++) {
        std::copy(triangle, triangle + i, weights + i * R);
        float* column = weights + i;
        for (int64_t j = 0; j < i; ++j) column[j * R] = triangle[j];
    }
}

template <class E>
void to_floats(const E* from, int64_t count, float* to) {
    for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}
template <class E>
void from_floats(const float* from, int64_t count, E* to) {
    for (int64_t i = 0; i < count; ++i) to[i] = from_float<E>(from[i]);
}

int64_t padded(int64_t D) { return (D + kLanes - 1) / kLanes * kLanes; }

// A sample as float rows: the tensors themselves where they are that already, else a copy in `rows` [R, padded(D)].
template <class E>
Matrix matrix(const E* dense, const E* sparse, int64_t T, int64_t D, std::vector<float>& rows) {
    const int64_t width = padded(D);
    if constexpr (std::is_same_v<E, float>)
        if (width == D) return {dense, sparse, width};
    to_floats(dense, D, rows.data());
    for (int64_t t = 0; t < T; ++t) to_floats(sparse + t * D, D, rows.data() + (t + 1) * width);
    return {rows.data(), rows.data() + width, width};
}

template <class E>
void fwd(const E* dense, const E* sparse, E* out, int64_t B, int64_t T, int64_t D) {
    const int64_t R = T + 1, pairs = R * T / 2;
    parallel_shares(B, 1, [&](int64_t first, int64_t last) {
        std::vector<float> rows(R * padded(D)), triangle(pairs);
        for (int64_t b = first; b < last; ++b) {
            E* to = out + b * (D + pairs);
            std::copy(dense + b * D, dense + (b + 1) * D, to);
            const Matrix m = matrix(dense + b * D, sparse + b * T * D, T, D, rows);
            Ahead ahead(sparse + (b + 1) * T * D, b + 1 < last ? T * D * sizeof(E) : 0, forward_steps(R));
            if constexpr (std::is_same_v<E, float>) {
                lower_triangle(m, R, to + D, ahead);
            } else {
                lower_triangle(m, R, triangle.data(), ahead);
                from_floats(triangle.data(), pairs, to + D);
            }
        }
    });
}

template <class E>
void bwd(const E* dense, const E* sparse, const E* dout, E* ddense, E* dsparse, int64_t B, int64_t T, int64_t D) {
    const int64_t R = T + 1, pairs = R * T / 2, width = padded(D);
    bool streaming = false;
    if constexpr (std::is_same_v<E, float>)
        streaming = worth_streaming(dsparse, B * T, D) && worth_streaming(ddense, B * T, D);
    parallel_shares(B, 1, [&](int64_t first, int64_t last) {
        std::vector<float> rows(R * width), grads(R * width), weights(R * R), upstream(pairs), direct(width);
        for (int64_t b = first; b < last; ++b) {
            const E* g = dout + b * (D + pairs);
            to_floats(g, D, direct.data());
            if constexpr (std::is_same_v<E, float>) {
                mirror(g + D, R, weights.data());
            } else {
                to_floats(g + D, pairs, upstream.data());
                mirror(upstream.data(), R, weights.data());
            }
            Backward s{matrix(dense + b * D, sparse + b * T * D, T, D, rows), R, weights.data(), direct.data(), {}, {}};
            Ahead ahead(sparse + (b + 1) * T * D, b + 1 < last ? T * D * sizeof(E) : 0, backward_steps(R, width));
            E *to_dense = ddense + b * D, *to_sparse = dsparse + b * T * D;
            if constexpr (std::is_same_v<E, float>)
                if (width == D) {
                    s.ddense = to_dense, s.dsparse = to_sparse;
                    streaming ? gradient<true>(s, ahead) : gradient<false>(s, ahead);
                    continue;
                }
            s.ddense = grads.data(), s.dsparse = grads.data() + width;
            gradient<false>(s, ahead);
            from_floats(s.ddense, D, to_dense);
            for (int64_t t = 0; t < T; ++t) from_floats(s.dsparse + t * width, D, to_sparse + t * D);
        }
        if (streaming) stream_end();
    });
}

void check(int64_t B, int64_t T, int64_t D) {
    require_at_least("dot_interaction", "B", B, 0);
    require_at_least("dot_interaction", "T", T, 1);
    require_at_least("dot_interaction", "D", D, 1);
}

}  // namespace

void dot_interaction_fwd(uintptr_t dense, uintptr_t sparse, uintptr_t out, int64_t B, int64_t T, int64_t D, bool bf16) {
    check(B, T, D);
    if (bf16)
        fwd(pointer<BFloat16>(dense), pointer<BFloat16>(sparse), pointer<BFloat16>(out), B, T, D);
    else
        fwd(pointer<float>(dense), pointer<float>(sparse), pointer<float>(out), B, T, D);
}

void dot_interaction_bwd(uintptr_t dense, uintptr_t sparse, uintptr_t dout, uintptr_t ddense, uintptr_t dsparse,
                         int64_t B, int64_t T, int64_t D, bool bf16) {
    check(B, T, D);
    if (bf16)
        bwd(pointer<BFloat16>(dense), pointer<BFloat16>(sparse), pointer<BFloat16>(dout), pointer<BFloat16>(ddense),
            pointer<BFloat16>(dsparse), B, T, D);
    else
        bwd(pointer<float>(dense), pointer<float>(sparse), pointer<float>(dout), pointer<float>(ddense),
            pointer<float>(dsparse), B, T, D);
}
