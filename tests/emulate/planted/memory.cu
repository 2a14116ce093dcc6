#include "planted.h"

namespace {

constexpr int kThreads = 64;

// One element a thread; the grid is rounded up to whole blocks.
template <bool bug>
__global__ void tensor_kernel(const float* x, float* y, int count) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    const float value = i < count + bug ? x[i] : 0;  // here: read_outside_tensor
    if (i < count) y[i] = value;
}

template <bool bug>
__global__ void shared_kernel(float* y) {
    __shared__ float tile[kThreads];
    float* const place = tile;     // whose length the compiler doesn't know
    place[threadIdx.x + bug] = 1;  // here: write_outside_shared
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}

template <bool bug>
__global__ void index_kernel(float* y) {
    __shared__ float tile[kThreads];
    tile[threadIdx.x + bug] = 1;  // here: index_outside_shared
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}

template <bool bug>
__global__ void dynamic_kernel(float* y) {
    DYNAMIC_SHARED(float, tile);
    tile[threadIdx.x + bug] = 1;  // here: write_outside_dynamic_shared
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}

// Sums a tile of which the last warp wrote nothing.
template <bool bug>
__global__ void unwritten_kernel(float* y) {
    y += blockIdx.x * kThreads;
    __shared__ float tile[kThreads];
    if (!bug || threadIdx.x < 32) tile[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];  // here: read_of_unwritten_shared
}

template <bool bug>
__global__ void unwritten_dynamic_kernel(float* y) {
    DYNAMIC_SHARED(float, tile);
    if (!bug || threadIdx.x < 32) tile[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];  // here: read_of_unwritten_dynamic_shared
}

// A row's place in a table of more than 2^31 elements.
template <bool bug>
__global__ void overflow_kernel(int64_t* places, int row, int length) {
    if (bug) {
        places[threadIdx.x] = row * length;  // here: index_overflow
    } else {
        places[threadIdx.x] = int64_t{row} * length;
    }
}

// Four floats at once, from an address that is a multiple of 4 bytes only.
template <bool bug>
__global__ void vector_kernel(const float* x, float* y) {
    if (bug || aligned(x)) {
        store(y, load<4>(x));
    } else {
        for (int i = 0; i < 4; ++i) y[i] = x[i];
    }
}

}  // namespace

void read_outside_tensor(bool bug) {
    std::vector<float> x(100, 1), y(100);
    LAUNCH_PLANTED(tensor_kernel, bug, 2, kThreads, 0, 0, address(x), address(y), 100);
}
void write_outside_shared(bool bug) {
    std::vector<float> y(kThreads);
    LAUNCH_PLANTED(shared_kernel, bug, 1, kThreads, 0, 0, address(y));
}
void index_outside_shared(bool bug) {
    std::vector<float> y(kThreads);
    LAUNCH_PLANTED(index_kernel, bug, 1, kThreads, 0, 0, address(y));
}
void write_outside_dynamic_shared(bool bug) {
    std::vector<float> y(kThreads);
    LAUNCH_PLANTED(dynamic_kernel, bug, 1, kThreads, kThreads * sizeof(float), 0, address(y));
}
void read_of_unwritten_shared(bool bug) {
    std::vector<float> y(2 * kThreads);
    LAUNCH_PLANTED(unwritten_kernel, bug, 2, kThreads, 0, 0, address(y));
}
void read_of_unwritten_dynamic_shared(bool bug) {
    std::vector<float> y(kThreads);
    LAUNCH_PLANTED(unwritten_dynamic_kernel, bug, 1, kThreads, kThreads * sizeof(float), 0, address(y));
}
void index_overflow(bool bug) {
    std::vector<int64_t> places(kThreads);
    LAUNCH_PLANTED(overflow_kernel, bug, 1, kThreads, 0, 0, address(places), 40'000'000, 128);
}
void misaligned_vector(bool bug) {
    std::vector<float> x(8, 1), y(8);  // a vector's memory is a multiple of 16
    LAUNCH_PLANTED(vector_kernel, bug, 1, 1, 0, 0, address(x) + 1, address(y));
}
