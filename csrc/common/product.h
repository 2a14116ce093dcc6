// Products of small matrices out of a core's own cache, in register tiles. The right side lies in panels of kPanel
// columns, padded to whole registers.
#pragma once
#include <cstdint>

#include "simd.h"

constexpr int kWide = 2;  // registers a row of a tile
constexpr int64_t kPanel = kWide * kLanes;
#if defined(__AVX512F__)  // 32 registers
constexpr int kTall = 12;
#else  // 16
constexpr int kTall = 6;
#endif
constexpr int kShort = kTall / 3;

inline int64_t whole_registers(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Row r of the left side begins at a + r * row, its elements are `step` apart.
struct Left {
    const float* a;
    int64_t row, step;
};

// finish(r, column, sums of the columns from there on) for Rows rows of the product's Wide registers. The right side's
// rows begin `stride` apart.
template <int Rows, int Wide, class Finish>
inline __attribute__((always_inline)) void product_tile(const Left& left, int64_t first, const float* b, int64_t stride,
                                                        int64_t inner, int64_t column, Finish& finish) {
    constexpr int kBases = (Rows + 2) / 3;  // an address reaches three rows, or they wouldn't fit the registers
    const float* base[kBases];
    for (int i = 0; i < kBases; ++i) base[i] = left.a + (first + 3 * i) * left.row;
    const int64_t row = left.row, step = left.step;
    Vec sums[Rows][Wide] = {};
    for (int64_t i = 0; i < inner; ++i, b += stride) {
        Vec x[Wide];
#pragma GCC unroll 2
        for (int w = 0; w < Wide; ++w) x[w] = load(b + w * kLanes), keep(x[w]);
#pragma GCC unroll 12
        for (int r = 0; r < Rows; ++r) {
            const float a = base[r / 3][r % 3 * row];
#pragma GCC unroll 2
            for (int w = 0; w < Wide; ++w) sums[r][w] += a * x[w];
        }
#pragma GCC unroll 4
        for (int n = 0; n < kBases; ++n) base[n] += step;
    }
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
        for (int w = 0; w < Wide; ++w) finish(first + r, column + w * kLanes, sums[r][w]);
}

// `rows` rows of the left side times one panel, or times its first register.
template <int Wide, class Finish>
void product_panel(const Left& left, int64_t rows, const float* b, int64_t stride, int64_t inner, int64_t column,
                   Finish& finish) {
    int64_t r = 0;
    for (; r + kTall <= rows; r += kTall) product_tile<kTall, Wide>(left, r, b, stride, inner, column, finish);
    for (; r + kShort <= rows; r += kShort) product_tile<kShort, Wide>(left, r, b, stride, inner, column, finish);
    for (; r < rows; ++r) product_tile<1, Wide>(left, r, b, stride, inner, column, finish);
}
