// Tensor cores: 16 x 16 tiles of bfloat16 or float16 in shared memory, multiplied by a warp and summed in float. Not
// through CUDA's wmma functions: nvcc reads bfloat16 tiles for those through generic addresses, word by word.
//
// All 32 lanes call each function. A tile's rows begin at multiples of 16 bytes, `stride` elements apart; where that is
// an odd number of 16 bytes, the rows lie in different banks.
#pragma once
#include "device.cuh"
#ifndef __CUDACC__
#include "emulate/mma.h"
#endif

namespace {

constexpr int kTile = 16;

// A tile as the instructions take it: eight elements a lane.
template <class Element>
struct Tile {
    unsigned at[4];
};

// The lane's part of a 16 x 16 product: rows row(k), columns column(k) of the tile.
struct TileSums {
    float at[8] = {};
    __device__ __forceinline__ static int row(int k) { return threadIdx.x % kWarp / 4 + k / 2 % 2 * 8; }
    __device__ __forceinline__ static int column(int k) { return threadIdx.x % 4 * 2 + k % 2 + k / 4 * 8; }
};

// Four matrices of 8 x 8; each lane names one of their 32 rows.
template <bool transposed, class Element>
__device__ __forceinline__ Tile<Element> load_matrices(const Element* row) {
    Tile<Element> tile;
    unsigned (&to)[4] = tile.at;
#ifdef __CUDACC__
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    if constexpr (transposed) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address)
                     : "memory");
    }
#else
    emulate::load_matrices(to, row, transposed, {__FILE__, __LINE__});
#endif
    return tile;
}

// A left operand [16 rows, 16 inner].
template <class Element>
__device__ __forceinline__ Tile<Element> load_left(const Element* tile, int stride) {
    const int lane = threadIdx.x % kWarp;
    return load_matrices<false>(tile + lane % 16 * stride + lane / 16 * 8);
}
// A right operand [16 inner, 16 columns].
template <class Element>
__device__ __forceinline__ Tile<Element> load_right(const Element* tile, int stride) {
    const int lane = threadIdx.x % kWarp;
    return load_matrices<true>(tile + lane % 16 * stride + lane / 16 * 8);
}
// A right operand that lies in memory transposed, [16 columns, 16 inner].
template <class Element>
__device__ __forceinline__ Tile<Element> load_right_transposed(const Element* tile, int stride) {
    const int lane = threadIdx.x % kWarp;
    return load_matrices<false>(tile + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8);
}

// sums[16, 8] += left right's half of the columns; four sums a lane.
template <class Element>
__device__ __forceinline__ void multiply_half(float (&sums)[4], const unsigned (&left)[4], unsigned b0, unsigned b1) {
#ifdef __CUDACC__
    if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(b0), "r"(b1));
    } else {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(b0), "r"(b1));
    }
#else
    emulate::multiply_add<Element>(sums, left, b0, b1, {__FILE__, __LINE__});
#endif
}

// sums += left right
template <class Element>
__device__ __forceinline__ void multiply(TileSums& sums, const Tile<Element>& left, const Tile<Element>& right) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float four[4] = {sums.at[4 * half], sums.at[4 * half + 1], sums.at[4 * half + 2], sums.at[4 * half + 3]};
        multiply_half<Element>(four, left.at, right.at[2 * half], right.at[2 * half + 1]);
#pragma unroll
        for (int k = 0; k < 4; ++k) sums.at[4 * half + k] = four[k];
    }
}

}  // namespace
