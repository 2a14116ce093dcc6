// What dot_interaction's CUDA kernels share. A block takes one sample: its rows F = [dense; sparse], R = T + 1 of them,
// come into shared memory, `columns` at a time.
#pragma once
#include <algorithm>

#include "common/check.h"
#include "common/device.cuh"
#include "dot_interaction.h"

// The kernels for bfloat16 (bf16) and float16, dot_interaction_16bit.cu.
namespace cuda {
void dot_interaction_fwd_16bit(uintptr_t dense, uintptr_t sparse, uintptr_t out, int64_t B, int64_t T, int64_t D,
                               bool bf16, uintptr_t stream);
void dot_interaction_bwd_16bit(uintptr_t dense, uintptr_t sparse, uintptr_t dout, uintptr_t ddense, uintptr_t dsparse,
                               int64_t B, int64_t T, int64_t D, bool bf16, uintptr_t stream);
}  // namespace cuda

namespace {

constexpr int kLeastColumns = 32, kMostColumns = 128;
constexpr int kBackwardRows = 64;    // rows of the gradient a block
constexpr size_t kRoomy = 64 << 10;  // bytes of shared memory that leave room for other blocks

struct Shape {
    int T, D;
    int columns;  // of F in shared memory at a time: 32, 64 or 128
    int stride;   // elements from one row to the next there
    int padding;  // elements between each four rows and the next four
    int lanes;    // threads that load one row together: a power of two
    __host__ __device__ int R() const { return T + 1; }
    __host__ __device__ int pairs() const { return R() * T / 2; }
    __device__ __forceinline__ int place(int row) const { return row * stride + row / 4 * padding; }
};

// Columns [d0, d0 + columns) of F, `width` elements a load, with zeros behind D up to a multiple of `unit` and in rows
// from R to `filled`.
template <int width, int unit, class Element>
__device__ __forceinline__ void load_rows(const Element* __restrict__ dense, const Element* __restrict__ sparse,
                                          const Shape& shape, int d0, int filled, Element* rows) {
    const int D = shape.D, here = D - d0 < shape.columns ? D - d0 : shape.columns;
    const int past = (here + unit - 1) / unit * unit, lane = threadIdx.x % shape.lanes;
#pragma unroll 4
    for (int row = threadIdx.x / shape.lanes; row < filled; row += blockDim.x / shape.lanes) {
        const Element* from = (row ? sparse + int64_t{row - 1} * D : dense) + d0;
        Element* to = rows + shape.place(row);
        for (int c = lane * width; c < past; c += shape.lanes * width) {
            if (row < shape.R() && c < here) {
                store(to + c, load<width>(from + c));
            } else if constexpr (width > 1) {
                *reinterpret_cast<uint4*>(to + c) = uint4{};
            } else {
                to[c] = from_float<Element>(0);
            }
        }
    }
}

// Tile t of the lower triangle, row by row: (0,0), (1,0), (1,1), (2,0) ...
__device__ __forceinline__ void tile_of(int t, int& i, int& j) {
    i = static_cast<int>((sqrtf(8.0f * t + 1) - 1) / 2);
    while (i * (i + 1) / 2 > t) --i;
    while ((i + 1) * (i + 2) / 2 <= t) ++i;
    j = t - i * (i + 1) / 2;
}
inline int64_t tiles_of(int64_t tall) { return tall * (tall + 1) / 2; }

template <class Integer>
__host__ __device__ constexpr Integer rounded_up(Integer n, int unit) {
    return (n + unit - 1) / unit * unit;
}

// What the dense row's gradient gets of dout besides the products.
template <class Element>
__device__ __forceinline__ float passed_on(const Element* dout, int row, int d, int D) {
    return row == 0 && d < D ? to_float(dout[d]) : 0.0f;
}

// A shape with as many columns as leave room in shared memory for other blocks; a block takes `bytes(columns)` of it.
//   between, padding  elements of padding after each row and after each four
template <class Bytes>
Shape checked_shape(const char* op, int64_t B, int64_t T, int64_t D, int width, int between, int padding,
                    Bytes&& bytes) {
    require_at_least(op, "B", B, 0);
    require_at_least(op, "T", T, 1);
    require_at_least(op, "D", D, 1);
    int device = 0, limit = 0;
    require_success("cudaGetDevice", cudaGetDevice(&device));
    require_success("cudaDeviceGetAttribute",
                    cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    int columns = kMostColumns;
    while (columns > kLeastColumns && (columns / 2 >= D || bytes(columns) > kRoomy)) columns /= 2;
    if (bytes(columns) > static_cast<size_t>(limit) || D > INT32_MAX / 2)
        throw std::invalid_argument(std::string(op) + ": " + std::to_string(T) + " sparse features of " +
                                    std::to_string(D) + " elements: a sample takes " +
                                    std::to_string(bytes(columns) >> 10) + " KB of shared memory, and a block has " +
                                    std::to_string(limit >> 10) + "; use backend ref");
    int lanes = 1;
    while (lanes < kWarp && lanes * width < std::min<int64_t>(columns, D)) lanes *= 2;
    return {static_cast<int>(T), static_cast<int>(D), columns, columns + between, padding, lanes};
}

// Calls body(width) with the largest pack that all rows allow: of 16 bytes where each begins at a multiple of that,
// else of one element.
template <class Element, class Body, class... Addresses>
void with_packs(int64_t D, Body&& body, Addresses... addresses) {
    if (D % kWidest<Element> == 0 && ((addresses | ...) & 15) == 0) {
        body(Width<kWidest<Element>>());
    } else {
        body(Width<1>());
    }
}

}  // namespace
