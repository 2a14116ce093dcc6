// Warp functions, votes, reductions and atomics against their definitions, written out as loops.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "common/device.cuh"

namespace {

void expect(bool right, const char* what, int i) {
    if (right) return;
    std::fprintf(stderr, "%s is wrong at %d\n", what, i);
    std::exit(1);
}
#define EXPECT(condition, i) expect(condition, #condition, i)

enum Mode { kUp, kDown, kXor, kIndex, kModes };

// The lane that `lane` reads from, as the PTX manual gives it for shfl.sync.
int source_lane(Mode mode, int lane, int b, int width) {
    const int segment = 32 - width, clamp = mode == kUp ? 0 : 31;
    const int most = (lane & segment) | (clamp & ~segment), least = lane & segment;
    const int j = mode == kUp ? lane - b : mode == kDown ? lane + b : mode == kXor ? lane ^ b : least | (b & ~segment);
    return (mode == kUp ? j >= most : j <= most) ? j : lane;
}

__global__ void shuffle_kernel(int* y, int b, int width) {
    const int lane = static_cast<int>(threadIdx.x % 32), value = 1000 + lane;
    y += (blockIdx.x * blockDim.x + threadIdx.x) * kModes;
    y[kUp] = __shfl_up_sync(kAllLanes, value, b, width);
    y[kDown] = __shfl_down_sync(kAllLanes, value, b, width);
    y[kXor] = __shfl_xor_sync(kAllLanes, value, b, width);
    y[kIndex] = __shfl_sync(kAllLanes, value, b, width);
}

struct Votes {
    unsigned ballot, match, sum;
    int any, all, none, count, any_of_block, all_of_block;
    long long wide;
    float part, largest, of_block;
};

__global__ void vote_kernel(Votes* y) {
    const int i = static_cast<int>(threadIdx.x), lane = i % 32;
    Votes v;
    v.ballot = __ballot_sync(kAllLanes, lane % 3 == 0);
    v.match = __match_any_sync(kAllLanes, lane / 5);
    v.sum = __reduce_add_sync(kAllLanes, static_cast<unsigned>(i));
    v.any = __any_sync(kAllLanes, lane == 7);
    v.all = __all_sync(kAllLanes, lane != 7);
    v.none = __any_sync(kAllLanes, 0);
    v.count = __syncthreads_count(i % 4 == 1);
    v.any_of_block = __syncthreads_or(i == 40);
    v.all_of_block = __syncthreads_and(i != 40);
    v.wide = __shfl_sync(kAllLanes, (1ll << 40) + i, 31);
    v.part = warp_reduce<8>(static_cast<float>(lane), Sum());
    v.largest = warp_reduce(static_cast<float>((lane * 7) % 32), Max());
    v.of_block = block_reduce(static_cast<float>(i), 0.0f, Sum());
    y[i] = v;
}

struct Counters {
    int added, most, least, swapped, stopped;
    unsigned wrapped, any_bits, all_bits;
    float sum;
    unsigned long long wide;
};

__global__ void atomic_kernel(Counters* c) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    atomicAdd(&c->added, i);
    atomicMax(&c->most, i);
    atomicMin(&c->least, -i);
    atomicCAS(&c->swapped, 0, i + 1);  // only the first succeeds
    atomicExch(&c->stopped, 5);
    atomicInc(&c->wrapped, 6);
    atomicOr(&c->any_bits, 1u << (i % 20));
    atomicAnd(&c->all_bits, ~(1u << (i % 20)));
    atomicAdd(&c->sum, 0.5f);
    atomicAdd(&c->wide, 1ull << 33);
}

}  // namespace

void check_warps() {
    for (const int width : {4, 8, 16, 32})
        for (int b = 0; b < 32; ++b) {
            std::vector<int> y(2 * 64 * kModes);
            LAUNCH(shuffle_kernel, 2, 64, 0, 0, y.data(), b, width);
            for (int i = 0; i < 2 * 64; ++i)
                for (int mode = 0; mode < kModes; ++mode)
                    EXPECT(y[i * kModes + mode] == 1000 + source_lane(static_cast<Mode>(mode), i % 32, b, width), i);
        }

    std::vector<Votes> votes(64);
    LAUNCH(vote_kernel, 1, 64, 0, 0, votes.data());
    for (int i = 0; i < 64; ++i) {
        const Votes& v = votes[i];
        const int lane = i % 32, first = i / 32 * 32;
        unsigned thirds = 0, alike = 0, sum = 0;
        for (int other = 0; other < 32; ++other) {
            thirds |= (other % 3 == 0 ? 1u : 0u) << other;
            alike |= (other / 5 == lane / 5 ? 1u : 0u) << other;
            sum += first + other;
        }
        EXPECT(v.ballot == thirds, i);
        EXPECT(v.match == alike, i);
        EXPECT(v.sum == sum, i);
        EXPECT(v.any == 1 && v.all == 0 && v.none == 0, i);
        EXPECT(v.count == 16 && v.any_of_block == 1 && v.all_of_block == 0, i);
        EXPECT(v.wide == (1ll << 40) + first + 31, i);
        EXPECT(v.part == 8 * (lane / 8 * 8) + 28, i);
        EXPECT(v.largest == 31, i);
        EXPECT(v.of_block == 64 * 63 / 2, i);
    }

    std::vector<Counters> counters(1);
    Counters& c = counters[0];
    c.all_bits = ~0u;
    LAUNCH(atomic_kernel, 3, 40, 0, 0, counters.data());
    EXPECT(c.added == 120 * 119 / 2, 0);
    EXPECT(c.most == 119 && c.least == -119, 0);
    EXPECT(c.swapped >= 1 && c.swapped <= 120 && c.stopped == 5, 0);
    EXPECT(c.wrapped == 120 % 7, 0);
    EXPECT(c.any_bits == (1u << 20) - 1 && c.all_bits == ~((1u << 20) - 1), 0);
    EXPECT(c.sum == 60 && c.wide == 120ull << 33, 0);
}
