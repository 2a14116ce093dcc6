#include "embedding_bag.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "common/check.h"
#include "common/parallel.h"
#include "common/simd.h"

namespace {

constexpr int64_t kAhead = 16;       // rows between a prefetch and its use: one memory latency
constexpr int64_t kOftenEnough = 8;  // occurrences a row, on average, that make summing them apart worth it

struct Bags {
    const int64_t* row_offsets;
    const int64_t* bag_offsets;  // null: one id a bag
    int64_t B, T, D;

    int64_t rows(int64_t t) const { return row_offsets[t + 1] - row_offsets[t]; }
    int64_t begin(int64_t bag) const { return bag_offsets ? bag_offsets[bag] : bag; }
    int64_t end(int64_t bag) const { return bag_offsets ? bag_offsets[bag + 1] : bag + 1; }
};

Bags checked_bags(uintptr_t row_offsets, uintptr_t bag_offsets, int64_t B, int64_t T, int64_t D) {
    require_at_least("embedding_bag", "B", B, 0);
    require_at_least("embedding_bag", "T", T, 1);
    require_at_least("embedding_bag", "D", D, 1);
    const Bags bags{pointer<int64_t>(row_offsets), pointer<int64_t>(bag_offsets), B, T, D};
    // A sample and a table-local row share one 64-bit sort key, 32 bits each.
    if (B > UINT32_MAX) throw std::invalid_argument("embedding_bag: B is " + std::to_string(B) + "; expected < 2^32");
    for (int64_t t = 0; t < T; ++t)
        if (bags.rows(t) < 0 || bags.rows(t) > UINT32_MAX)
            throw std::invalid_argument("embedding_bag: row_offsets gives table " + std::to_string(t) + " " +
                                        std::to_string(bags.rows(t)) + " rows; expected 0 .. 2^32 - 1");
    if (bag_offsets && bags.bag_offsets[0] != 0)
        throw std::invalid_argument("embedding_bag: bag_offsets starts with " + std::to_string(bags.bag_offsets[0]) +
                                    "; expected 0");
    return bags;
}

[[noreturn]] void throw_bad_id(int64_t t, int64_t b, int64_t id, int64_t rows) {
    throw std::out_of_range("embedding_bag: table " + std::to_string(t) + ", sample " + std::to_string(b) + ": id " +
                            std::to_string(id) + " is outside [0, " + std::to_string(rows) + ")");
}

// Checks the bags and ids of samples [first, last).
template <class Id>
void check_ids(const Bags& bags, const Id* ids, int64_t first, int64_t last) {
    const int64_t T = bags.T;
    std::vector<Id> highest(T);  // a table longer than Id can count takes any id >= 0
    for (int64_t t = 0; t < T; ++t)
        highest[t] = static_cast<Id>(std::min<int64_t>(bags.rows(t) - 1, std::numeric_limits<Id>::max()));
    for (int64_t b = first; b < last; ++b) {
        Id bad = 0;
        if (!bags.bag_offsets) {
            const Id* id = ids + b * T;
#pragma omp simd reduction(| : bad)
            for (int64_t t = 0; t < T; ++t) bad |= (id[t] < 0) | (id[t] > highest[t]);
        } else {
            for (int64_t t = 0; t < T; ++t) {
                const int64_t begin = bags.begin(b * T + t), end = bags.end(b * T + t);
                if (begin > end)
                    throw std::invalid_argument("embedding_bag: bag_offsets falls from " + std::to_string(begin) +
                                                " to " + std::to_string(end) + " at table " + std::to_string(t) +
                                                ", sample " + std::to_string(b));
                for (int64_t n = begin; n < end; ++n) bad |= (ids[n] < 0) | (ids[n] > highest[t]);
            }
        }
        if (!bad) continue;
        for (int64_t t = 0; t < T; ++t)
            for (int64_t n = bags.begin(b * T + t); n < bags.end(b * T + t); ++n)
                if (ids[n] < 0 || ids[n] > highest[t]) throw_bad_id(t, b, ids[n], bags.rows(t));
    }
}

template <class Id>
void check_all_ids(const Bags& bags, const Id* ids) {
    parallel_shares(bags.B, 256, [&](int64_t first, int64_t last) { check_ids(bags, ids, first, last); });
}

// body(ids as what they are, a constant that is D where D is usual and lets the compiler unroll, else 0)
template <class Body>
void specialised(uintptr_t ids, bool ids_64, int64_t D, Body&& body) {
    const auto with_length = [&](auto* id) {
        switch (D) {
            case 16:
                return body(id, std::integral_constant<int, 16>());
            case 32:
                return body(id, std::integral_constant<int, 32>());
            case 64:
                return body(id, std::integral_constant<int, 64>());
            case 128:
                return body(id, std::integral_constant<int, 128>());
            default:
                return body(id, std::integral_constant<int, 0>());
        }
    };
    ids_64 ? with_length(pointer<const int64_t>(ids)) : with_length(pointer<const int32_t>(ids));
}

// Prefetches the rows of the bag whose turn comes about kAhead rows after bag (b, t), in a walk over samples up to
// `last` and, for each, over tables [first_table, last_table).
struct Lookahead {
    int64_t last, first_table, last_table, bags_ahead;

    Lookahead(const Bags& bags, int64_t last, int64_t first_table, int64_t last_table)
        : last(last), first_table(first_table), last_table(last_table) {
        const int64_t count = bags.B * bags.T, ids_a_bag = std::max<int64_t>(1, count ? bags.begin(count) / count : 1);
        bags_ahead = std::min((kAhead + ids_a_bag - 1) / ids_a_bag, last_table - first_table);
    }

    // row(t, id) is the address to ask for, `columns` floats of it.
    template <class Id, class Row>
    void from(const Bags& bags, const Id* ids, int64_t b, int64_t t, int64_t columns, Row&& row) const {
        if ((t += bags_ahead) >= last_table) t -= last_table - first_table, ++b;
        if (b >= last) return;
        const int64_t end = bags.end(b * bags.T + t);
        for (int64_t n = bags.begin(b * bags.T + t); n < end; ++n) prefetch(row(t, ids[n]), columns);
    }
};

// ---- forward

// to[0 .. kVecs * kLanes) = the sum of these columns over `count` rows of a table
template <int kVecs, class Id>
inline __attribute__((always_inline)) void pool_columns(const float* table, int64_t D, const Id* ids, int64_t count,
                                                        float* to, bool streaming) {
    Vec sum[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) sum[v] = count ? load(table + ids[0] * D + v * kLanes) : Vec{};
    for (int64_t n = 1; n < count; ++n)
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) sum[v] += load(table + ids[n] * D + v * kLanes);
    if (streaming) {
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) stream(to + v * kLanes, sum[v]);
    } else {
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) store(to + v * kLanes, sum[v]);
    }
}

// `bags` by value here and below: the compiler then knows that no store changes it.
template <int kD, class Id>
void pool(const Bags bags, const float* weight, const Id* ids, float* out, bool streaming, int64_t first,
          int64_t last) {
    constexpr int kVecs = kD && kD < 4 * kLanes ? kD / kLanes : 4;
    const int64_t T = bags.T, D = kD ? kD : bags.D;
    const Lookahead ahead(bags, last, 0, T);
    for (int64_t b = first; b < last; ++b)
        for (int64_t t = 0; t < T; ++t) {
            const int64_t begin = bags.begin(b * T + t), count = bags.end(b * T + t) - begin;
            const float* table = weight + bags.row_offsets[t] * D;
            float* to = out + (b * T + t) * D;
            ahead.from(bags, ids, b, t, D, [&](int64_t t, Id id) { return weight + (bags.row_offsets[t] + id) * D; });
            int64_t d = 0;
            for (; d + kVecs * kLanes <= D; d += kVecs * kLanes)
                pool_columns<kVecs>(table + d, D, ids + begin, count, to + d, streaming);
            if (kD) continue;
            for (; d + kLanes <= D; d += kLanes) pool_columns<1>(table + d, D, ids + begin, count, to + d, streaming);
            for (; d < D; ++d) {
                to[d] = 0;
                for (int64_t n = 0; n < count; ++n) to[d] += table[ids[begin + n] * D + d];
            }
        }
    if (streaming) stream_end();
}

// ---- SGD: the columns of [T, D] are shared out, so that each thread reads its part of dout in order and the shares
// are equal whatever the ids are

// Columns [column, column + columns) of tables [first, last).
struct Share {
    int64_t first, last, column, columns;
};

// Where a table's occurrences are added: to its rows, or to sums of their own.
struct Target {
    float* rows;
    int64_t stride;
    float factor;
};

template <int kColumns, class Id>
void add_gradients(const Bags bags, float* weight, const Id* ids, const float* dout, float rate, const Share& share) {
    const int64_t T = bags.T, D = bags.D, columns = kColumns ? kColumns : share.columns;
    std::vector<std::vector<float>> sums(share.last - share.first);
    std::vector<Target> targets(share.last - share.first);
    for (int64_t t = share.first; t < share.last; ++t) {
        int64_t occurrences = bags.B;
        if (bags.bag_offsets) {
            occurrences = 0;
            for (int64_t b = 0; b < bags.B; ++b) occurrences += bags.end(b * T + t) - bags.begin(b * T + t);
        }
        auto& sum = sums[t - share.first];
        targets[t - share.first] = {weight + bags.row_offsets[t] * D + share.column, D, -rate};
        // Summing first rounds once a row at the size of the weight, rather than once an occurrence.
        if (bags.rows(t) * kOftenEnough <= occurrences) {
            sum.resize(bags.rows(t) * columns);
            targets[t - share.first] = {sum.data(), columns, 1};
        }
    }
    const Target* target = targets.data() - share.first;
    const Lookahead ahead(bags, bags.B, share.first, share.last);
    for (int64_t b = 0; b < bags.B; ++b)
        for (int64_t t = share.first; t < share.last; ++t) {
            const int64_t begin = bags.begin(b * T + t), end = bags.end(b * T + t);
            const float* g = dout + (b * T + t) * D + share.column;
            ahead.from(bags, ids, b, t, columns,
                       [&](int64_t t, Id id) { return target[t].rows + id * target[t].stride; });
            for (int64_t n = begin; n < end; ++n) {
                float* to = target[t].rows + ids[n] * target[t].stride;
                const float factor = target[t].factor;
#pragma omp simd
                for (int64_t d = 0; d < columns; ++d) to[d] += factor * g[d];
            }
        }
    for (int64_t t = share.first; t < share.last; ++t) {
        const float* sum = sums[t - share.first].data();
        if (!sum) continue;
        float* row = weight + bags.row_offsets[t] * D + share.column;
        for (int64_t i = 0; i < bags.rows(t); ++i, row += D, sum += columns)
#pragma omp simd
            for (int64_t d = 0; d < columns; ++d) row[d] -= rate * sum[d];
    }
}

// ---- row-wise Adagrad: sorts the occurrences of a table's rows, since a row's update needs its whole gradient

struct Workspace {
    std::vector<uint64_t> keys, other;  // row << 32 | sample
};
thread_local Workspace thread_workspace;

int bit_length(uint64_t x) { return x ? 64 - __builtin_clzll(x) : 0; }

// Stable radix sort by the upper 32 bits, of which the lowest `bits` may be set. Returns the sorted array.
const uint64_t* sort_by_row(Workspace& workspace, int bits) {
    constexpr int kMostDigitBits = 9;  // 512 counters stay in L1 beside the keys
    auto& keys = workspace.keys;
    const int64_t n = static_cast<int64_t>(keys.size());
    if (n < 128) {  // clearing the counters would cost more
        std::sort(keys.begin(), keys.end());
        return keys.data();
    }
    const int passes = (bits + kMostDigitBits - 1) / kMostDigitBits;
    const int width = passes ? (bits + passes - 1) / passes : 0;
    workspace.other.resize(n);
    uint64_t *from = keys.data(), *to = workspace.other.data();
    for (int pass = 0; pass < passes; ++pass, std::swap(from, to)) {
        const int shift = 32 + pass * width;
        const uint64_t mask = (uint64_t{1} << width) - 1;
        int64_t start[(1 << kMostDigitBits) + 1] = {0};
        for (int64_t i = 0; i < n; ++i) ++start[((from[i] >> shift) & mask) + 1];
        for (uint64_t digit = 1; digit <= mask; ++digit) start[digit] += start[digit - 1];
        for (int64_t i = 0; i < n; ++i) to[start[(from[i] >> shift) & mask]++] = from[i];
    }
    return from;
}

// The occurrences in table t of the rows that belong to `part` of `parts`, by row and, within a row, by sample.
template <class Id>
const uint64_t* sorted_occurrences(Workspace& workspace, const Bags& bags, const Id* ids, int64_t t, uint32_t part,
                                   uint32_t parts) {
    workspace.keys.clear();
    for (int64_t b = 0; b < bags.B; ++b)
        for (int64_t n = bags.begin(b * bags.T + t), end = bags.end(b * bags.T + t); n < end; ++n) {
            const uint64_t row = static_cast<uint64_t>(ids[n]);
            // Hashed, because the frequent ids of real data lie side by side.
            if (parts == 1 || (static_cast<uint32_t>(row * 2654435761u) >> 16) % parts == part)
                workspace.keys.push_back(row << 32 | static_cast<uint64_t>(b));
        }
    return sort_by_row(workspace, bit_length(bags.rows(t) ? bags.rows(t) - 1 : 0));
}

template <int kD, class Id>
void adagrad(const Bags bags, float* weight, float* state, const Id* ids, const float* dout, float rate, float eps,
             float scale, int64_t t, uint32_t part, uint32_t parts) {
    const int64_t T = bags.T, D = kD ? kD : bags.D;
    Workspace& workspace = thread_workspace;
    const uint64_t* keys = sorted_occurrences(workspace, bags, ids, t, part, parts);
    const int64_t count = static_cast<int64_t>(workspace.keys.size());
    const auto row_of = [&](int64_t i) { return bags.row_offsets[t] + static_cast<int64_t>(keys[i] >> 32); };
    const auto grad_of = [&](int64_t i) { return dout + (static_cast<int64_t>(keys[i] & UINT32_MAX) * T + t) * D; };
    std::vector<float> gradient(D);
    float* g = gradient.data();
    for (int64_t i = 0; i < count;) {
        const int64_t row = row_of(i);
        std::fill(g, g + D, 0.0f);
        do {
            if (i + kAhead < count) {
                prefetch(grad_of(i + kAhead), D);
                prefetch(weight + row_of(i + kAhead) * D, D);
                prefetch(state + row_of(i + kAhead), 1);
            }
            const float* from = grad_of(i);
#pragma omp simd
            for (int64_t d = 0; d < D; ++d) g[d] += from[d];
        } while (++i < count && row_of(i) == row);
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t d = 0; d < D; ++d) squares += scale * g[d] * (scale * g[d]);
        state[row] += squares / static_cast<float>(D);
        const float step = rate / (std::sqrt(state[row]) + eps) * scale;
        float* w = weight + row * D;
#pragma omp simd
        for (int64_t d = 0; d < D; ++d) w[d] -= step * g[d];
    }
}

float value_or(uintptr_t address, float otherwise) { return address ? *pointer<float>(address) : otherwise; }

}  // namespace

void embedding_bag_fwd(uintptr_t weight, uintptr_t row_offsets, uintptr_t ids, bool ids_64, uintptr_t bag_offsets,
                       uintptr_t out, int64_t B, int64_t T, int64_t D) {
    const Bags bags = checked_bags(row_offsets, bag_offsets, B, T, D);
    const bool streaming = worth_streaming(pointer<float>(out), B * T, D);
    specialised(ids, ids_64, D, [&](auto* id, auto length) {
        parallel_shares(B, 16, [&](int64_t first, int64_t last) {
            check_ids(bags, id, first, last);
            pool<length>(bags, pointer<float>(weight), id, pointer<float>(out), streaming, first, last);
        });
    });
}

void embedding_bag_bwd_sgd(uintptr_t weight, uintptr_t row_offsets, uintptr_t ids, bool ids_64, uintptr_t bag_offsets,
                           uintptr_t dout, uintptr_t lr, uintptr_t grad_scale, uintptr_t found_inf, int64_t B,
                           int64_t T, int64_t D) {
    const Bags bags = checked_bags(row_offsets, bag_offsets, B, T, D);
    specialised(ids, ids_64, D, [&](auto* id, auto length) {
        check_all_ids(bags, id);
        if (value_or(found_inf, 0) != 0) return;
        const float rate = value_or(lr, 0) * value_or(grad_scale, 1);
        float* w = pointer<float>(weight);
        const float* g = pointer<float>(dout);
        // Cut at cache lines of a row, so that no line has two writers.
        const int64_t lines = (D + kLineFloats - 1) / kLineFloats;
        parallel_shares(T * lines, std::max<int64_t>(1, 4096 / (B + 1)), [&](int64_t first, int64_t last) {
            const auto part_of_table = [&](int64_t t, int64_t from, int64_t to) {  // in lines of the whole
                const int64_t column = (from - t * lines) * kLineFloats;
                const int64_t end = std::min(D, (to - t * lines) * kLineFloats);
                if (from < to) add_gradients<0>(bags, w, id, g, rate, Share{t, t + 1, column, end - column});
            };
            const int64_t whole = (first + lines - 1) / lines, whole_end = last / lines;
            if (whole > whole_end) return part_of_table(whole_end, first, last);
            part_of_table(whole - 1, first, whole * lines);
            if (whole < whole_end) add_gradients<length>(bags, w, id, g, rate, Share{whole, whole_end, 0, D});
            part_of_table(whole_end, whole_end * lines, last);
        });
    });
}

void embedding_bag_bwd_rowwise_adagrad(uintptr_t weight, uintptr_t state, uintptr_t row_offsets, uintptr_t ids,
                                       bool ids_64, uintptr_t bag_offsets, uintptr_t dout, uintptr_t lr, double eps,
                                       uintptr_t grad_scale, uintptr_t found_inf, int64_t B, int64_t T, int64_t D) {
    const Bags bags = checked_bags(row_offsets, bag_offsets, B, T, D);
    specialised(ids, ids_64, D, [&](auto* id, auto length) {
        check_all_ids(bags, id);
        if (value_or(found_inf, 0) != 0) return;
        const int64_t threads = omp_get_max_threads();
        // A few tasks for each thread, so that the last ones to finish don't leave the others idle for long.
        const int64_t parts = threads == 1 ? 1 : std::min<int64_t>(64, (4 * threads + T - 1) / T);
        parallel_tasks(T * parts, [&](int64_t task) {
            adagrad<length>(bags, pointer<float>(weight), pointer<float>(state), id, pointer<float>(dout),
                            value_or(lr, 0), static_cast<float>(eps), value_or(grad_scale, 1), task / parts,
                            static_cast<uint32_t>(task % parts), static_cast<uint32_t>(parts));
        });
    });
}
