// exp in plain C++ that vectorises: within 1.5 smallest steps of float for x <= 88; NaN stays NaN.
#pragma once
#include <cstdint>
#include <cstring>

// Below -87.3, where the result would be subnormal, and above 88 it stays at the value there (1.2e-38; 1.7e38).
inline float fast_exp(float x) {
    x = x < -87.3f ? -87.3f : x;
    x = x > 88.0f ? 88.0f : x;
    // x = n ln 2 + r with |r| <= ln(2) / 2. Adding 1.5 * 2^23 leaves n in the last bits.
    const float shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    // Taylor's series to r^7; what it leaves out is below 1e-8.
    float p = 1.98412698e-4f;
    p = p * r + 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, 4);
    bits = (bits << 23) + (127u << 23);
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}
