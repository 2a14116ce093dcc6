// What the CUDA kernels of embedding_bag share: the bags of a batch, and the scalars of an update.
#pragma once
#include "common/check.h"
#include "common/device.cuh"
#include "embedding_bag.h"

namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 2;  // a multiprocessor: left to itself, ptxas spills a few registers for one block more

// int32 or int64 numbers.
struct Integers {
    const void* at;
    bool wide;
    __device__ __forceinline__ int64_t operator[](int64_t n) const {
        return wide ? static_cast<const int64_t*>(at)[n] : static_cast<const int32_t*>(at)[n];
    }
};

// lr and what rules an update; read on the device, so that a captured step may change them.
struct Scalars {
    const float *lr, *grad_scale, *found_inf;  // the last two may be null
    const int64_t* errors;
    // Set by kernels that have ended, so all threads see the same.
    __device__ __forceinline__ bool skip() const { return *errors != 0 || (found_inf && *found_inf != 0); }
    __device__ __forceinline__ float scale() const { return grad_scale ? *grad_scale : 1.0f; }
};

// Rows are shared out over teams of threads, each a power of two up to a warp: the least that holds a row in one pass
// of `width` columns a thread.
inline int team_of(int64_t D, int width) {
    int team = 1;
    while (team < kWarp && int64_t{team} * width < D) team *= 2;
    return team;
}

// Calls body(width) with the largest pack that all rows allow: of 4 floats where each row begins at a multiple of 16
// bytes, else of 1.
template <class Body, class... Addresses>
void with_packs(int64_t D, Body&& body, Addresses... addresses) {
    if (D % 4 == 0 && ((addresses | ...) & 15) == 0) {
        body(Width<4>());
    } else {
        body(Width<1>());
    }
}

inline int checked_length(const char* op, int64_t D) {
    require_at_least(op, "D", D, 1);
    if (D > 1 << 22)  // the grid's second dimension has 65,535 blocks
        throw std::invalid_argument(std::string(op) + ": rows of " + std::to_string(D) +
                                    " floats; expected up to 2^22");
    return static_cast<int>(D);
}

}  // namespace
