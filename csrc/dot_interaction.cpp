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
// the triangle is ever stored. Where D is no multiple of the register's lanes, or the tensors are bfloat16, a sample is
// first copied into float rows that are padded with zeros.

namespace {

constexpr int kSide = 3;  // forward: tiles of 3 x 3 dot products, 9 accumulators
#if defined(__AVX512F__)
constexpr int kRows = 9;  // backward: tiles of 9 rows x 2 registers, of 32 registers
#else
constexpr int kRows = 6;  // of 16 registers
#endif
constexpr int kWide = 2;

struct Matrix {
    const float *dense, *sparse;
    int64_t width;  // a multiple of kLanes
    const float* row(int64_t i) const { return i ? sparse + (i - 1) * width : dense; }
};

// out[i (i - 1) / 2 + j] = row i . row j, for j < i.
void lower_triangle(const Matrix& m, int64_t R, float* out) {
    for (int64_t i0 = 0; i0 < R; i0 += kSide)
        for (int64_t j0 = 0; j0 <= i0; j0 += kSide) {
            const float *p[kSide], *q[kSide];
            for (int k = 0; k < kSide; ++k) {  // past the last row: the last one again, not stored
                p[k] = m.row(std::min(i0 + k, R - 1));
                q[k] = m.row(std::min(j0 + k, R - 1));
            }
            Vec sums[kSide][kSide] = {};
            for (int64_t d = 0; d < m.width; d += kLanes) {
                Vec a[kSide], b[kSide];
                for (int k = 0; k < kSide; ++k) a[k] = load(p[k] + d), b[k] = load(q[k] + d);
                for (int i = 0; i < kSide; ++i)
                    for (int j = 0; j < kSide; ++j) sums[i][j] += a[i] * b[j];
            }
            for (int i = 0; i < kSide; ++i)
                for (int j = 0; j < kSide; ++j)
                    if (const int64_t row = i0 + i, column = j0 + j; row < R && column < row)
                        out[row * (row - 1) / 2 + column] = sum(sums[i][j]);
        }
}

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
template <int Rows, int Wide>
void gradient_tile(const Backward& s, int64_t first, int64_t d) {
    Vec sums[Rows][Wide] = {};
    if (first == 0)
        for (int w = 0; w < Wide; ++w) sums[0][w] = load(s.direct + d + w * kLanes);
    for (int64_t j = 0; j < s.R; ++j) {
        const float* from = s.m.row(j) + d;
        Vec x[Wide];
        for (int w = 0; w < Wide; ++w) x[w] = load(from + w * kLanes);
        for (int r = 0; r < Rows; ++r)
            for (int w = 0; w < Wide; ++w) sums[r][w] += s.weights[(first + r) * s.R + j] * x[w];
    }
    for (int r = 0; r < Rows; ++r)
        for (int w = 0; w < Wide; ++w) store(s.row(first + r) + d + w * kLanes, sums[r][w]);
}

template <int Rows>
void gradient_rows(const Backward& s, int64_t first) {
    int64_t d = 0;
    for (; d + kWide * kLanes <= s.m.width; d += kWide * kLanes) gradient_tile<Rows, kWide>(s, first, d);
    for (; d < s.m.width; d += kLanes) gradient_tile<Rows, 1>(s, first, d);
}

// [n - 1] is gradient_rows<n>: the number of accumulators must be known when compiling, or they live in memory.
template <size_t... N>
constexpr auto make_gradient_rows(std::index_sequence<N...>) {
    return std::array{&gradient_rows<static_cast<int>(N) + 1>...};
}
constexpr auto kGradientRows = make_gradient_rows(std::make_index_sequence<kRows>());

void gradient(const Backward& s) {
    for (int64_t first = 0; first < s.R; first += kRows)
        kGradientRows[std::min<int64_t>(kRows, s.R - first) - 1](s, first);
}

// weights[i, j] = weights[j, i] = triangle[i (i - 1) / 2 + j]; the diagonal stays zero.
void mirror(const float* triangle, int64_t R, float* weights) {
    for (int64_t i = 1; i < R; ++i)
        for (int64_t j = 0; j < i; ++j) weights[i * R + j] = weights[j * R + i] = *triangle++;
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
            if constexpr (std::is_same_v<E, float>) {
                lower_triangle(m, R, to + D);
            } else {
                lower_triangle(m, R, triangle.data());
                from_floats(triangle.data(), pairs, to + D);
            }
        }
    });
}

template <class E>
void bwd(const E* dense, const E* sparse, const E* dout, E* ddense, E* dsparse, int64_t B, int64_t T, int64_t D) {
    const int64_t R = T + 1, pairs = R * T / 2, width = padded(D);
    parallel_shares(B, 1, [&](int64_t first, int64_t last) {
        std::vector<float> rows(R * width), grads(R * width), weights(R * R), upstream(D + pairs), direct(width);
        for (int64_t b = first; b < last; ++b) {
            to_floats(dout + b * (D + pairs), D + pairs, upstream.data());
            std::copy_n(upstream.data(), D, direct.data());
            mirror(upstream.data() + D, R, weights.data());
            Backward s{matrix(dense + b * D, sparse + b * T * D, T, D, rows), R, weights.data(), direct.data(), {}, {}};
            E *to_dense = ddense + b * D, *to_sparse = dsparse + b * T * D;
            if constexpr (std::is_same_v<E, float>)
                if (width == D) {
                    s.ddense = to_dense, s.dsparse = to_sparse;
                    gradient(s);
                    continue;
                }
            s.ddense = grads.data(), s.dsparse = grads.data() + width;
            gradient(s);
            from_floats(s.ddense, D, to_dense);
            for (int64_t t = 0; t < T; ++t) from_floats(s.dsparse + t * width, D, to_sparse + t * D);
        }
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
