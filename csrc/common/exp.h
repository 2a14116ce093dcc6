// exp in plain C++ that vectorises: within 1 smallest step of float for x <= 88; NaN stays NaN.
#pragma once
#include <cstdint>
#include <cstring>

#include "simd.h"

// A float's bits, and those of a register's.
typedef uint32_t VecBits __attribute__((vector_size(sizeof(Vec))));
inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float of_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline VecBits bits_of(Vec x) { return (VecBits)x; }
inline Vec of_bits(VecBits bits) { return (Vec)bits; }

// F is float or Vec. Below -87.3, where the result would be subnormal, and above 88 it stays at the value there
// (1.2e-38; 1.7e38).
template <class F>
inline F fast_exp(F x) {
    x = larger(F{} - 87.3f, x);
    x = smaller(F{} + 88.0f, x);
    // x = n ln 2 + r with |r| <= ln(2) / 2. Adding 1.5 * 2^23 leaves n in the last bits.
    const F shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    const F r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    // 1 + r + r^2 q(r), q of degree 4 fitted by least squares of the relative error; it leaves 6e-9.
    F p = F{} + 1.37513888e-3f;
    p = p * r + 8.36892147e-3f;
    p = p * r + 4.16695327e-2f;
    p = p * r + 1.66665182e-1f;
    p = p * r + 0.499999881f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * of_bits((bits_of(shifted) << 23) + (127u << 23));
}
