// float32: each thread keeps a register tile of the result, and multiplies as float32, never as tf32.
//
// Bytes and flops are in dot_interaction.h. For T = 26, D = 128 that is 5.7 flops a byte forward and 6.1 backward,
// where an H100 can do 20: both wait for memory. Tiles do a quarter more products than they must.
#include "dot_interaction.cuh"

namespace {

constexpr int kUnit = 4;          // floats that one instruction moves to or from shared memory
constexpr int kForwardTile = 4;   // rows and columns of the Gram matrix a thread
constexpr int kBackwardTile = 8;  // rows of the gradient a thread, one unit of columns
constexpr int kForwardThreads = 512, kBackwardThreads = 256;  // at most

// Moves 4 ((T + 2) D + P) bytes a sample, 2 P D flops (see dot_interaction.h). `staged`: the triangle is put together
// in shared memory and leaves it in one piece.
template <int width>
__global__ void __launch_bounds__(kForwardThreads, 1)
    dot_interaction_fwd_kernel(const float* __restrict__ dense, const float* __restrict__ sparse,
                               float* __restrict__ out, Shape shape, bool staged) {
    DYNAMIC_SHARED(float, rows);
    const int D = shape.D, R = shape.R(), columns = shape.columns;
    const int64_t b = blockIdx.x;
    dense += b * D;
    sparse += b * shape.T * D;
    out += b * (D + shape.pairs());
    for (int d = threadIdx.x; d < D; d += blockDim.x) out[d] = dense[d];
    const int tall = (R + kForwardTile - 1) / kForwardTile, tiles = tall * (tall + 1) / 2;
    float* const triangle = staged ? rows + shape.place(tall * kForwardTile) : out + D;

    for (int t0 = 0; t0 < tiles; t0 += blockDim.x) {
        const int t = t0 + threadIdx.x;
        int i, j;
        tile_of(t < tiles ? t : 0, i, j);
        // Tiles whose numbers differ by less than 8 are read from different banks, thanks to the padding.
        const float *left = rows + shape.place(i * kForwardTile), *right = rows + shape.place(j * kForwardTile);
        float sums[kForwardTile][kForwardTile] = {};
        for (int d0 = 0; d0 < D; d0 += columns) {
            if (t0 == 0 || columns < D) {  // else all of F is there already
                __syncthreads();
                load_rows<width, kUnit>(dense, sparse, shape, d0, tall * kForwardTile, rows);
                __syncthreads();
            }
            const int past = min(columns, D - d0);
#pragma unroll 2
            for (int d = 0; d < past; d += kUnit) {
                Pack<float, kUnit> x[kForwardTile], y[kForwardTile];
#pragma unroll
                for (int k = 0; k < kForwardTile; ++k) {
                    x[k] = load<kUnit>(left + k * columns + d);
                    y[k] = load<kUnit>(right + k * columns + d);
                }
#pragma unroll
                for (int p = 0; p < kForwardTile; ++p)
#pragma unroll
                    for (int q = 0; q < kForwardTile; ++q)
#pragma unroll
                        for (int u = 0; u < kUnit; ++u) sums[p][q] += x[p].at[u] * y[q].at[u];
            }
        }
#pragma unroll
        for (int p = 0; p < kForwardTile; ++p)
#pragma unroll
            for (int q = 0; q < kForwardTile; ++q) {
                const int row = i * kForwardTile + p, column = j * kForwardTile + q;
                if (t < tiles && row < R && column < row) triangle[row * (row - 1) / 2 + column] = sums[p][q];
            }
    }
    if (!staged) return;
    __syncthreads();
    for (int p = threadIdx.x; p < shape.pairs(); p += blockDim.x) out[D + p] = triangle[p];
}

// dF = S F, and dout's first D for the dense row: S is the symmetric matrix with dout's pairs off the diagonal and
// zeros on it. Moves 4 ((2 T + 3) D + P) bytes a sample, 4 P D flops (see dot_interaction.h).
template <int width>
__global__ void __launch_bounds__(kBackwardThreads, 3)
    dot_interaction_bwd_kernel(const float* __restrict__ dense, const float* __restrict__ sparse,
                               const float* __restrict__ dout, float* __restrict__ ddense, float* __restrict__ dsparse,
                               Shape shape, int tiles) {
    DYNAMIC_SHARED(float, rows);
    const int D = shape.D, R = shape.R(), columns = shape.columns;
    const int first = blockIdx.y * kBackwardRows, own = tiles * kBackwardTile;  // rows [first, first + own) of dF
    const int stride = own + kUnit;             // the last unit is unused: it puts columns in different banks
    float* const weights = rows + R * columns;  // [R, stride]: S transposed, which is S, in this block's columns
    const int64_t b = blockIdx.x;
    dense += b * D;
    sparse += b * shape.T * D;
    dout += b * (D + shape.pairs());
    ddense += b * D;
    dsparse += b * shape.T * D;

    for (int k = threadIdx.x; k < R * stride; k += blockDim.x) weights[k] = 0;
    __syncthreads();
    for (int i = 1 + threadIdx.x / kWarp; i < R; i += blockDim.x / kWarp)
        for (int j = threadIdx.x % kWarp; j < i; j += kWarp) {
            const float pair = dout[D + i * (i - 1) / 2 + j];
            const int own_i = i - first, own_j = j - first;
            if (own_i >= 0 && own_i < own) weights[j * stride + own_i] = pair;
            if (own_j >= 0 && own_j < own) weights[i * stride + own_j] = pair;
        }
    for (int d0 = 0; d0 < D; d0 += columns) {
        if (d0 > 0) __syncthreads();
        load_rows<width, kUnit>(dense, sparse, shape, d0, R, rows);
        __syncthreads();
        const int units = (min(columns, D - d0) + kUnit - 1) / kUnit;
        for (int item = threadIdx.x; item < tiles * units; item += blockDim.x) {
            const int tile = item / units, d = item % units * kUnit;
            float sums[kBackwardTile][kUnit] = {};
#pragma unroll
            for (int u = 0; u < kUnit; ++u) sums[0][u] = passed_on(dout, first + tile, d0 + d + u, D);
            for (int j = 0; j < R; ++j) {
                const auto x = load<kUnit>(rows + j * columns + d);
#pragma unroll
                for (int k = 0; k < kBackwardTile; k += kUnit) {
                    const auto s = load<kUnit>(weights + j * stride + tile * kBackwardTile + k);
#pragma unroll
                    for (int p = 0; p < kUnit; ++p)
#pragma unroll
                        for (int u = 0; u < kUnit; ++u) sums[k + p][u] += s.at[p] * x.at[u];
                }
            }
#pragma unroll
            for (int p = 0; p < kBackwardTile; ++p) {
                const int row = first + tile * kBackwardTile + p;
                if (row >= R) continue;
                float* to = (row ? dsparse + int64_t{row - 1} * D : ddense) + d0 + d;
                if constexpr (width == kUnit) {
                    store(to, Pack<float, kUnit>{sums[p][0], sums[p][1], sums[p][2], sums[p][3]});
                } else {
#pragma unroll
                    for (int u = 0; u < kUnit; ++u)
                        if (d0 + d + u < D) to[u] = sums[p][u];
                }
            }
        }
    }
}

// The least multiple of a warp that has a thread for each item.
int threads_for(int64_t items, int most) { return static_cast<int>(std::min<int64_t>(rounded_up(items, kWarp), most)); }

void require_dtype(const char* op, int dtype) {
    if (dtype < 0 || dtype > 2)
        throw std::invalid_argument(std::string(op) + ": dtype is " + std::to_string(dtype) + "; expected 0, 1 or 2");
}

}  // namespace

void cuda::dot_interaction_fwd(uintptr_t dense, uintptr_t sparse, uintptr_t out, int64_t B, int64_t T, int64_t D,
                               int dtype, uintptr_t stream) {
    const char* op = "dot_interaction_fwd";
    require_dtype(op, dtype);
    if (dtype > 0) return dot_interaction_fwd_16bit(dense, sparse, out, B, T, D, dtype == 1, stream);
    const auto launch_for = [&](auto width) {
        const int64_t tall = rounded_up(T + 1, kForwardTile) / kForwardTile;
        const auto bytes = [&](int columns) { return tall * (kForwardTile * columns + kUnit) * sizeof(float); };
        const Shape shape = checked_shape(op, B, T, D, width, 0, kUnit, bytes);
        const size_t all = bytes(shape.columns) + shape.pairs() * sizeof(float);
        if (B == 0) return;
        LAUNCH(dot_interaction_fwd_kernel<width>, dim3(B), threads_for(tiles_of(tall), kForwardThreads),
               all <= kRoomy ? all : bytes(shape.columns), stream, pointer<float>(dense), pointer<float>(sparse),
               pointer<float>(out), shape, all <= kRoomy);
    };
    with_packs<float>(D, launch_for, dense, sparse);
}

void cuda::dot_interaction_bwd(uintptr_t dense, uintptr_t sparse, uintptr_t dout, uintptr_t ddense, uintptr_t dsparse,
                               int64_t B, int64_t T, int64_t D, int dtype, uintptr_t stream) {
    const char* op = "dot_interaction_bwd";
    require_dtype(op, dtype);
    if (dtype > 0) return dot_interaction_bwd_16bit(dense, sparse, dout, ddense, dsparse, B, T, D, dtype == 1, stream);
    const auto launch_for = [&](auto width) {
        const int64_t R = T + 1, own = rounded_up(std::min<int64_t>(R, kBackwardRows), kBackwardTile);
        const auto bytes = [&](int columns) { return R * (columns + own + kUnit) * sizeof(float); };
        const Shape shape = checked_shape(op, B, T, D, width, 0, 0, bytes);
        const int tiles = static_cast<int>(own / kBackwardTile);
        const int64_t units = rounded_up(std::min<int64_t>(D, shape.columns), kUnit) / kUnit;
        if (B == 0) return;
        LAUNCH(dot_interaction_bwd_kernel<width>, dim3(B, blocks_for(R, kBackwardRows)),
               threads_for(tiles * units, kBackwardThreads), bytes(shape.columns), stream, pointer<float>(dense),
               pointer<float>(sparse), pointer<float>(dout), pointer<float>(ddense), pointer<float>(dsparse), shape,
               tiles);
    };
    with_packs<float>(D, launch_for, dense, sparse, ddense, dsparse);
}
