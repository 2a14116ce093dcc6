// What tensor-core instructions do, for common/mma.cuh. Which lane holds what is in PTX's documentation of ldmatrix and
// of mma.m16n8k16. Like shuffles, they need all lanes of a warp and order no memory.
#pragma once
#include "cuda.h"

namespace emulate {

// ldmatrix: lanes 8 m .. 8 m + 7 name the rows of 8 x 8 matrix m.
inline void load_matrices(unsigned (&to)[4], const void* row, bool transposed, Line line) {
    if (reinterpret_cast<uintptr_t>(row) % 16)
        fail("ldmatrix of a row that doesn't begin at a multiple of 16 bytes, at %s:%d", line.file, line.number);
    const int g = lane() / 4, t = lane() % 4;
    for (int m = 0; m < 4; ++m) {
        unsigned two = 0;
        for (int e = 0; e < 2; ++e) {
            const int from = 8 * m + (transposed ? 2 * t + e : g), column = transposed ? g : 2 * t + e;
            const auto address = shuffle("ldmatrix", 0xffffffffu, reinterpret_cast<uintptr_t>(row), from, line);
            two |= unsigned{reinterpret_cast<const uint16_t*>(address)[column]} << 16 * e;
        }
        to[m] = two;
    }
}

// mma.m16n8k16: products and sums in float, one after another.
template <class Element>
void multiply_add(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, Line line) {
    // Two registers of lane `source` as four floats: neighbours in the inner dimension come in pairs.
    const auto held = [&](unsigned first, unsigned second, int source, float* to) {
        const uint64_t four = shuffle("mma", 0xffffffffu, uint64_t{second} << 32 | first, source, line);
        for (int e = 0; e < 4; ++e) to[e] = static_cast<float>(bits<Element>(static_cast<uint16_t>(four >> 16 * e)));
    };
    const int g = lane() / 4, t = lane() % 4;
    float rows[2][16], columns[2][16];
    for (int s = 0; s < 4; ++s)
        for (int half = 0; half < 2; ++half) {
            float row[4], column[4];
            held(a[half], a[half + 2], 4 * g + s, row);
            held(b0, b1, 4 * (2 * t + half) + s, column);
            for (int e = 0; e < 4; ++e) {
                const int k = 2 * s + e % 2 + e / 2 * 8;
                rows[half][k] = row[e];
                columns[half][k] = column[e];
            }
        }
    for (int n = 0; n < 4; ++n)
        for (int k = 0; k < 16; ++k) sums[n] += rows[n / 2][k] * columns[n % 2][k];
}

}  // namespace emulate
