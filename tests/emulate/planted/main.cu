// program NAME bug|correct: runs one planted kernel, and ends with 1 and the message when the emulator finds an error.
#include <cstdio>
#include <cstring>
#include <exception>

#include "planted.h"

#define PLANTED(name) {#name, name}
static const struct {
    const char* name;
    void (*run)(bool bug);
} kPlanted[] = {
    PLANTED(barrier_missing),
    PLANTED(barrier_missing_before_reuse),
    PLANTED(barrier_missing_in_warp),
    PLANTED(barrier_in_branch),
    PLANTED(barrier_in_both_branches),
    PLANTED(barrier_after_return),
    PLANTED(read_outside_tensor),
    PLANTED(write_outside_shared),
    PLANTED(index_outside_shared),
    PLANTED(write_outside_dynamic_shared),
    PLANTED(read_of_unwritten_shared),
    PLANTED(read_of_unwritten_dynamic_shared),
    PLANTED(index_overflow),
    PLANTED(misaligned_vector),
    PLANTED(shuffle_mask_without_caller),
    PLANTED(shuffle_in_branch),
    PLANTED(shuffle_from_absent_lane),
    PLANTED(ballot_with_two_masks),
    PLANTED(tile_misaligned),
    PLANTED(tile_in_branch),
    PLANTED(blocks_write_one_place),
    PLANTED(last_block_without_fence),
    PLANTED(atomic_and_plain),
    PLANTED(too_many_threads),
    PLANTED(no_blocks),
};

int main(int count, char** arguments) {
    if (count != 3) return 2;
    for (const auto& planted : kPlanted) {
        if (std::strcmp(planted.name, arguments[1])) continue;
        try {
            planted.run(std::strcmp(arguments[2], "bug") == 0);
            return 0;
        } catch (const std::exception& error) {
            std::fprintf(stderr, "%s\n", error.what());
            return 1;
        }
    }
    return 2;
}
