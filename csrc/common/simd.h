// One vector register of whatever instruction set this file is compiled for, as GCC's vector extension spells it.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

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
constexpr int64_t kLine = 64;  // bytes in a cache line
constexpr int64_t kLineFloats = kLine / 4;

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));

// Any alignment: a memcpy of a register's size compiles to one unaligned move.
inline Vec load(const float* from) {
    Vec v;
    std::memcpy(&v, from, sizeof(v));
    return v;
}
// The first `count` lanes of v, 0 in the others.
inline Vec first_lanes(Vec v, int count) {
    typedef int Lanes __attribute__((vector_size(sizeof(Vec))));
    Lanes lane;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    return lane < count ? v : Vec{};
}
inline void store(float* to, Vec v) { std::memcpy(to, &v, sizeof(v)); }
// The end of a row: `count` floats, or a register where there are more; zeros in the other lanes.
inline Vec load_some(const float* from, int64_t count) {
    if (count >= kLanes) return load(from);
    Vec v{};
    std::memcpy(&v, from, count * sizeof(float));
    return v;
}
inline void store_some(float* to, Vec v, int64_t count) {
    count >= kLanes ? store(to, v) : void(std::memcpy(to, &v, count * sizeof(float)));
}

// Keeps a value in its register: GCC would rather load it again for each use, and loads are what is short.
inline void keep(Vec& v) {
#ifdef __SSE2__
    asm("" : "+v"(v));
#endif
}

// to[0 .. 4) = the sums of all lanes of a, b, c and d.
inline void store_sums(float* to, Vec a, Vec b, Vec c, Vec d) {
#if defined(__AVX512F__)
    // Within each quarter: floats, then pairs, of one beside those of the other. (GCC's intrinsics for this warn.)
    typedef int Places __attribute__((vector_size(64)));
    constexpr Places kLow = {0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29};
    constexpr Places kHigh = {2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31};
    constexpr Places kLowPairs = {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29};
    constexpr Places kHighPairs = {2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31};
    const Vec ab = __builtin_shuffle(a, b, kLow) + __builtin_shuffle(a, b, kHigh);
    const Vec cd = __builtin_shuffle(c, d, kLow) + __builtin_shuffle(c, d, kHigh);
    const Vec z = __builtin_shuffle(ab, cd, kLowPairs) + __builtin_shuffle(ab, cd, kHighPairs);
    __m256 half[2];
    std::memcpy(half, &z, sizeof(z));
    const __m256 y = _mm256_add_ps(half[0], half[1]);
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1)));
#elif defined(__AVX__)
    const __m256 ab = _mm256_hadd_ps((__m256)a, (__m256)b), cd = _mm256_hadd_ps((__m256)c, (__m256)d);
    const __m256 y = _mm256_hadd_ps(ab, cd);
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1)));
#elif defined(__SSE2__)
    __m128 w = (__m128)a, x = (__m128)b, y = (__m128)c, z = (__m128)d;
    _MM_TRANSPOSE4_PS(w, x, y, z);
    _mm_storeu_ps(to, _mm_add_ps(_mm_add_ps(w, x), _mm_add_ps(y, z)));
#else
    const Vec all[4] = {a, b, c, d};
    for (int i = 0; i < 4; ++i) to[i] = (all[i][0] + all[i][1]) + (all[i][2] + all[i][3]);
#endif
}

// The larger and the smaller of each lane; b where either is NaN. One instruction, where a comparison takes two.
inline float larger(float a, float b) { return a > b ? a : b; }
inline float smaller(float a, float b) { return a < b ? a : b; }
inline Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (Vec)_mm_max_ps((__m128)a, (__m128)b);
#else
    return a > b ? a : b;
#endif
}
inline Vec smaller(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (Vec)_mm_min_ps((__m128)a, (__m128)b);
#else
    return a < b ? a : b;
#endif
}

// Interleaves the lanes of two registers: a0 b0 a1 b1 ..., the first half and the second half of that.
template <size_t... I>
inline void interleave(Vec& a, Vec& b, std::index_sequence<I...>) {
    typedef int Places __attribute__((vector_size(kLanes * sizeof(int))));
    constexpr int kHalf = kLanes / 2;
    constexpr Places kFirst = {(I / 2 + I % 2 * kLanes)...}, kSecond = {(kHalf + I / 2 + I % 2 * kLanes)...};
    const Vec first = __builtin_shuffle(a, b, kFirst);
    b = __builtin_shuffle(a, b, kSecond);
    a = first;
}

// rows[i][j] <-> rows[j][i], by log2(kLanes) perfect shuffles of the whole square.
inline void transpose(Vec (&rows)[kLanes]) {
    for (int stage = 1; stage < kLanes; stage *= 2) {
        Vec next[kLanes];
#pragma GCC unroll 8
        for (int i = 0; i < kLanes / 2; ++i) {
            next[2 * i] = rows[i], next[2 * i + 1] = rows[i + kLanes / 2];
            interleave(next[2 * i], next[2 * i + 1], std::make_index_sequence<kLanes>());
        }
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
    }
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

// Whether an output of `rows` rows of D floats at `to` can and should be streamed: whole registers, and more than what
// stays in the caches until it is read.
inline bool worth_streaming(const float* to, int64_t rows, int64_t D) {
    constexpr int64_t kStreamBytes = 16 << 20;
    const bool whole = reinterpret_cast<uintptr_t>(to) % 64 == 0 && D % kLanes == 0;
    return whole && rows * D * static_cast<int64_t>(sizeof(float)) > kStreamBytes;
}

// Asks for every cache line of [from, from + count), into L2: L1 has too few fill buffers.
template <class E>
inline void prefetch(const E* from, int64_t count) {
    for (int64_t i = 0; i < count; i += kLine / static_cast<int64_t>(sizeof(E))) __builtin_prefetch(from + i, 0, 2);
}
