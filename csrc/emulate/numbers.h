// CUDA's number types, vector types, arithmetic and bit functions, and the few calls of its runtime library, for g++.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "emulate.h"

// Vector types, aligned as CUDA aligns them ---------------------------------------------------------------------------

#define EMULATE_VECTORS(name, Element)                                                              \
    struct alignas(2 * sizeof(Element)) name##2 { Element x, y; };                                  \
    struct name##3 { Element x, y, z; };                                                            \
    struct alignas(sizeof(Element) < 8 ? 4 * sizeof(Element) : 16) name##4 { Element x, y, z, w; }; \
    inline name##2 make_##name##2(Element x, Element y) { return {x, y}; }                          \
    inline name##3 make_##name##3(Element x, Element y, Element z) { return {x, y, z}; }            \
    inline name##4 make_##name##4(Element x, Element y, Element z, Element w) { return {x, y, z, w}; }
EMULATE_VECTORS(float, float)
EMULATE_VECTORS(double, double)
EMULATE_VECTORS(int, int)
EMULATE_VECTORS(short, short)
EMULATE_VECTORS(ushort, unsigned short)
EMULATE_VECTORS(char, signed char)
EMULATE_VECTORS(uchar, unsigned char)
EMULATE_VECTORS(longlong, long long)
EMULATE_VECTORS(ulonglong, unsigned long long)
#undef EMULATE_VECTORS
struct alignas(8) uint2 {  // uint3 is emulate.h's
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// Bits
// ------------------------------------------------------------------------------------------------------------------

inline int __float_as_int(float x) { return emulate::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulate::bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulate::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulate::bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulate::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulate::bits<double>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1) << (31 - i);
    return reversed;
}

// Half precision
// ----------------------------------------------------------------------------------------------------------

struct __half {
    uint16_t bits;
    __half() = default;
    explicit __half(float x) : bits(emulate::bits<uint16_t>(static_cast<_Float16>(x))) {}
    operator float() const { return static_cast<float>(emulate::bits<_Float16>(bits)); }
};
struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    explicit __nv_bfloat16(float x) {  // to the nearest, ties to even; NaN stays NaN
        const unsigned wide = __float_as_uint(x);
        const bool nan = (wide & 0x7fffffff) > 0x7f800000;
        bits = nan ? 0x7fff : static_cast<uint16_t>((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
    }
    operator float() const { return __uint_as_float(static_cast<unsigned>(bits) << 16); }
};
struct alignas(4) __half2 {
    __half x, y;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
using half = __half;
using half2 = __half2;
inline __half __float2half(float x) { return __half(x); }
inline __half __float2half_rn(float x) { return __half(x); }
inline float __half2float(__half x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half2 __float22half2_rn(float2 v) { return {__half(v.x), __half(v.y)}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {__nv_bfloat16(v.x), __nv_bfloat16(v.y)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }

// Arithmetic: the host's, where CUDA's is the same or allowed to differ in the last places
// --------------------------------

using std::abs, std::ceil, std::exp, std::floor, std::fma, std::isfinite, std::isinf, std::isnan, std::log, std::max,
    std::min, std::pow, std::sqrt;

inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __frsqrt_rn(float x) { return static_cast<float>(1 / std::sqrt(static_cast<double>(x))); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __saturatef(float x) { return x > 0 ? std::min(x, 1.0f) : 0.0f; }  // NaN becomes 0
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __float2int_rd(float x) { return static_cast<int>(std::floor(x)); }

namespace emulate {
// Atomic additions of integers wrap around.
inline int wrapping_add(int a, int b) { return static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)); }
template <class Value>
Value wrapping_add(Value a, Value b) {
    if constexpr (sizeof(Value) == 2) {
        return Value(static_cast<float>(a) + static_cast<float>(b));
    } else {
        return a + b;
    }
}
}  // namespace emulate

// The runtime library: memory is the host's, and every call is done when it returns
// --------------------------------------

typedef struct CUstream_st* cudaStream_t;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };

inline const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess ? "no error" : "invalid argument";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount:
            *value = 3;  // few enough for small inputs to take several turns of a loop over the grid
            break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = 227 << 10;  // H100's
            break;
    }
    return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t = nullptr) {
    return std::memset(to, byte, bytes), cudaSuccess;
}
