// bfloat16 as storage: 16 bits, the upper half of a float. Arithmetic is in float.
#pragma once
#include <cstdint>
#include <cstring>

struct BFloat16 {
    uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// To the nearest, ties to even; NaN stays NaN.
template <class E>
inline E from_float(float x);
template <>
inline float from_float<float>(float x) {
    return x;
}
template <>
inline BFloat16 from_float<BFloat16>(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const bool nan = (bits & 0x7fffffff) > 0x7f800000;
    return {nan ? uint16_t{0x7fc0} : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
