#include "conv3x3.h"

#include <algorithm>

#include "common/check.h"
#include "common/parallel.h"
#include "common/product.h"
#include "common/rows.h"

// In the transformed space a convolution is 16 products of matrices, one for each place of a 4x4 tile: [tiles, C] times
// [C, K]. A thread takes kTiles tiles through all of it, so that what is between stays in its second-level cache.

namespace {

constexpr int kPlaces = 16;
constexpr int64_t kTiles = 24;  // whole register tiles; 48 and 96 measured slower

struct Shape {
    int64_t N, H, W, C, K;
    int64_t across() const { return (W + 1) / 2; }
    int64_t of_image() const { return (H + 1) / 2 * across(); }
    int64_t tiles() const { return N * of_image(); }
    int64_t wide_C() const { return whole_registers(C); }
    int64_t wide_K() const { return (K + kPanel - 1) / kPanel * kPanel; }
};

// [4, 4] -> [4, 4]: B^T d B.
inline void to_places(const Vec (&d)[kPlaces], Vec (&v)[kPlaces]) {
    Vec t[kPlaces];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        t[j] = d[j] - d[8 + j];
        t[4 + j] = d[4 + j] + d[8 + j];
        t[8 + j] = d[8 + j] - d[4 + j];
        t[12 + j] = d[4 + j] - d[12 + j];
    }
#pragma GCC unroll 4
    for (int i = 0; i < kPlaces; i += 4) {
        v[i] = t[i] - t[i + 2];
        v[i + 1] = t[i + 1] + t[i + 2];
        v[i + 2] = t[i + 2] - t[i + 1];
        v[i + 3] = t[i + 1] - t[i + 3];
    }
}

// [4, 4] -> [2, 2]: A^T m A.
inline void from_places(const Vec (&m)[kPlaces], Vec (&y)[4]) {
    Vec t[8];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        t[j] = m[j] + m[4 + j] + m[8 + j];
        t[4 + j] = m[4 + j] - m[8 + j] - m[12 + j];
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        y[2 * i] = t[4 * i] + t[4 * i + 1] + t[4 * i + 2];
        y[2 * i + 1] = t[4 * i + 1] - t[4 * i + 2] - t[4 * i + 3];
    }
}

// One step of G g G^T: three values to four.
inline void widen(Vec a, Vec b, Vec c, Vec* to, int64_t step) {
    const Vec ends = (a + c) * 0.5f, middle = b * 0.5f;
    to[0] = a, to[step] = ends + middle, to[2 * step] = ends - middle, to[3 * step] = c;
}

// u [16, C, wide_K], zeros behind K, of the outputs from `first` on: kLanes of them.
void transform_weights(float* u, const float* weight, const Shape& shape, int64_t first) {
    const int64_t C = shape.C, wide_K = shape.wide_K(), rows = std::min<int64_t>(kLanes, shape.K - first);
    for (int64_t c = 0; c < C; c += kLanes) {
        const int64_t count = std::min<int64_t>(kLanes, C - c);
        Vec taps[9][kLanes];
        for (int tap = 0; tap < 9; ++tap) {
            for (int64_t k = 0; k < kLanes; ++k)
                taps[tap][k] = k < rows ? load_some(weight + ((first + k) * 9 + tap) * C + c, count) : Vec{};
            transpose(taps[tap]);
        }
        for (int64_t i = 0; i < count; ++i) {
            Vec t[12], v[kPlaces];
            for (int j = 0; j < 3; ++j) widen(taps[j][i], taps[3 + j][i], taps[6 + j][i], t + j, 3);
            for (int j = 0; j < 4; ++j) widen(t[3 * j], t[3 * j + 1], t[3 * j + 2], v + 4 * j, 1);
            for (int p = 0; p < kPlaces; ++p) store(u + (p * C + c + i) * wide_K + first, v[p]);
        }
    }
}

// A tile of 2x2 outputs.
struct Tile {
    int64_t image, row, column;
};
Tile tile_at(const Shape& shape, int64_t number) {
    const int64_t place = number % shape.of_image();
    return {number / shape.of_image(), place / shape.across() * 2, place % shape.across() * 2};
}

// v [16][kTiles, wide_C], places `step` apart; what lies outside the image is `zeros`.
void transform_input(float* v, int64_t step, const float* x, const float* zeros, const Shape& shape, int64_t first,
                     int64_t count) {
    const int64_t C = shape.C, wide_C = shape.wide_C();
    for (int64_t n = 0; n < count; ++n) {
        const Tile tile = tile_at(shape, first + n);
        const float* pixel[kPlaces];
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < 4; ++j) {
                const int64_t row = tile.row - 1 + i, column = tile.column - 1 + j;
                const bool inside = row >= 0 && row < shape.H && column >= 0 && column < shape.W;
                pixel[4 * i + j] = inside ? x + ((tile.image * shape.H + row) * shape.W + column) * C : zeros;
            }
        for (int64_t c = 0; c < C; c += kLanes) {
            Vec d[kPlaces], places[kPlaces];
#pragma GCC unroll 16
            for (int p = 0; p < kPlaces; ++p) d[p] = load_some(pixel[p] + c, C - c);
            to_places(d, places);
#pragma GCC unroll 16
            for (int p = 0; p < kPlaces; ++p) store(v + p * step + n * wide_C + c, places[p]);
        }
    }
}

struct Output {
    const float *bias, *residual;
    float* y;
    bool relu;
};

// The outputs from `first_k` on, one panel of them, of m [16][kTiles, kPanel], places `step` apart.
void transform_output(const Output& out, const float* m, int64_t step, const Shape& shape, int64_t first, int64_t count,
                      int64_t first_k) {
    for (int64_t n = 0; n < count; ++n) {
        const Tile tile = tile_at(shape, first + n);
        for (int64_t w = 0; w < kPanel && first_k + w < shape.K; w += kLanes) {
            const int64_t k = first_k + w, left = shape.K - k;
            Vec places[kPlaces], y[4];
#pragma GCC unroll 16
            for (int p = 0; p < kPlaces; ++p) places[p] = load(m + p * step + n * kPanel + w);
            from_places(places, y);
            const Vec bias = load_some(out.bias + k, left);
            for (int i = 0; i < 4; ++i) {
                const int64_t row = tile.row + i / 2, column = tile.column + i % 2;
                if (row >= shape.H || column >= shape.W) continue;
                const int64_t at = ((tile.image * shape.H + row) * shape.W + column) * shape.K + k;
                Vec value = y[i] + bias;
                if (out.residual) value += load_some(out.residual + at, left);
                if (out.relu) value = larger(Vec{}, value);
                store_some(out.y + at, value, left);
            }
        }
    }
}

void run(const float* x, const float* weight, const Output& out, const Shape& shape) {
    const int64_t C = shape.C, wide_C = shape.wide_C(), wide_K = shape.wide_K();
    Buffer transformed(kPlaces * C * wide_K), nothing(wide_C);
    float *const u = transformed.data(), *const zeros = nothing.data();
    const int64_t groups = (shape.K + kLanes - 1) / kLanes;
    parallel_shares(groups, std::max<int64_t>(1, 4096 / C), [&](int64_t first, int64_t last) {
        for (int64_t group = first; group < last; ++group) transform_weights(u, weight, shape, group * kLanes);
    });
    // No powers of two, whose places would share cache sets.
    const int64_t v_step = kTiles * wide_C + kLineFloats, m_step = kTiles * kPanel + kLineFloats;
    parallel_shares((shape.tiles() + kTiles - 1) / kTiles, 1, [&](int64_t first_block, int64_t last_block) {
        Buffer inputs(kPlaces * v_step), outputs(kPlaces * m_step);
        float *const v = inputs.data(), *const m = outputs.data();
        for (int64_t first = first_block * kTiles; first < std::min(last_block * kTiles, shape.tiles());
             first += kTiles) {
            const int64_t count = std::min(kTiles, shape.tiles() - first);
            transform_input(v, v_step, x, zeros, shape, first, count);
            for (int64_t k = 0; k < wide_K; k += kPanel) {
                for (int p = 0; p < kPlaces; ++p) {
                    float* const to = m + p * m_step;
                    const auto finish = [=](int64_t r, int64_t column, Vec sum) {
                        store(to + r * kPanel + column, sum);
                    };
                    product_panel<kWide>({v + p * v_step, wide_C, 1}, count, u + p * C * wide_K + k, wide_K, C, 0,
                                         finish);
                }
                transform_output(out, m, m_step, shape, first, count, k);
            }
        }
    });
}

}  // namespace

void conv3x3(uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t residual, uintptr_t y, int64_t N, int64_t H,
             int64_t W, int64_t C, int64_t K, bool relu) {
    require_at_least("conv3x3", "N", N, 0);
    for (const auto& [name, value] : {std::pair{"H", H}, {"W", W}, {"C", C}, {"K", K}})
        require_at_least("conv3x3", name, value, 1);
    const int64_t points = checked_product("conv3x3", checked_product("conv3x3", N, H), W);
    checked_product("conv3x3", points, std::max(C, K));
    checked_product("conv3x3", checked_product("conv3x3", 9 * kPlaces, C), K);
    run(pointer<const float>(x), pointer<const float>(weight),
        {pointer<const float>(bias), pointer<const float>(residual), pointer<float>(y), relu}, {N, H, W, C, K});
}
