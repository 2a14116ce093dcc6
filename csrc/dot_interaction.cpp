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
        for (; at_ < until; at_ += kLine) __builtin_prefetch(at_, 0, 2);  // into L2: L1 has too few fill buffers
    }

   private:
    const char *at_, *end_;
    int64_t stride_;
};

// The dot products of rows i0 .. i0 + Rows with rows j0 .. j0 + 4: those below the diagonal, where the first row lies
// Lead below row j0 (4: all are below).
template <int Rows, int Lead>
inline __attribute__((always_inline)) void dot_tile(const float* const* rows, int64_t width, int64_t i0, int64_t j0,
                                                    float* out) {
    const float *const *p = rows + i0, *const *q = rows + j0;
    Vec sums[Rows][4] = {};
    for (int64_t d = 0; d < width; d += kLanes) {
        Vec b[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) b[j] = load(q[j] + d), keep(b[j]);
#pragma GCC unroll 4
        for (int i = 0; i < Rows; ++i) {
            Vec a = load(p[i] + d);
            keep(a);
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j)
                if (j < Lead + i) sums[i][j] += a * b[j];
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i) {
        const int64_t row = i0 + i;
        float* to = out + row * (row - 1) / 2 + j0;
        float four[4];
        const bool whole = Lead + i >= 4;
        store_sums(whole ? to : four, sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
        for (int j = 0; !whole && j < Lead + i; ++j) to[j] = four[j];
    }
}

template <int Rows>
void dot_rows(const float* const* rows, int64_t width, int64_t i0, float* out, Ahead& ahead) {
    int64_t j0 = 0;
    for (; j0 + 4 <= i0; j0 += 4) {
        ahead.step();
        dot_tile<Rows, 4>(rows, width, i0, j0, out);
    }
    ahead.step();
    if (kTall == 2 && i0 - j0 == 2)
        dot_tile<Rows, 2>(rows, width, i0, j0, out);
    else
        dot_tile<Rows, 0>(rows, width, i0, j0, out);
}

// [n - 1] is dot_rows<n>: the number of accumulators must be known when compiling, or they live in memory.
template <size_t... N>
constexpr auto make_dot_rows(std::index_sequence<N...>) {
    return std::array{&dot_rows<static_cast<int>(N) + 1>...};
}

// out[i (i - 1) / 2 + j] = row i . row j, for j < i. rows: R addresses, and the last one three times more.
void lower_triangle(const float* const* rows, int64_t R, int64_t width, float* out, Ahead& ahead) {
    constexpr auto kDotRows = make_dot_rows(std::make_index_sequence<kTall>());
    for (int64_t i0 = 0; i0 < R; i0 += kTall)
        kDotRows[std::min<int64_t>(kTall, R - i0) - 1](rows, width, i0, out, ahead);
}
int64_t forward_steps(int64_t R) { return (R / kTall + 1) * (R / 4 + 1) / 2 + 1; }

// What the gradient of one sample needs and makes.
struct Backward {
    Matrix m;
    int64_t R, stride;
    const float* weights;  // [R, stride]: the triangle of dout and its mirror image, zeros between them
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
    for (int64_t j = 0; j < s.R; ++j, weights += s.stride, from = next, next += s.m.width) {
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

// weights[i, j] = weights[j, i] = triangle[i (i - 1) / 2 + j], the diagonal 0; [rows, rows], a multiple of kLanes. In
// squares of registers: element by element it would take half the time of a sample of short rows.
void mirror(const float* triangle, int64_t rows, float* weights) {
    for (int64_t i0 = 0; i0 < rows; i0 += kLanes)
        for (int64_t j0 = 0; j0 <= i0; j0 += kLanes) {
            Vec square[kLanes], mirrored[kLanes];
#pragma GCC unroll 16
            for (int k = 0; k < kLanes; ++k) {
                const int64_t i = i0 + k;
                square[k] = load(triangle + i * (i - 1) / 2 + j0);
                if (i0 == j0) square[k] = first_lanes(square[k], k);
                mirrored[k] = square[k];
            }
            transpose(mirrored);
#pragma GCC unroll 16
            for (int k = 0; k < kLanes; ++k) {
                if (i0 == j0)
                    square[k] += mirrored[k];
                else
                    store(weights + (j0 + k) * rows + i0, mirrored[k]);
                store(weights + (i0 + k) * rows + j0, square[k]);
            }
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
    parallel_pieces(B, 16, 32, [&](int64_t first, int64_t last) {
        std::vector<float> floats(R * padded(D)), triangle(pairs);
        std::vector<const float*> rows(R + 3);
        for (int64_t b = first; b < last; ++b) {
            E* to = out + b * (D + pairs);
            std::copy(dense + b * D, dense + (b + 1) * D, to);
            const Matrix m = matrix(dense + b * D, sparse + b * T * D, T, D, floats);
            for (int64_t i = 0; i < R + 3; ++i) rows[i] = m.row(std::min(i, R - 1));
            Ahead ahead(sparse + (b + 1) * T * D, b + 1 < last ? T * D * sizeof(E) : 0, forward_steps(R));
            float* products = triangle.data();
            if constexpr (std::is_same_v<E, float>) products = to + D;
            lower_triangle(rows.data(), R, m.width, products, ahead);
            if constexpr (!std::is_same_v<E, float>) from_floats(products, pairs, to + D);
        }
    });
}

template <class E>
void bwd(const E* dense, const E* sparse, const E* dout, E* ddense, E* dsparse, int64_t B, int64_t T, int64_t D) {
    const int64_t R = T + 1, pairs = R * T / 2, width = padded(D), stride = padded(R);
    bool streaming = false;
    if constexpr (std::is_same_v<E, float>)
        streaming = worth_streaming(dsparse, B * T, D) && worth_streaming(ddense, B * T, D);
    parallel_pieces(B, 16, 32, [&](int64_t first, int64_t last) {
        std::vector<float> rows(R * width), grads(R * width), weights(stride * stride), direct(width);
        std::vector<float> triangle(stride * (stride - 1) / 2 + kLanes);  // of `stride` rows, zeros from row R on
        for (int64_t b = first; b < last; ++b) {
            const E* g = dout + b * (D + pairs);
            if (b + 1 < last) prefetch(g + D + pairs, D + pairs);
            to_floats(g, D, direct.data());
            to_floats(g + D, pairs, triangle.data());
            mirror(triangle.data(), stride, weights.data());
            const Matrix m = matrix(dense + b * D, sparse + b * T * D, T, D, rows);
            Backward s{m, R, stride, weights.data(), direct.data(), {}, {}};
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
