// Kernels with a planted mistake, each beside the same kernel without it. test_planted.py runs both and
// expects the mistake to be found at the line that says so: "here: <name>".
#pragma once
#include <cstdint>
#include <vector>

#include "common/device.cuh"

// The launch's address of host memory; the emulated device is the host.
template <class Value>
Value* address(std::vector<Value>& values) {
    return values.data();
}

// LAUNCH of a kernel template's two forms.
#define LAUNCH_PLANTED(kernel, bug, ...)    \
    if (bug) {                              \
        LAUNCH(kernel<true>, __VA_ARGS__);  \
    } else {                                \
        LAUNCH(kernel<false>, __VA_ARGS__); \
    }

void barrier_missing(bool bug);
void barrier_missing_before_reuse(bool bug);
void barrier_missing_in_warp(bool bug);
void barrier_in_branch(bool bug);
void barrier_in_both_branches(bool bug);
void barrier_after_return(bool bug);
void read_outside_tensor(bool bug);
void write_outside_shared(bool bug);
void index_outside_shared(bool bug);
void write_outside_dynamic_shared(bool bug);
void read_of_unwritten_shared(bool bug);
void read_of_unwritten_dynamic_shared(bool bug);
void index_overflow(bool bug);
void misaligned_vector(bool bug);
void shuffle_mask_without_caller(bool bug);
void shuffle_in_branch(bool bug);
void shuffle_from_absent_lane(bool bug);
void ballot_with_two_masks(bool bug);
void tile_misaligned(bool bug);
void tile_in_branch(bool bug);
void blocks_write_one_place(bool bug);
void last_block_without_fence(bool bug);
void atomic_and_plain(bool bug);
void too_many_threads(bool bug);
void no_blocks(bool bug);
