// Kernels that take bag by bag: the forward pass, the check of the ids with the keys that the sorted updates sort, and
// SGD by atomic additions. All wait for memory; embedding_bag.h says what they must move.
#include "embedding_bag.cuh"

namespace {

constexpr int kBags = 4;     // bags a team works on at once, so that as many rows of each thread are on their way
constexpr int kColumns = 4;  // floats of a row that a thread adds atomically

// One bag: its occurrences [start, start + length) of `ids`, and its table's rows.
struct Bag {
    int64_t start, length, first_row, rows;
};

struct Bags {
    const int64_t *row_offsets, *bag_offsets;  // the second null: one-hot
    Integers ids;
    int64_t* errors;
    int64_t count;  // B T, below 2^31
    int T;
    int64_t N, rows;

    // Keeps one bad element of a call; errors[0] is other than 0 from then on.
    __device__ void record(int kind, int64_t bag, int64_t value) const {
        const auto first = reinterpret_cast<unsigned long long*>(errors);
        if (atomicCAS(first, 0ull, static_cast<unsigned long long>(kind)) != 0) return;
        errors[1] = bag;
        errors[2] = value;
    }

    // Empty past the last bag, and for a bag outside 0 .. N, which is recorded. A table outside the weight has no rows.
    __device__ __forceinline__ Bag bag(int64_t number) const {
        if (number >= count) return {};
        int64_t start = number, end = number + 1;
        if (bag_offsets) {
            start = bag_offsets[number], end = bag_offsets[number + 1];
            const bool inside = start >= 0 && start <= end && end <= N;
            if (!inside || (number == 0 && start != 0) || (number == count - 1 && end != N)) {
                record(2, number, end);
                return {};
            }
        }
        const int t = static_cast<int>(number) % T;
        const int64_t first = row_offsets[t], last = row_offsets[t + 1];
        return {start, end - start, first, first >= 0 && last <= rows ? last - first : 0};
    }

    // The row of `weight` that occurrence k of a bag names; -1 for an id outside its table, which is recorded.
    __device__ __forceinline__ int64_t row(const Bag& bag, int64_t number, int64_t k) const {
        const int64_t id = ids[bag.start + k];
        if (id >= 0 && id < bag.rows) return bag.first_row + id;
        record(1, number, id);
        return -1;
    }
};

// A team takes kBags bags, each of its threads `width` columns of them. Moves 4 D (N + B T) + i N bytes (ids of i
// bytes), D N flops.
template <int width>
__global__ void __launch_bounds__(kThreads, kBlocks)
    embedding_bag_fwd_kernel(Bags bags, const float* __restrict__ weight, float* __restrict__ out, int D, int team) {
    const int d = (blockIdx.y * team + threadIdx.x % team) * width;
    const int64_t first = (int64_t{blockIdx.x} * (kThreads / team) + threadIdx.x / team) * kBags;
    if (d >= D) return;
    Bag bag[kBags];
    int64_t longest = 0;
#pragma unroll
    for (int i = 0; i < kBags; ++i) {
        bag[i] = bags.bag(first + i);
        longest = bag[i].length > longest ? bag[i].length : longest;
    }
    Pack<float, width> sum[kBags] = {};
    for (int64_t k = 0; k < longest; ++k) {
        Pack<float, width> x[kBags] = {};
#pragma unroll
        for (int i = 0; i < kBags; ++i) {
            const int64_t row = k < bag[i].length ? bags.row(bag[i], first + i, k) : -1;
            if (row >= 0) x[i] = load<width>(weight + row * D + d);
        }
#pragma unroll
        for (int i = 0; i < kBags; ++i)
#pragma unroll
            for (int w = 0; w < width; ++w) sum[i].at[w] += x[i].at[w];
    }
#pragma unroll
    for (int i = 0; i < kBags; ++i)
        if (first + i < bags.count) store(out + (first + i) * D + d, sum[i]);
}

// Checks every bag and id before an update writes anything. With keys: writes the row of each occurrence, which the
// sorted updates sort, and with bag_of its bag. A team takes one bag; bags that overlap are an error, and what they
// leave isn't used. Moves (i + 4) N bytes (keys of int64: 4 N more; bag_of: 4 N more), no flops.
__global__ void __launch_bounds__(kThreads, kBlocks)
    embedding_bag_keys_kernel(Bags bags, void* keys, bool keys_64, int32_t* bag_of, int team) {
    const int64_t number = int64_t{blockIdx.x} * (kThreads / team) + threadIdx.x / team;
    const Bag bag = bags.bag(number);
    for (int64_t k = threadIdx.x % team; k < bag.length; k += team) {
        const int64_t row = bags.row(bag, number, k), n = bag.start + k;
        if (!keys) continue;
        if (keys_64) {
            store_relaxed(static_cast<int64_t*>(keys) + n, row);
        } else {
            store_relaxed(static_cast<int32_t*>(keys) + n, static_cast<int32_t>(row));
        }
        if (bag_of) store_relaxed(bag_of + n, static_cast<int32_t>(number));
    }
}

// weight[row] -= rate * dout, an atomic addition for each element of each occurrence, in any order. A team takes one
// bag; neighbouring threads add to neighbouring floats. Moves 4 D (2 U + B T) + i N bytes when repeated rows stay in
// the L2 cache, D (N + B T) flops.
__global__ void __launch_bounds__(kThreads, kBlocks)
    embedding_bag_bwd_sgd_kernel(Bags bags, Scalars scalars, float* weight, const float* __restrict__ dout, int D,
                                 int team) {
    if (scalars.skip()) return;
    const int64_t number = int64_t{blockIdx.x} * (kThreads / team) + threadIdx.x / team;
    const int first = blockIdx.y * team * kColumns + threadIdx.x % team;
    const Bag bag = bags.bag(number);
    if (bag.length == 0) return;
    const float rate = -*scalars.lr * scalars.scale();
    float step[kColumns] = {};
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
        if (first + c * team < D) step[c] = rate * dout[number * D + first + c * team];
    for (int64_t k = 0; k < bag.length; ++k) {
        const int64_t row = bags.row(bag, number, k);
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
            if (row >= 0 && first + c * team < D) atomicAdd(weight + row * D + first + c * team, step[c]);
    }
}

Bags checked_bags(const char* op, uintptr_t row_offsets, uintptr_t ids, bool ids_64, uintptr_t bag_offsets,
                  uintptr_t errors, int64_t B, int64_t T, int64_t N, int64_t rows) {
    require_at_least(op, "B", B, 0);
    require_at_least(op, "T", T, 1);
    const int64_t count = checked_product(op, B, T);
    if (count > INT32_MAX)
        throw std::invalid_argument(std::string(op) + ": " + std::to_string(count) + " bags; expected below 2^31");
    return {pointer<int64_t>(row_offsets),
            pointer<int64_t>(bag_offsets),
            {pointer<void>(ids), ids_64},
            pointer<int64_t>(errors),
            count,
            static_cast<int>(T),
            N,
            rows};
}

void launch_keys(const Bags& bags, uintptr_t keys, bool keys_64, uintptr_t bag_of, uintptr_t stream) {
    if (bags.count == 0) return;
    const int team = team_of(bags.N / bags.count, 1);  // about a thread an occurrence
    LAUNCH(embedding_bag_keys_kernel, blocks_for(bags.count, kThreads / team), kThreads, 0, stream, bags,
           pointer<void>(keys), keys_64, pointer<int32_t>(bag_of), team);
}

}  // namespace

void cuda::embedding_bag_fwd(uintptr_t weight, uintptr_t row_offsets, uintptr_t ids, bool ids_64, uintptr_t bag_offsets,
                             uintptr_t out, int64_t B, int64_t T, int64_t D, int64_t N, int64_t rows, uintptr_t errors,
                             uintptr_t stream) {
    const char* op = "embedding_bag_fwd";
    const Bags bags = checked_bags(op, row_offsets, ids, ids_64, bag_offsets, errors, B, T, N, rows);
    const int length = checked_length(op, D);
    if (bags.count == 0) return;
    const auto launch_for = [&](auto width) {
        const int team = team_of(D, width);
        const dim3 grid(blocks_for(bags.count, kThreads / team * kBags), blocks_for(D, team * width));
        LAUNCH(embedding_bag_fwd_kernel<width>, grid, kThreads, 0, stream, bags, pointer<float>(weight),
               pointer<float>(out), length, team);
    };
    with_packs(D, launch_for, weight, out);
}

void cuda::embedding_bag_keys(uintptr_t row_offsets, uintptr_t ids, bool ids_64, uintptr_t bag_offsets, uintptr_t keys,
                              bool keys_64, uintptr_t bag_of, int64_t B, int64_t T, int64_t N, int64_t rows,
                              uintptr_t errors, uintptr_t stream) {
    const Bags bags = checked_bags("embedding_bag_keys", row_offsets, ids, ids_64, bag_offsets, errors, B, T, N, rows);
    launch_keys(bags, keys, keys_64, bag_of, stream);
}

void cuda::embedding_bag_bwd_sgd(uintptr_t weight, uintptr_t row_offsets, uintptr_t ids, bool ids_64,
                                 uintptr_t bag_offsets, uintptr_t dout, uintptr_t lr, uintptr_t grad_scale,
                                 uintptr_t found_inf, int64_t B, int64_t T, int64_t D, int64_t N, int64_t rows,
                                 uintptr_t errors, uintptr_t stream) {
    const char* op = "embedding_bag_bwd_sgd";
    const Bags bags = checked_bags(op, row_offsets, ids, ids_64, bag_offsets, errors, B, T, N, rows);
    const int length = checked_length(op, D);
    if (bags.count == 0) return;
    launch_keys(bags, 0, false, 0, stream);
    const Scalars scalars{pointer<float>(lr), pointer<float>(grad_scale), pointer<float>(found_inf), bags.errors};
    const int team = team_of(D, 1);
    const dim3 grid(blocks_for(bags.count, kThreads / team), blocks_for(D, team * kColumns));
    LAUNCH(embedding_bag_bwd_sgd_kernel, grid, kThreads, 0, stream, bags, scalars, pointer<float>(weight),
           pointer<float>(dout), length, team);
}
