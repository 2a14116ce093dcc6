// One vector register of whatever instruction set this file is compiled for, as GCC's vector extension spells it.
#pragma once
#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kLineFloats = 16;  // floats in a cache line of 64 bytes

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));

// Any alignment: a memcpy of a register's size compiles to one unaligned move.
inline Vec load(const float* from) {
    Vec v;
    std::memcpy(&v, from, sizeof(v));
    return v;
}
inline void store(float* to, Vec v) { std::memcpy(to, &v, sizeof(v)); }

// The sum of all lanes, by halves.
inline float sum(Vec v) {
#if defined(__AVX512F__)
    __m256 half[2];
    std::memcpy(half, &v, sizeof(v));
    const __m256 y = _mm256_add_ps(half[0], half[1]);
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
#elif defined(__AVX__)
    __m128 x = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
#elif defined(__SSE2__)
    __m128 x = (__m128)v;
#endif
#ifdef __SSE2__
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
#else
    return (v[0] + v[1]) + (v[2] + v[3]);
#endif
}

// Past the caches, for output that they couldn't hold anyway: saves reading the lines first. `to` must be aligned to
// the register; stream_end() before another thread reads.
inline void stream(float* to, Vec v) {
#if defined(__AVX512F__)
    _mm512_stream_ps(to, (__m512)v);
#elif defined(__AVX__)
    _mm256_stream_ps(to, (__m256)v);
#elif defined(__SSE2__)
    _mm_stream_ps(to, (__m128)v);
#else
    store(to, v);
#endif
}
inline void stream_end() {
#ifdef __SSE2__
    _mm_sfence();
#endif
}

// Asks for every cache line of [from, from + count).
inline void prefetch(const float* from, int64_t count) {
    for (int64_t i = 0; i < count; i += kLineFloats) __builtin_prefetch(from + i);
}
