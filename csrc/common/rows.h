// Work on rows of N elements as floats, by whole blocks of registers.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "float16.h"
#include "simd.h"

// Each register of a block has sums of its own: a sum waits for the one before it.
constexpr int kParts = 4, kBlock = kParts * kLanes;
inline int64_t padded(int64_t N) { return (N + kBlock - 1) / kBlock * kBlock; }

inline float sum(const Vec (&parts)[kParts]) {
    const Vec all = (parts[0] + parts[1]) + (parts[2] + parts[3]);
    float total = 0;
    for (int i = 0; i < kLanes; ++i) total += all[i];
    return total;
}

// Memory of a thread, zeros, at the start of a cache line.
class Buffer {
   public:
    explicit Buffer(int64_t count) : memory_(count + kLineFloats) {}
    float* data() {
        const uintptr_t address = reinterpret_cast<uintptr_t>(memory_.data());
        return reinterpret_cast<float*>((address + kLine - 1) / kLine * kLine);
    }

   private:
    std::vector<float> memory_;
};

// What isn't whole blocks of floats goes through padded copies, in which 0 follows the row.
inline const float* read(const float* row, float* buffer, int64_t N) {
    if (N % kBlock == 0) return row;
    std::copy(row, row + N, buffer);
    return buffer;
}
template <class E>
const float* read(const E* row, float* buffer, int64_t N) {
    convert(buffer, row, N);
    return buffer;
}
// Where a row's floats are to be written, and how they get to it.
inline float* begin_write(float* row, float* buffer, int64_t N) { return N % kBlock == 0 ? row : buffer; }
template <class E>
float* begin_write(E*, float* buffer, int64_t) {
    return buffer;
}
inline void end_write(float* row, const float* buffer, int64_t N) {
    if (row != buffer) std::copy(buffer, buffer + N, row);
}
template <class E>
void end_write(E* row, const float* buffer, int64_t N) {
    convert(row, buffer, N);
}

// Rows that the caches can't hold until they are read go past them: measured, layer_norm backward with dropout took
// 14 ms in place of 21.
inline bool streams(const float* to, int64_t B, int64_t N) { return N % kBlock == 0 && worth_streaming(to, B, N); }
template <class E>
bool streams(const E*, int64_t, int64_t) {
    return false;
}
inline void put(float* to, Vec v, bool streamed) { streamed ? stream(to, v) : store(to, v); }

// A [N] vector of an op, padded; absent ones are 0.
struct Padded {
    Padded(const float* from, int64_t N) : buffer(padded(N)), data(buffer.data()) {
        if (from != nullptr) std::copy(from, from + N, buffer.data());
    }
    Buffer buffer;
    const float* const data;

   private:
    Padded(const Padded&) = delete;
};

// Rows summed at once. A function of the shape alone: each block has sums of its own, added up in order afterwards.
inline int64_t block_rows(int64_t B) { return std::max<int64_t>(64, (B + 255) / 256); }

// Of the row s, whose sum is `total`: the mean, and 1 / sqrt(variance + eps). Writes beyond the row's end.
struct Moments {
    float mean, rstd;
};
inline Moments moments(float* s, const Vec (&total)[kParts], int64_t N, float eps) {
    // The mean is rounded, and its error would count as variance: both are corrected by the mean difference.
    const float share = 1.0f / static_cast<float>(N), mean = sum(total) * share;
    std::fill(s + N, s + padded(N), mean);
    Vec difference[kParts] = {}, squares[kParts] = {};
    for (int64_t n = 0; n < N; n += kBlock)
#pragma GCC unroll 4
        for (int i = 0; i < kParts; ++i) {
            const Vec d = load(s + n + i * kLanes) - mean;
            difference[i] += d;
            squares[i] += d * d;
        }
    const float shift = sum(difference) * share, variance = sum(squares) * share - shift * shift;
    return {mean + shift, 1.0f / std::sqrt((variance < 0 ? 0.0f : variance) + eps)};
}
