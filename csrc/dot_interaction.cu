// A block takes one sample: its rows F = [dense; sparse], R = T + 1 of them, come into shared memory as floats,
// `columns` at a time, and each thread keeps a register tile of the result. float32 multiplies as float32, never as
// tf32.
//
// Bytes and flops are in dot_interaction.h. For T = 26, D = 128 and float32 that is 5.7 flops a byte forward and 6.2
// backward, where an H100 can do 20: both wait for memory. Tiles do a quarter more products than they must.
#include <algorithm>

#include "common/check.h"
#include "common/device.cuh"
#include "dot_interaction.h"

namespace {

constexpr int kUnit = 4;           // floats that one instruction moves to or from shared memory
constexpr int kLeastColumns = 32;  // one float in each bank
constexpr int kMostColumns = 128;
constexpr int kForwardTile = 4;                               // rows and columns of the Gram matrix a thread
constexpr int kBackwardTile = 8;                              // rows of the gradient a thread, one unit of columns
constexpr int kBackwardRows = 64;                             // rows of the gradient a block
constexpr int kForwardThreads = 512, kBackwardThreads = 256;  // at most
constexpr size_t kRoomy = 64 << 10;                           // bytes of shared memory that leave room for other blocks

struct Shape {
    int T, D;
    int columns;  // of F in shared memory at a time: 32, 64 or 128
    int padding;  // floats between each four rows in shared memory and the next four
    int lanes;    // threads that load one row together: a power of two
    __device__ __forceinline__ int R() const { return T + 1; }
    __device__ __forceinline__ int pairs() const { return R() * T / 2; }
    __device__ __forceinline__ int place(int row) const { return row * columns + row / kForwardTile * padding; }
};

// Columns [d0, d0 + columns) of F as floats, up to a multiple of a unit, zero behind D. `width` elements a load.
template <int width, class Element>
__device__ __forceinline__ void load_rows(const Element* __restrict__ dense, const Element* __restrict__ sparse,
                                          const Shape& shape, int d0, float* rows) {
    const int D = shape.D, here = D - d0 < shape.columns ? D - d0 : shape.columns;
    const int past = (here + kUnit - 1) / kUnit * kUnit, lane = threadIdx.x % shape.lanes;
#pragma unroll 4
    for (int row = threadIdx.x / shape.lanes; row <= shape.T; row += blockDim.x / shape.lanes) {
        const Element* from = (row ? sparse + int64_t{row - 1} * D : dense) + d0;
        float* to = rows + shape.place(row);
        for (int c = lane * width; c < past; c += shape.lanes * width) {
            if constexpr (width == 1) {
                to[c] = c < here ? to_float(from[c]) : 0.0f;
            } else {
                const auto x = load<width>(from + c);
#pragma unroll
                for (int k = 0; k < width; k += kUnit)
                    store(to + c + k, Pack<float, kUnit>{to_float(x.at[k]), to_float(x.at[k + 1]),
                                                         to_float(x.at[k + 2]), to_float(x.at[k + 3])});
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

// Moves e ((T + 2) D + P) bytes a sample, 2 P D flops (see dot_interaction.h). `staged`: the triangle is put together
// in shared memory and leaves it in one piece.
template <class Element, int width>
__global__ void __launch_bounds__(kForwardThreads)
    dot_interaction_fwd_kernel(const Element* __restrict__ dense, const Element* __restrict__ sparse,
                               Element* __restrict__ out, Shape shape, bool staged) {
    DYNAMIC_SHARED(float, rows);
    const int D = shape.D, R = shape.R(), columns = shape.columns;
    const int64_t b = blockIdx.x;
    dense += b * D;
    sparse += b * shape.T * D;
    out += b * (D + shape.pairs());
    for (int d = threadIdx.x; d < D; d += blockDim.x) out[d] = dense[d];
    const int tall = (R + kForwardTile - 1) / kForwardTile, tiles = tall * (tall + 1) / 2;
    // Zeros for the rows past the last one, which tiles of four read too; their products aren't stored.
    for (int k = shape.place(R) + threadIdx.x; k < shape.place(4 * tall - 1) + columns; k += blockDim.x) rows[k] = 0;
    Element* const triangle = staged ? reinterpret_cast<Element*>(rows + shape.place(4 * tall)) : out + D;

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
                load_rows<width>(dense, sparse, shape, d0, rows);
                __syncthreads();
            }
            const int units = (min(columns, D - d0) + kUnit - 1) / kUnit;
#pragma unroll 2
            for (int unit = 0; unit < units; ++unit) {
                Pack<float, kUnit> x[kForwardTile], y[kForwardTile];
#pragma unroll
                for (int k = 0; k < kForwardTile; ++k) {
                    x[k] = load<kUnit>(left + k * columns + unit * kUnit);
                    y[k] = load<kUnit>(right + k * columns + unit * kUnit);
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
                if (t < tiles && row < R && column < row)
                    triangle[row * (row - 1) / 2 + column] = from_float<Element>(sums[p][q]);
            }
    }
    if (!staged) return;
    __syncthreads();
    for (int p = threadIdx.x; p < shape.pairs(); p += blockDim.x) out[D + p] = triangle[p];
}

// dF = S F, and dout's first D for the dense row: S is the symmetric matrix with dout's pairs off the diagonal and
// zeros on it. Moves e ((2 T + 3) D + P) bytes a sample, 4 P D flops (see dot_interaction.h).
template <class Element, int width>
__global__ void __launch_bounds__(kBackwardThreads)
    dot_interaction_bwd_kernel(const Element* __restrict__ dense, const Element* __restrict__ sparse,
                               const Element* __restrict__ dout, Element* __restrict__ ddense,
                               Element* __restrict__ dsparse, Shape shape, int tiles) {
    DYNAMIC_SHARED(float, rows);
    const int D = shape.D, R = shape.R(), columns = shape.columns;
    const int first = blockIdx.y * kBackwardRows;      // the rows [first, first + 8 tiles) of dF are this block's
    const int stride = tiles * kBackwardTile + kUnit;  // the last unit is unused: columns in different banks
    float* const weights = rows + R * columns;         // [R, stride]: S transposed, which is S, in this block's columns
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
            const float pair = to_float(dout[D + i * (i - 1) / 2 + j]);
            const int own_i = i - first, own_j = j - first;
            if (own_i >= 0 && own_i < tiles * kBackwardTile) weights[j * stride + own_i] = pair;
            if (own_j >= 0 && own_j < tiles * kBackwardTile) weights[i * stride + own_j] = pair;
        }
    for (int d0 = 0; d0 < D; d0 += columns) {
        if (d0 > 0) __syncthreads();
        load_rows<width>(dense, sparse, shape, d0, rows);
        __syncthreads();
        const int units = (min(columns, D - d0) + kUnit - 1) / kUnit;
        for (int item = threadIdx.x; item < tiles * units; item += blockDim.x) {
            const int tile = item / units, d = item % units * kUnit;
            float sums[kBackwardTile][kUnit] = {};
#pragma unroll
            for (int u = 0; u < kUnit; ++u)
                if (first + tile == 0 && d0 + d + u < D) sums[0][u] = to_float(dout[d0 + d + u]);
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
                Element* to = (row ? dsparse + int64_t{row - 1} * D : ddense) + d0 + d;
                Pack<Element, kUnit> y;
#pragma unroll
                for (int u = 0; u < kUnit; ++u) y.at[u] = from_float<Element>(sums[p][u]);
                if constexpr (width > 1) {
                    store(to, y);
                } else {
#pragma unroll
                    for (int u = 0; u < kUnit; ++u)
                        if (d0 + d + u < D) to[u] = y.at[u];
                }
            }
        }
    }
}

int least_power_of_two(int64_t n) {
    int power = 1;
    while (power < n) power *= 2;
    return power;
}

// As many columns as leave room in shared memory for other blocks; `bytes(columns)` is what a block takes of it.
template <class Bytes>
Shape checked_shape(const char* op, int64_t B, int64_t T, int64_t D, int width, int padding, Bytes&& bytes) {
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
    const int lanes = std::min(kWarp, least_power_of_two((std::min<int64_t>(columns, D) + width - 1) / width));
    return {static_cast<int>(T), static_cast<int>(D), columns, padding, lanes};
}

// The least multiple of a warp that has a thread for each item.
int threads_for(int64_t items, int most) {
    return static_cast<int>(std::min<int64_t>((items + kWarp - 1) / kWarp * kWarp, most));
}

template <class Element, int width>
void forward(const Element* dense, const Element* sparse, Element* out, int64_t B, int64_t T, int64_t D,
             uintptr_t stream) {
    const int64_t R = T + 1, pairs = R * T / 2, tall = (R + kForwardTile - 1) / kForwardTile;
    const auto bytes = [&](int columns) { return tall * (kForwardTile * columns + kUnit) * sizeof(float); };
    const Shape shape = checked_shape("dot_interaction_fwd", B, T, D, width, kUnit, bytes);
    const size_t all = bytes(shape.columns) + pairs * sizeof(Element);
    const bool staged = all <= kRoomy;
    LAUNCH((dot_interaction_fwd_kernel<Element, width>), dim3(B), threads_for(tall * (tall + 1) / 2, kForwardThreads),
           staged ? all : bytes(shape.columns), stream, dense, sparse, out, shape, staged);
}

template <class Element, int width>
void backward(const Element* dense, const Element* sparse, const Element* dout, Element* ddense, Element* dsparse,
              int64_t B, int64_t T, int64_t D, uintptr_t stream) {
    const int64_t R = T + 1, tiles = (std::min<int64_t>(R, kBackwardRows) + kBackwardTile - 1) / kBackwardTile;
    const auto bytes = [&](int columns) { return R * (columns + tiles * kBackwardTile + kUnit) * sizeof(float); };
    const Shape shape = checked_shape("dot_interaction_bwd", B, T, D, width, 0, bytes);
    const dim3 grid(B, blocks_for(R, kBackwardRows));
    const int64_t units = (std::min<int64_t>(D, shape.columns) + kUnit - 1) / kUnit;
    LAUNCH((dot_interaction_bwd_kernel<Element, width>), grid, threads_for(tiles * units, kBackwardThreads),
           bytes(shape.columns), stream, dense, sparse, dout, ddense, dsparse, shape, static_cast<int>(tiles));
}

// Calls body(element, width) with a value of the tensors' type and the largest pack that their rows allow.
template <class Body, class... Addresses>
void with_types(int dtype, int64_t D, Body&& body, Addresses... addresses) {
    const auto with_element = [&](auto element) {
        constexpr int widest = kWidest<decltype(element)>;
        if (D % widest == 0 && ((addresses | ...) & 15) == 0) {
            body(element, Width<widest>());
        } else {
            body(element, Width<1>());
        }
    };
    if (dtype == 0) return with_element(float{});
    if (dtype == 1) return with_element(__nv_bfloat16{});
    if (dtype == 2) return with_element(__half{});
    throw std::invalid_argument("dot_interaction: dtype is " + std::to_string(dtype) + "; expected 0, 1 or 2");
}

}  // namespace

void cuda::dot_interaction_fwd(uintptr_t dense, uintptr_t sparse, uintptr_t out, int64_t B, int64_t T, int64_t D,
                               int dtype, uintptr_t stream) {
    if (B == 0) return;
    const auto launch_for = [&](auto element, auto width) {
        using Element = decltype(element);
        forward<Element, width>(pointer<Element>(dense), pointer<Element>(sparse), pointer<Element>(out), B, T, D,
                                stream);
    };
    with_types(dtype, D, launch_for, dense, sparse);
}

void cuda::dot_interaction_bwd(uintptr_t dense, uintptr_t sparse, uintptr_t dout, uintptr_t ddense, uintptr_t dsparse,
                               int64_t B, int64_t T, int64_t D, int dtype, uintptr_t stream) {
    if (B == 0) return;
    const auto launch_for = [&](auto element, auto width) {
        using Element = decltype(element);
        backward<Element, width>(pointer<Element>(dense), pointer<Element>(sparse), pointer<Element>(dout),
                                 pointer<Element>(ddense), pointer<Element>(dsparse), B, T, D, stream);
    };
    with_types(dtype, D, launch_for, dense, sparse, ddense, dsparse);
}
