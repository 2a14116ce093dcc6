#include "planted.h"

namespace {

constexpr int kThreads = 96;

// Turns a block's values round, through shared memory.
template <bool bug>
__global__ void missing_kernel(float* x) {
    __shared__ float tile[kThreads];
    tile[threadIdx.x] = x[threadIdx.x];
    if (!bug) __syncthreads();
    x[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];  // here: barrier_missing
}

// Two rounds through one tile: the second writes while others still read the first.
template <bool bug>
__global__ void reuse_kernel(float* x) {
    __shared__ float tile[kThreads];
    for (int round = 0; round < 2; ++round) {
        tile[threadIdx.x] = x[threadIdx.x];  // here: barrier_missing_before_reuse
        __syncthreads();
        x[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
        if (!bug) __syncthreads();
    }
}

// Lanes of a warp hand values to their neighbours: running in step is nothing to rely on.
template <bool bug>
__global__ void in_warp_kernel(float* x) {
    __shared__ float tile[kThreads];
    tile[threadIdx.x] = x[threadIdx.x];
    if (!bug) __syncwarp();
    x[threadIdx.x] = tile[threadIdx.x ^ 1];  // here: barrier_missing_in_warp
}

template <bool bug>
__global__ void branch_kernel(float* x) {
    __shared__ float first;
    if (threadIdx.x == 0) first = x[0];
    if (bug) {
        if (threadIdx.x < 16) __syncthreads();  // here: barrier_in_branch
    } else {
        __syncthreads();
    }
    if (threadIdx.x < 16) x[threadIdx.x] = first;
}

template <bool bug>
__global__ void both_branches_kernel(float* x) {
    if (bug && threadIdx.x < 16) {
        __syncthreads();  // here: barrier_in_both_branches
    } else {
        __syncthreads();
    }
    x[threadIdx.x] = 1;
}

// Threads beyond the end must stay for the barrier.
template <bool bug>
__global__ void return_kernel(float* x, unsigned count) {
    __shared__ float tile[kThreads];
    if (bug && threadIdx.x >= count) return;
    tile[threadIdx.x] = threadIdx.x < count ? x[threadIdx.x] : 0;
    __syncthreads();  // here: barrier_after_return
    if (threadIdx.x < count) x[threadIdx.x] = tile[count - 1 - threadIdx.x];
}

}  // namespace

void barrier_missing(bool bug) {
    std::vector<float> x(kThreads, 1);
    LAUNCH_PLANTED(missing_kernel, bug, 1, kThreads, 0, 0, address(x));
}
void barrier_missing_before_reuse(bool bug) {
    std::vector<float> x(kThreads, 1);
    LAUNCH_PLANTED(reuse_kernel, bug, 1, kThreads, 0, 0, address(x));
}
void barrier_missing_in_warp(bool bug) {
    std::vector<float> x(kThreads, 1);
    LAUNCH_PLANTED(in_warp_kernel, bug, 1, kThreads, 0, 0, address(x));
}
void barrier_in_branch(bool bug) {
    std::vector<float> x(kThreads, 1);
    LAUNCH_PLANTED(branch_kernel, bug, 1, kThreads, 0, 0, address(x));
}
void barrier_in_both_branches(bool bug) {
    std::vector<float> x(kThreads, 1);
    LAUNCH_PLANTED(both_branches_kernel, bug, 1, kThreads, 0, 0, address(x));
}
void barrier_after_return(bool bug) {
    std::vector<float> x(kThreads, 1);
    LAUNCH_PLANTED(return_kernel, bug, 1, kThreads, 0, 0, address(x), 70u);
}
