#include "softmax_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "common/as_stored.h"
#include "common/check.h"
#include "common/exp.h"
#include "common/parallel.h"
#include "common/rows.h"
#include "common/simd.h"

namespace {

constexpr int64_t kGrain = 8 << 10;  // elements that make another thread worth waking
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A row is read in chunks that stay in L1 while their largest element is found and the rest follows: a chunk's
// exponentials are taken relative to its own largest, and scaled once the whole row's is known. So each logit is read
// from memory once, and has one exponential.
constexpr int64_t kChunk = 1024;

// `count` logits as floats, whole blocks of them: -inf follows.
inline const float* as_floats(const float* from, float* buffer, int64_t count) {
    if (count % kBlock == 0) return from;
    std::copy(from, from + count, buffer);
    std::fill(buffer + count, buffer + padded(count), -kInfinity);
    return buffer;
}
template <class E>
const float* as_floats(const E* from, float* buffer, int64_t count) {
    convert(buffer, from, count);
    std::fill(buffer + count, buffer + padded(count), -kInfinity);
    return buffer;
}

float largest(const float* x, int64_t count) {
    Vec parts[kParts];
    for (Vec& part : parts) part = Vec{} - kInfinity;
    for (int64_t k = 0; k < count; k += kBlock)
#pragma GCC unroll 4
        for (int i = 0; i < kParts; ++i) parts[i] = larger(load(x + k + i * kLanes), parts[i]);
    const Vec all = larger(larger(parts[0], parts[1]), larger(parts[2], parts[3]));
    float found = all[0];
    for (int i = 1; i < kLanes; ++i) found = all[i] > found ? all[i] : found;
    return found;
}

// Stores exp(x - base) for the gradient, and returns their sum in a register's parts, while the logits at `next` are on
// their way: a tenth to a quarter of the time. `e` may be `x`.
template <bool kStore, class E>
Vec exponentials(const float* x, float base, float* e, int64_t count, const E* next) {
    Vec parts[kParts] = {};
    for (int64_t k = 0; k < count; k += kBlock) {
        prefetch(next + k, kBlock);
#pragma GCC unroll 4
        for (int i = 0; i < kParts; ++i) {
            const Vec v = fast_exp(load(x + k + i * kLanes) - base);
            if (kStore) store(e + k + i * kLanes, v);
            parts[i] += v;
        }
    }
    return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

float plain_sum(const float* x, int64_t count) {
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t k = 0; k < count; ++k) total += x[k];
    return total;
}

// to[k] = e[k] * factor - offset
inline void write(float* to, float* e, float factor, float offset, int64_t count) {
    int64_t k = 0;
    for (; k + kLanes <= count; k += kLanes) store(to + k, load(e + k) * factor - offset);
    if (k < count) store_some(to + k, load(e + k) * factor - offset, count - k);
}
template <class E>
void write(E* to, float* e, float factor, float offset, int64_t count) {
    write(e, e, factor, offset, count);
    convert(to, e, count);
}

// One thread's work on rows of V logits.
template <bool kGradient, class E>
class Rows {
   public:
    Rows(int64_t V, float scale, float label_smoothing)
        : V_(V),
          scale_(scale),
          smoothing_(label_smoothing),
          e_(padded(kGradient && !std::is_same_v<E, float> ? V : kChunk)),
          largest_((V + kChunk - 1) / kChunk),
          sums_(largest_.size() * kLanes) {}

    float row(E* x, int64_t label, bool* correct) {
        const float own = to_float(x[label]);
        float most = -kInfinity, plain = 0;
        *correct = false;
        for (int64_t at = 0; at < V_; at += kChunk) {
            const int64_t c = at / kChunk, count = std::min(kChunk, V_ - at);
            float* e = exponentials_of(x, at);
            const float* logits = as_floats(x + at, e, count);
            const float top = largest_[c] = largest(logits, padded(count));
            if (smoothing_ != 0) plain += plain_sum(logits, count);
            if (top > most) {
                most = top;
                *correct = own == top && is_first(logits, label - at, count);
            }
            // A chunk of -inf alone counts as nothing; a row of it becomes NaN below, as a largest +inf does here.
            const Vec parts =
                exponentials<kGradient>(logits, top == -kInfinity ? 0 : top, e, padded(count), x + at + 2 * kChunk);
            store(sums_.data() + c * kLanes, parts);
        }
        Vec parts{};
        for (size_t c = 0; c < largest_.size(); ++c)
            parts += load(sums_.data() + c * kLanes) * fast_exp(largest_[c] - most);
        float total = 0;
        for (int i = 0; i < kLanes; ++i) total += parts[i];
        float loss = std::log(total) - (own - most);
        if (smoothing_ != 0) loss += smoothing_ * (own - plain / static_cast<float>(V_));
        *correct = *correct && loss == loss;
        if (kGradient) write_gradient(x, label, most, scale_ / total);
        return scale_ * loss;
    }

   private:
    // Where those of a chunk are kept: over the logits, which are not read again, where they are whole blocks of
    // floats.
    float* exponentials_of(float* x, int64_t at) {
        return kGradient && std::min(kChunk, V_ - at) % kBlock == 0 ? x + at : e_.data();
    }
    template <class Other>
    float* exponentials_of(Other*, int64_t at) {
        return e_.data() + (kGradient ? at : 0);
    }

    // Whether the label stands in this chunk, and nothing as large before it.
    static bool is_first(const float* x, int64_t label, int64_t count) {
        if (label < 0 || label >= count) return false;
        return std::find(x, x + label, x[label]) == x + label;
    }

    void write_gradient(E* x, int64_t label, float most, float inverse) {
        const float everywhere = scale_ * smoothing_ / static_cast<float>(V_);
        const int64_t start = label / kChunk * kChunk;
        const float p_label = exponentials_of(x, start)[label - start] * fast_exp(largest_[label / kChunk] - most);
        for (int64_t at = 0; at < V_; at += kChunk) {
            const float factor = inverse * fast_exp(largest_[at / kChunk] - most);
            write(x + at, exponentials_of(x, at), factor, everywhere, std::min(kChunk, V_ - at));
        }
        x[label] = from_float<E>(p_label * inverse - everywhere - scale_ * (1 - smoothing_));
    }

    const int64_t V_;
    const float scale_, smoothing_;
    Buffer e_;                    // of a row; of a chunk where that is enough
    std::vector<float> largest_;  // of each chunk
    Buffer sums_;                 // a register for each chunk
};

template <class Label>
void check_labels(const Label* labels, int64_t N, int64_t V, int64_t ignore_index) {
    for (int64_t i = 0; i < N; ++i)
        if ((labels[i] < 0 || labels[i] >= V) && labels[i] != ignore_index)
            throw std::out_of_range("softmax_cross_entropy: row " + std::to_string(i) + ": label " +
                                    std::to_string(labels[i]) + " is outside [0, " + std::to_string(V) +
                                    ") and isn't ignore_index, " + std::to_string(ignore_index));
}

template <bool kGradient, class E, class Label>
void fwd(E* logits, const Label* labels, float scale, float* losses, bool* correct, int64_t N, int64_t V,
         int64_t ignore_index, float label_smoothing) {
    check_labels(labels, N, V, ignore_index);
    parallel_shares(N, std::max<int64_t>(1, kGrain / V), [&](int64_t first, int64_t last) {
        Rows<kGradient, E> rows(V, scale, label_smoothing);
        for (int64_t i = first; i < last; ++i) {
            E* x = logits + i * V;
            losses[i] = 0, correct[i] = false;
            if (labels[i] != ignore_index)
                losses[i] = rows.row(x, labels[i], correct + i);
            else if (kGradient)
                std::fill(x, x + V, E{});
        }
    });
}

template <class E>
void scale_row(E* x, float factor, int64_t V) {
    for (int64_t k = 0; k < V; ++k) x[k] = from_float<E>(to_float(x[k]) * factor);
}

void check(int64_t N, int64_t V) {
    require_at_least("softmax_cross_entropy", "N", N, 0);
    require_at_least("softmax_cross_entropy", "V", V, 1);
    checked_product("softmax_cross_entropy", N, V);
}

}  // namespace

void softmax_cross_entropy_fwd(uintptr_t logits, uintptr_t labels, bool labels_64, uintptr_t scale, uintptr_t losses,
                               uintptr_t correct, int64_t N, int64_t V, int64_t ignore_index, float label_smoothing,
                               bool write_gradient, int stored_as) {
    check(N, V);
    const float factor = scale ? *pointer<float>(scale) : 1.0f;
    as_stored(stored_as, [&](auto kind) {
        using E = decltype(kind);
        const auto run = [&](auto* label) {
            using Label = std::remove_pointer_t<decltype(label)>;
            const auto rows = write_gradient ? fwd<true, E, Label> : fwd<false, E, Label>;
            rows(pointer<E>(logits), label, factor, pointer<float>(losses), pointer<bool>(correct), N, V, ignore_index,
                 label_smoothing);
        };
        labels_64 ? run(pointer<int64_t>(labels)) : run(pointer<int32_t>(labels));
    });
}

void softmax_cross_entropy_bwd(uintptr_t dlogits, uintptr_t dlosses, int64_t N, int64_t V, int stored_as) {
    check(N, V);
    const float* factors = pointer<float>(dlosses);
    as_stored(stored_as, [&](auto kind) {
        using E = decltype(kind);
        E* rows = pointer<E>(dlogits);
        parallel_shares(N, std::max<int64_t>(1, kGrain / V), [&](int64_t first, int64_t last) {
            for (int64_t i = first; i < last; ++i)
                if (factors[i] != 1) scale_row(rows + i * V, factors[i], V);
        });
    });
}
