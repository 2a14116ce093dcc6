// Work on rows of floats by whole blocks of registers.
#pragma once
#include <cstdint>
#include <vector>

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
