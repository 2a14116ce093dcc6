#include "planted.h"

namespace {

// Half a warp adds up: the mask must name those that call.
template <bool bug>
__global__ void mask_kernel(float* x) {
    if (threadIdx.x >= 16) return;
    float sum = x[threadIdx.x];
    for (int step = 8; step; step /= 2)
        sum += __shfl_xor_sync(bug ? 0xff00u : 0xffffu, sum, step);  // here: shuffle_mask_without_caller
    x[threadIdx.x] = sum;
}

// All lanes are named, but the odd ones are elsewhere.
template <bool bug>
__global__ void branch_kernel(float* x) {
    const bool even = threadIdx.x % 2 == 0;
    if (bug && !even) {
        __syncwarp();
    } else {
        x[threadIdx.x] = __shfl_sync(0xffffffffu, x[threadIdx.x], 0);  // here: shuffle_in_branch
        if (bug) __syncwarp();
    }
}

// The second warp of 40 threads has eight lanes; lane 8 and up don't exist.
template <bool bug>
__global__ void absent_kernel(float* x) {
    const float value = x[threadIdx.x];
    const unsigned mask = threadIdx.x < 32 ? 0xffffffffu : 0xffu;
    const float from_next = __shfl_down_sync(mask, value, 1, bug ? 32 : 8);  // here: shuffle_from_absent_lane
    x[threadIdx.x] = from_next;
}

template <bool bug>
__global__ void two_masks_kernel(unsigned* x) {
    const unsigned mask = bug && threadIdx.x == 3 ? 0xfffffff8u : 0xffffffffu;
    x[threadIdx.x] = __ballot_sync(mask, threadIdx.x % 3 == 0);  // here: ballot_with_two_masks
}

// A sum over blocks: each has to add atomically, or to write to a place of its own.
template <bool bug>
__global__ void one_place_kernel(float* sum) {
    if (threadIdx.x) return;
    if (bug) {
        *sum += 1;  // here: blocks_write_one_place
    } else {
        atomicAdd(sum, 1.0f);
    }
}

// Each block leaves a partial sum, and the last one to finish adds them up in order.
template <bool bug>
__global__ void last_block_kernel(float* partial, unsigned* finished, float* sum) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = 1;
        if (!bug) __threadfence();
        last = atomicAdd(finished, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last || threadIdx.x) return;
    for (unsigned i = 0; i < gridDim.x; ++i) *sum += partial[i];  // here: last_block_without_fence
}

template <bool bug>
__global__ void plain_kernel(int* count, int* seen) {
    atomicAdd(count, 1);
    if (!bug) __syncthreads();
    if (threadIdx.x == 0) *seen = *count;  // here: atomic_and_plain
}

__global__ void empty_kernel() {}

}  // namespace

void shuffle_mask_without_caller(bool bug) {
    std::vector<float> x(32, 1);
    LAUNCH_PLANTED(mask_kernel, bug, 1, 32, 0, 0, address(x));
}
void shuffle_in_branch(bool bug) {
    std::vector<float> x(32, 1);
    LAUNCH_PLANTED(branch_kernel, bug, 1, 32, 0, 0, address(x));
}
void shuffle_from_absent_lane(bool bug) {
    std::vector<float> x(40, 1);
    LAUNCH_PLANTED(absent_kernel, bug, 1, 40, 0, 0, address(x));
}
void ballot_with_two_masks(bool bug) {
    std::vector<unsigned> x(32);
    LAUNCH_PLANTED(two_masks_kernel, bug, 1, 32, 0, 0, address(x));
}
void blocks_write_one_place(bool bug) {
    std::vector<float> sum(1);
    LAUNCH_PLANTED(one_place_kernel, bug, 5, 32, 0, 0, address(sum));
}
void last_block_without_fence(bool bug) {
    std::vector<float> partial(6), sum(1);
    std::vector<unsigned> finished(1);
    LAUNCH_PLANTED(last_block_kernel, bug, 6, 32, 0, 0, address(partial), address(finished), address(sum));
}
void atomic_and_plain(bool bug) {
    std::vector<int> count(1), seen(1);
    LAUNCH_PLANTED(plain_kernel, bug, 1, 64, 0, 0, address(count), address(seen));
}
void too_many_threads(bool bug) { LAUNCH(empty_kernel, 1, bug ? 1025 : 1024, 0, 0); }
void no_blocks(bool bug) { LAUNCH(empty_kernel, bug ? 0 : 1, 32, 0, 0); }
