// IEEE half precision as storage: 16 bits. Arithmetic is in float. The processor converts where it can (F16C).
#pragma once
#include <cstdint>
#include <cstring>

#include "bfloat16.h"
#ifdef __F16C__
#include <immintrin.h>
#endif

struct Float16 {
    uint16_t bits;
};

inline float to_float(Float16 x) {
    const uint32_t sign = (x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
    // In float's places the exponent is 112 too small, also where it is 0 (subnormal numbers): a product mends both.
    uint32_t bits = rest << 13;
    float value;
    std::memcpy(&value, &bits, 4);
    value *= 0x1p112f;
    std::memcpy(&bits, &value, 4);
    bits = (rest >= 0x7c00 ? 0x7f800000u | rest << 13 : bits) | sign;  // infinity and NaN keep the largest exponent
    std::memcpy(&value, &bits, 4);
    return value;
}

// To the nearest, ties to even; what is too large becomes infinity; NaN stays NaN.
template <>
inline Float16 from_float<Float16>(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    float small;
    std::memcpy(&small, &size, 4);
    small += 0.5f;  // floats from 0.5 on are as far apart as half's subnormal numbers: the sum rounds
    uint32_t subnormal;
    std::memcpy(&subnormal, &small, 4);
    const uint32_t normal = (size - (112u << 23) + 0xfffu + (size >> 13 & 1)) >> 13;
    uint32_t half = size < 0x38800000u ? subnormal - 0x3f000000u : normal;
    half = size >= 0x47800000u ? 0x7c00u : half;
    half = size > 0x7f800000u ? 0x7e00u : half;
    return {static_cast<uint16_t>(half | sign)};
}

// to[0 .. n) from the other type.
inline void convert(float* to, const BFloat16* from, int64_t n) {
    for (int64_t k = 0; k < n; ++k) to[k] = to_float(from[k]);
}
inline void convert(BFloat16* to, const float* from, int64_t n) {
    for (int64_t k = 0; k < n; ++k) to[k] = from_float<BFloat16>(from[k]);
}
inline void convert(float* to, const Float16* from, int64_t n) {
    int64_t k = 0;
#if defined(__AVX512F__)
    for (; k + 16 <= n; k += 16)
        _mm512_storeu_ps(to + k, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + k))));
#elif defined(__F16C__)
    for (; k + 8 <= n; k += 8)
        _mm256_storeu_ps(to + k, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k))));
#endif
    for (; k < n; ++k) to[k] = to_float(from[k]);
}
inline void convert(Float16* to, const float* from, int64_t n) {
    int64_t k = 0;
#if defined(__AVX512F__)
    for (; k + 16 <= n; k += 16)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k), _mm512_cvtps_ph(_mm512_loadu_ps(from + k), 0));
#elif defined(__F16C__)
    for (; k + 8 <= n; k += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + k), _mm256_cvtps_ph(_mm256_loadu_ps(from + k), 0));
#endif
    for (; k < n; ++k) to[k] = from_float<Float16>(from[k]);
}
