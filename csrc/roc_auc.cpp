#include "roc_auc.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "common/check.h"
#include "common/parallel.h"

// A score becomes a 32-bit key of the same order. Its upper half is a bucket:
// negatives in lower buckets are counted by running sums. Within a bucket only
// the lower halves are needed, so a counting sort by bucket keeps 2 bytes a
// score.

namespace {

constexpr int64_t kHalf = 1 << 16;           // values of half a key, so buckets, and values within a bucket
constexpr int64_t kMostParts = 16;           // each part of the scores has counters of 1 MiB
constexpr int64_t kLeastPart = 1 << 16;      // scores; fewer aren't worth a thread
constexpr int64_t kWorthCounting = 1 << 14;  // scores in a bucket from which clearing 2 * kHalf counters is the
                                             // cheaper

struct Counts {
    int64_t of[2];  // [label]
};

// Ordered as the float is, with -0 equal to 0.
uint32_t ordered_key(float score) {
    const float without_minus_zero = score + 0.0f;
    uint32_t bits;
    std::memcpy(&bits, &without_minus_zero, sizeof(bits));
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

// How many scores of each label fall into each bucket.
void count_buckets(const float* scores, const uint8_t* labels, int64_t first, int64_t last, Counts* counts) {
    for (int64_t i = first; i < last; ++i) {
        if (scores[i] != scores[i])
            throw std::invalid_argument("roc_auc: score " + std::to_string(i) + " is NaN; expected numbers");
        if (labels[i] > 1)
            throw std::invalid_argument("roc_auc: label " + std::to_string(i) + " is " + std::to_string(labels[i]) +
                                        "; expected 0 or 1");
        ++counts[ordered_key(scores[i]) >> 16].of[labels[i]];
    }
}

// Twice the number of pairs in which the positive is above, ties counted once.
int64_t pairs_by_sorting(uint16_t* pos, int64_t positives, uint16_t* neg, int64_t negatives) {
    std::sort(pos, pos + positives);
    std::sort(neg, neg + negatives);
    int64_t twice = 0, below = 0, not_above = 0;
    for (int64_t i = 0; i < positives; ++i) {
        while (below < negatives && neg[below] < pos[i]) ++below;
        not_above = std::max(not_above, below);
        while (not_above < negatives && neg[not_above] == pos[i]) ++not_above;
        twice += below + not_above;
    }
    return twice;
}

int64_t pairs_by_counting(const uint16_t* pos, int64_t positives, const uint16_t* neg, int64_t negatives) {
    std::vector<Counts> counts(kHalf, Counts{{0, 0}});
    for (int64_t i = 0; i < negatives; ++i) ++counts[neg[i]].of[0];
    for (int64_t i = 0; i < positives; ++i) ++counts[pos[i]].of[1];
    int64_t twice = 0, below = 0;
    for (const Counts& count : counts) {
        twice += count.of[1] * (2 * below + count.of[0]);
        below += count.of[0];
    }
    return twice;
}

}  // namespace

double roc_auc(uintptr_t scores, uintptr_t labels, int64_t n) {
    require_at_least("roc_auc", "n", n, 0);
    const float* score = pointer<float>(scores);
    const uint8_t* label = pointer<uint8_t>(labels);
    const int64_t parts = std::clamp<int64_t>(std::min<int64_t>(n / kLeastPart, omp_get_max_threads()), 1, kMostParts);

    std::vector<Counts> counts(parts * kHalf, Counts{{0, 0}});
    parallel_tasks(parts, [&](int64_t part) {
        count_buckets(score, label, n * part / parts, n * (part + 1) / parts, counts.data() + part * kHalf);
    });

    // Where each bucket starts among all of its label; and, in `counts`, where
    // each part of the scores writes its own.
    std::vector<Counts> starts(kHalf + 1);
    Counts total{{0, 0}};
    for (int64_t bucket = 0; bucket < kHalf; ++bucket) {
        starts[bucket] = total;
        for (int64_t part = 0; part < parts; ++part)
            for (int side : {0, 1}) {
                int64_t& count = counts[part * kHalf + bucket].of[side];
                const int64_t start = total.of[side];
                total.of[side] += count;
                count = start;
            }
    }
    starts[kHalf] = total;
    const int64_t positives = total.of[1], negatives = total.of[0];
    int64_t twice_all;
    if (positives == 0 || negatives == 0)
        throw std::invalid_argument("roc_auc: " + std::to_string(positives) + " positives and " +
                                    std::to_string(negatives) + " negatives; expected at least one of each");
    if (__builtin_mul_overflow(2 * positives, negatives, &twice_all))
        throw std::invalid_argument("roc_auc: " + std::to_string(positives) + " positives and " +
                                    std::to_string(negatives) + " negatives make more pairs than 64 bits can count");

    const std::unique_ptr<uint16_t[]> lower[2] = {std::unique_ptr<uint16_t[]>(new uint16_t[negatives]),
                                                  std::unique_ptr<uint16_t[]>(new uint16_t[positives])};
    parallel_tasks(parts, [&](int64_t part) {
        Counts* next = counts.data() + part * kHalf;
        for (int64_t i = n * part / parts; i < n * (part + 1) / parts; ++i) {
            const uint32_t key = ordered_key(score[i]);
            lower[label[i]][next[key >> 16].of[label[i]]++] = static_cast<uint16_t>(key);
        }
    });

    int64_t twice_between = 0;
    std::vector<int64_t> mixed;  // buckets that hold both labels
    for (int64_t bucket = 0; bucket < kHalf; ++bucket) {
        const Counts &from = starts[bucket], &to = starts[bucket + 1];
        twice_between += 2 * from.of[0] * (to.of[1] - from.of[1]);
        if (to.of[0] > from.of[0] && to.of[1] > from.of[1]) mixed.push_back(bucket);
    }
    std::atomic<int64_t> twice_within{0};
    parallel_tasks(static_cast<int64_t>(mixed.size()), [&](int64_t i) {
        const Counts &from = starts[mixed[i]], &to = starts[mixed[i] + 1];
        uint16_t *neg = lower[0].get() + from.of[0], *pos = lower[1].get() + from.of[1];
        const int64_t p = to.of[1] - from.of[1], q = to.of[0] - from.of[0];
        twice_within += p + q < kWorthCounting ? pairs_by_sorting(pos, p, neg, q) : pairs_by_counting(pos, p, neg, q);
    });
    // long double holds any 64-bit integer.
    return static_cast<double>(static_cast<long double>(twice_between + twice_within) /
                               static_cast<long double>(twice_all));
}
