// bfloat16 and float16: warps multiply 16 x 16 tiles on tensor cores, and sum in float. R is filled up to a multiple of
// 16, so that for T = 26 forward does 2.2 times the products that it must and backward 1.5 times.
//
// For T = 26, D = 128 that is 25 and 18 flops a byte (dot_interaction.h has both), where an H100 can do 290: the
// kernels wait for memory. Multiplied as float32, 16-bit tensors would wait for the arithmetic forward.
#include "common/mma.cuh"
#include "dot_interaction.cuh"

namespace {

constexpr int kBetween = 8;    // elements after each row, so that the rows of a tile lie in different banks
constexpr int kMostWarps = 8;  // a block

// Moves 2 ((T + 2) D + P) bytes a sample, 2 P D flops (see dot_interaction.h). A warp takes a tile of the Gram matrix.
// `staged`: the triangle is put together in shared memory and leaves it in one piece.
template <class Element, int width>
__global__ void __launch_bounds__(kMostWarps* kWarp, 2)
    dot_interaction_fwd_16bit_kernel(const Element* __restrict__ dense, const Element* __restrict__ sparse,
                                     Element* __restrict__ out, Shape shape, bool staged) {
    DYNAMIC_SHARED(Element, rows);
    const int D = shape.D, R = shape.R(), stride = shape.stride, filled = rounded_up(R, kTile);
    const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    const int64_t b = blockIdx.x;
    dense += b * D;
    sparse += b * shape.T * D;
    out += b * (D + shape.pairs());
    for (int d = threadIdx.x; d < D; d += blockDim.x) out[d] = dense[d];
    const int tall = filled / kTile, tiles = tall * (tall + 1) / 2;
    Element* const triangle = staged ? rows + filled * stride : out + D;

    for (int t0 = 0; t0 < tiles; t0 += warps) {
        const int t = t0 + warp;
        int i, j;
        tile_of(t < tiles ? t : 0, i, j);
        TileSums sums;
        for (int d0 = 0; d0 < D; d0 += shape.columns) {
            if (t0 == 0 || shape.columns < D) {  // else all of F is there already
                __syncthreads();
                load_rows<width, kTile>(dense, sparse, shape, d0, filled, rows);
                __syncthreads();
            }
            for (int d = 0; d < min(shape.columns, D - d0); d += kTile)
                multiply(sums, load_left(rows + i * kTile * stride + d, stride),
                         load_right_transposed(rows + j * kTile * stride + d, stride));
        }
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            const int row = i * kTile + sums.row(k), column = j * kTile + sums.column(k);
            if (t < tiles && row < R && column < row)
                triangle[row * (row - 1) / 2 + column] = from_float<Element>(sums.at[k]);
        }
    }
    if (!staged) return;
    __syncthreads();
    for (int p = threadIdx.x; p < shape.pairs(); p += blockDim.x) out[D + p] = triangle[p];
}

// Writes a tile of dF, from `row` and column d on. A lane holds pairs of neighbours of the left and of the right half
// of its rows; it swaps one of them with its neighbour, so that a row's 16 elements leave in one piece.
template <int width, class Element>
__device__ __forceinline__ void store_tile(const TileSums& sums, int row, int d, int R, int D, Element* ddense,
                                           Element* dsparse) {
    const int odd = threadIdx.x % 2;
    row += sums.row(0);
    d += threadIdx.x % 4 / 2 * 4 + odd * 8;
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
        Pack<Element, 4> four;
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            const float left = sums.at[2 * lower + k], right = sums.at[4 + 2 * lower + k];
            const float other = __shfl_xor_sync(kAllLanes, odd ? left : right, 1);
            four.at[k] = from_float<Element>(odd ? other : left);
            four.at[2 + k] = from_float<Element>(odd ? right : other);
        }
        const int here = row + 8 * lower;
        if (here >= R) continue;
        Element* to = (here ? dsparse + int64_t{here - 1} * D : ddense) + d;
        if constexpr (width > 1) {
            if (d < D) store(to, four);
        } else {
#pragma unroll
            for (int k = 0; k < 4; ++k)
                if (d + k < D) to[k] = four.at[k];
        }
    }
}

// dF = S F, and dout's first D for the dense row: S is the symmetric matrix with dout's pairs off the diagonal and
// zeros on it. A warp takes a tile of dF. Moves 2 ((2 T + 3) D + P) bytes a sample, 4 P D flops (see
// dot_interaction.h).
template <class Element, int width>
__global__ void __launch_bounds__(kMostWarps* kWarp, 2)
    dot_interaction_bwd_16bit_kernel(const Element* __restrict__ dense, const Element* __restrict__ sparse,
                                     const Element* __restrict__ dout, Element* __restrict__ ddense,
                                     Element* __restrict__ dsparse, Shape shape, int own) {
    DYNAMIC_SHARED(Element, rows);
    const int D = shape.D, R = shape.R(), filled = rounded_up(R, kTile), first = blockIdx.y * kBackwardRows;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    const int stride = filled + kBetween;
    Element* const weights = rows + filled * shape.stride;  // [own, stride]: the rows [first, first + own) of S
    const int64_t b = blockIdx.x;
    dense += b * D;
    sparse += b * shape.T * D;
    dout += b * (D + shape.pairs());
    ddense += b * D;
    dsparse += b * shape.T * D;

    for (int k = threadIdx.x; k < own * stride; k += blockDim.x) weights[k] = from_float<Element>(0);
    __syncthreads();
    for (int i = 1 + warp; i < R; i += warps)
        for (int j = lane; j < i; j += kWarp) {
            const Element pair = dout[D + i * (i - 1) / 2 + j];
            const int own_i = i - first, own_j = j - first;
            if (own_i >= 0 && own_i < own) weights[own_i * stride + j] = pair;
            if (own_j >= 0 && own_j < own) weights[own_j * stride + i] = pair;
        }
    for (int d0 = 0; d0 < D; d0 += shape.columns) {
        if (d0 > 0) __syncthreads();
        load_rows<width, kTile>(dense, sparse, shape, d0, filled, rows);
        __syncthreads();
        const int wide = rounded_up(min(shape.columns, D - d0), kTile) / kTile;
        for (int tile = warp; tile < own / kTile * wide; tile += warps) {
            const int i = tile / wide * kTile, d = tile % wide * kTile;
            TileSums sums;
            for (int j = 0; j < filled; j += kTile)
                multiply(sums, load_left(weights + i * stride + j, stride),
                         load_right(rows + j * shape.stride + d, shape.stride));
#pragma unroll
            for (int k = 0; k < 8; ++k)
                sums.at[k] += passed_on(dout, first + i + sums.row(k), d0 + d + sums.column(k), D);
            store_tile<width>(sums, first + i, d0 + d, R, D, ddense, dsparse);
        }
    }
}

int warps_for(int64_t tiles) { return static_cast<int>(std::min<int64_t>(tiles, kMostWarps)); }

// Calls body(element, width) with a value of the tensors' type and the largest pack that their rows allow.
template <class Body, class... Addresses>
void with_types(bool bf16, int64_t D, Body&& body, Addresses... addresses) {
    const auto with_element = [&](auto element) {
        with_packs<decltype(element)>(D, [&](auto width) { body(element, width); }, addresses...);
    };
    bf16 ? with_element(__nv_bfloat16{}) : with_element(__half{});
}

}  // namespace

void cuda::dot_interaction_fwd_16bit(uintptr_t dense, uintptr_t sparse, uintptr_t out, int64_t B, int64_t T, int64_t D,
                                     bool bf16, uintptr_t stream) {
    const auto launch_for = [&](auto element, auto width) {
        using Element = decltype(element);
        const int64_t filled = rounded_up(T + 1, kTile);
        const int warps = warps_for(tiles_of(filled / kTile));
        const auto bytes = [&](int columns) { return filled * (columns + kBetween) * sizeof(Element); };
        const Shape shape = checked_shape("dot_interaction_fwd", B, T, D, width, kBetween, 0, bytes);
        const size_t all = bytes(shape.columns) + shape.pairs() * sizeof(Element);
        if (B == 0) return;
        LAUNCH((dot_interaction_fwd_16bit_kernel<Element, width>), dim3(B), warps * kWarp,
               all <= kRoomy ? all : bytes(shape.columns), stream, pointer<Element>(dense), pointer<Element>(sparse),
               pointer<Element>(out), shape, all <= kRoomy);
    };
    with_types(bf16, D, launch_for, dense, sparse);
}

void cuda::dot_interaction_bwd_16bit(uintptr_t dense, uintptr_t sparse, uintptr_t dout, uintptr_t ddense,
                                     uintptr_t dsparse, int64_t B, int64_t T, int64_t D, bool bf16, uintptr_t stream) {
    const auto launch_for = [&](auto element, auto width) {
        using Element = decltype(element);
        const int64_t filled = rounded_up(T + 1, kTile), own = std::min<int64_t>(filled, kBackwardRows);
        const int64_t wide = rounded_up(std::min<int64_t>(D, kMostColumns), kTile) / kTile;
        const int warps = warps_for(own / kTile * wide);
        const auto bytes = [&](int columns) {
            return (filled * (columns + kBetween) + own * (filled + kBetween)) * sizeof(Element);
        };
        const Shape shape = checked_shape("dot_interaction_bwd", B, T, D, width, kBetween, 0, bytes);
        if (B == 0) return;
        LAUNCH((dot_interaction_bwd_16bit_kernel<Element, width>), dim3(B, blocks_for(T + 1, kBackwardRows)),
               warps * kWarp, bytes(shape.columns), stream, pointer<Element>(dense), pointer<Element>(sparse),
               pointer<Element>(dout), pointer<Element>(ddense), pointer<Element>(dsparse), shape,
               static_cast<int>(own));
    };
    with_types(bf16, D, launch_for, dense, sparse, ddense, dsparse);
}
