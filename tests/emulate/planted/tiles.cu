#include "common/mma.cuh"
#include "planted.h"

namespace {

constexpr int kStride = kTile + 8;
constexpr int kBytes = (kTile * kStride + 8) * 2;

// Squares a matrix. Its rows must begin at multiples of 16 bytes.
template <bool bug>
__global__ void square_kernel(const float* x, float* out) {
    DYNAMIC_SHARED(__half, memory);
    __half* const tile = memory + bug;
    for (int k = threadIdx.x; k < kTile * kTile; k += kWarp) tile[k / kTile * kStride + k % kTile] = __half(x[k]);
    __syncwarp();
    TileSums sums;
    multiply(sums, load_left(tile, kStride), load_right(tile, kStride));
    for (int k = 0; k < 8; ++k) out[sums.row(k) * kTile + sums.column(k)] = sums.at[k];
}

// Half a warp can't multiply alone.
template <bool bug>
__global__ void alone_kernel() {
    DYNAMIC_SHARED(__nv_bfloat16, tile);
    for (int k = threadIdx.x; k < kTile * kStride; k += kWarp) tile[k] = __nv_bfloat16(1.0f);
    __syncwarp();
    TileSums sums;
    const auto left = load_left(tile, kStride), right = load_right_transposed(tile, kStride);
    if (!bug || threadIdx.x < 16) multiply(sums, left, right);
}

}  // namespace

void tile_misaligned(bool bug) {
    std::vector<float> x(kTile * kTile), out(kTile * kTile);
    for (int k = 0; k < kTile * kTile; ++k) x[k] = static_cast<float>(k % 7 - 3);
    LAUNCH_PLANTED(square_kernel, bug, 1, kWarp, kBytes, 0, address(x), address(out));
    for (int i = 0; i < kTile; ++i)
        for (int j = 0; j < kTile; ++j) {
            float sum = 0;
            for (int k = 0; k < kTile; ++k) sum += x[i * kTile + k] * x[k * kTile + j];
            if (out[i * kTile + j] != sum) throw std::runtime_error("the square is wrong");
        }
}
void tile_in_branch(bool bug) { LAUNCH_PLANTED(alone_kernel, bug, 1, kWarp, kBytes, 0); }
