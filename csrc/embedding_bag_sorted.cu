// The updates that sort: the occurrences of a row lie side by side, in the order of the samples, as a run. Each run is
// summed and its row changed once, in an order that depends on nothing but the ids, so the bits are the same every
// time.
//
// A team takes kWindow entries and sums the runs in them one after another. A run that lies in one window is done; of
// one that crosses windows each leaves a part, and the parts are the entries of the next level, where the same kernel
// joins them. A level is a sixteenth of the one before it, so that a row in every sample of a batch of 55,296 is summed
// in four levels and not one after another.
#include "embedding_bag.cuh"

namespace {

constexpr int kWindow = 32;

// Entry n of a level: its row (`rows` for none, which no run of a real row ever contains) and D floats. On the first
// level an entry is an occurrence, and its floats the gradient of its bag; above it, a part of a run.
struct Level {
    Integers keys;
    int64_t count;
    const int64_t* order;   // first level: which occurrence entry n was before the sort; null above it
    const int32_t* bag_of;  // the bag of an occurrence; null where that is its own number (one-hot)
    const float* values;    // first level: dout; above it, entry n's floats at n D
    int64_t* part_keys;     // entries of the next level, two a window: of the run that began before it (2 w) and of
    float* parts;           // the run that begins in it and goes on (2 w + 1)

    __device__ __forceinline__ const float* value(int64_t n, int D) const {
        const int64_t place = !order ? n : bag_of ? bag_of[order[n]] : order[n];
        return values + place * D;
    }
};

// The columns [d, d + width) of the entries [n, past), added in order.
template <int width>
__device__ __forceinline__ Pack<float, width> sum(const Level& level, int64_t n, int64_t past, int D, int d) {
    Pack<float, width> total = {};
#pragma unroll 4
    for (; n < past; ++n) {
        const auto x = load<width>(level.value(n, D) + d);
#pragma unroll
        for (int w = 0; w < width; ++w) total.at[w] += x.at[w];
    }
    return total;
}

// What the threads of one team have in hand. Teams of one warp may be elsewhere, so only its own lanes are waited for.
struct Team {
    int size, lane;
    unsigned lanes;  // of its warp
    __device__ explicit Team(int size)
        : size(size),
          lane(threadIdx.x % size),
          lanes((size == kWarp ? kAllLanes : (1u << size) - 1) << (threadIdx.x % kWarp - lane)) {}
    __device__ float sum(float value) const {
        for (int step = size / 2; step > 0; step /= 2) value += __shfl_xor_sync(lanes, value, step);
        return value;
    }
    // Bit i of the result: lane i's predicate.
    __device__ unsigned ballot(bool predicate) const {
        return __ballot_sync(lanes, predicate) >> (threadIdx.x % kWarp - lane);
    }
};

struct Table {
    float *weight, *state;  // state null: SGD, else row-wise Adagrad
    int64_t rows;
    float eps;
};

// One step of one row, from the sum of the entries [n, past).
template <int width>
__device__ __forceinline__ void update(const Table& table, const Scalars& scalars, const Level& level, int64_t row,
                                       int64_t n, int64_t past, int D, const Team& team) {
    const int step = team.size * width, first = team.lane * width, passes = (D - first + step - 1) / step;
    const float scale = scalars.scale();
    float rate = *scalars.lr;
    Pack<float, width> g;
    if (table.state) {
        float squares = 0;
        for (int pass = 0; pass < passes; ++pass) {
            g = sum<width>(level, n, past, D, first + pass * step);
#pragma unroll
            for (int w = 0; w < width; ++w) squares += scale * g.at[w] * (scale * g.at[w]);
        }
        const float state = table.state[row] + team.sum(squares) / D;
        __syncwarp(team.lanes);  // all of them have read the old state
        if (team.lane == 0) table.state[row] = state;
        rate /= sqrtf(state) + table.eps;
    }
    // From the last columns back: Adagrad has their sum in registers, for rows of up to 128 floats the only one.
    for (int pass = passes - 1; pass >= 0; --pass) {
        const int d = first + pass * step;
        float* at = table.weight + row * D + d;
        auto weight = load<width>(at);  // before the sum, so that both are on their way at once
        if (!table.state || pass < passes - 1) g = sum<width>(level, n, past, D, d);
#pragma unroll
        for (int w = 0; w < width; ++w) weight.at[w] -= rate * (scale * g.at[w]);
        store(at, weight);
    }
}

// First level: moves 4 D (B T + 2 U) + 12 N bytes (int32 keys; 4 N more for bag_of; 8 U more for Adagrad), and writes
// at most D N / 4 bytes of parts, which the next one reads. D (N + 2 U) flops for SGD, D (N + 4 U) for Adagrad.
template <int width>
__global__ void __launch_bounds__(kThreads, kBlocks)
    embedding_bag_sorted_kernel(Level level, Table table, Scalars scalars, int D, int team_size) {
    const int64_t window = int64_t{blockIdx.x} * (kThreads / team_size) + threadIdx.x / team_size;
    const int64_t begin = window * kWindow;
    if (begin >= level.count || scalars.skip()) return;
    const Team team(team_size);
    const int size = static_cast<int>(level.count - begin < kWindow ? level.count - begin : kWindow);
    unsigned ends = 0;  // bit i: the run of entry i of the window ends with it
    for (int i = 0; i < kWindow; i += team.size) {
        const int64_t n = begin + i + team.lane;
        ends |= team.ballot(n + 1 < level.count && level.keys[n] != level.keys[n + 1]) << i;
    }
    if (begin + size == level.count) ends |= 1u << (size - 1);
    for (int i = 0, past; i < size; i = past) {
        const int64_t row = level.keys[begin + i];
        const bool began = i > 0 || begin == 0 || level.keys[begin - 1] != row;
        const unsigned rest = ends >> i;
        past = rest ? i + __ffs(rest) : size;
        if (level.parts && team.lane == 0) {
            if (i == 0) level.part_keys[2 * window] = began ? table.rows : row;
            if (past == size) level.part_keys[2 * window + 1] = rest ? table.rows : row;
        }
        if (row == table.rows) continue;
        if (began && rest) {
            update<width>(table, scalars, level, row, begin + i, begin + past, D, team);
            continue;
        }
        float* part = level.parts + (2 * window + began) * D;
        for (int d = team.lane * width; d < D; d += team.size * width) {
            store(part + d, sum<width>(level, begin + i, begin + past, D, d));
            // A run that neither began nor ended here would be cut in two by an entry of no row: this one adds nothing.
            if (!began && !rest) store(part + D + d, Pack<float, width>{});
        }
    }
}

int64_t windows_of(int64_t count) { return (count + kWindow - 1) / kWindow; }

}  // namespace

int64_t cuda::embedding_bag_parts(int64_t N) {
    int64_t parts = 0;
    for (int64_t windows = windows_of(N); windows > 1; windows = windows_of(2 * windows)) parts += 2 * windows;
    return parts;
}

void cuda::embedding_bag_bwd_sorted(uintptr_t weight, uintptr_t state, uintptr_t keys, bool keys_64, uintptr_t order,
                                    uintptr_t bag_of, uintptr_t dout, uintptr_t part_keys, uintptr_t parts,
                                    uintptr_t lr, double eps, uintptr_t grad_scale, uintptr_t found_inf, int64_t D,
                                    int64_t N, int64_t rows, uintptr_t errors, uintptr_t stream) {
    const char* op = "embedding_bag_bwd_sorted";
    require_at_least(op, "N", N, 0);
    const int length = checked_length(op, D);
    if (N == 0) return;
    const Table table{pointer<float>(weight), pointer<float>(state), rows, static_cast<float>(eps)};
    const Scalars scalars{pointer<float>(lr), pointer<float>(grad_scale), pointer<float>(found_inf),
                          pointer<int64_t>(errors)};
    Level level{{pointer<void>(keys), keys_64}, N,
                pointer<int64_t>(order),        pointer<int32_t>(bag_of),
                pointer<float>(dout),           pointer<int64_t>(part_keys),
                pointer<float>(parts)};
    const auto launch_levels = [&](auto width) {
        const int team = team_of(D, width);
        for (;;) {
            const int64_t windows = windows_of(level.count);
            if (windows == 1) level.part_keys = nullptr, level.parts = nullptr;
            LAUNCH(embedding_bag_sorted_kernel<width>, blocks_for(windows, kThreads / team), kThreads, 0, stream, level,
                   table, scalars, length, team);
            if (windows == 1) return;
            level.keys = {level.part_keys, true};  // the next level's entries, and behind them room for its parts
            level.values = level.parts;
            level.order = nullptr;
            level.count = 2 * windows;
            level.part_keys += level.count;
            level.parts += level.count * D;
        }
    };
    with_packs(D, launch_levels, weight, dout, parts);
}
