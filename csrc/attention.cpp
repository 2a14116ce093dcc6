#include "attention.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <vector>

#include "common/as_stored.h"
#include "common/check.h"
#include "common/dropout.h"
#include "common/exp.h"
#include "common/parallel.h"
#include "common/product.h"

// A task is one head of one sequence, the longest sequences first. Its queries, keys and values are copied into padded
// float rows: those of a head lie 3 H D elements apart in qkv, where a power of two would crowd few cache sets.
// Forward, a block of queries meets all keys, so that softmax sees whole rows. Backward, a block of keys meets the
// queries block by block: what is in use fits the second-level cache whatever the length, and no two threads add to one
// place.

namespace {

constexpr int64_t kQueries = 48;  // in a block of forward; whole tiles
constexpr int64_t kRows = 96;     // queries in a block of backward, and keys: whole tiles and panels

int64_t up_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// The memory of a thread, in arrays that begin at cache lines. `pass` is called twice: to count, then to hand out.
class Memory {
   public:
    template <class Value>
    Value* take(int64_t count) {
        const int64_t place = used_;
        used_ += up_to(count * static_cast<int64_t>(sizeof(Value)), kLine);
        return memory_ ? reinterpret_cast<Value*>(memory_.get() + place) : nullptr;
    }
    void allocate() {
        memory_.reset(static_cast<char*>(::operator new(used_, std::align_val_t(kLine))));
        used_ = 0;
    }

   private:
    struct Free {
        void operator()(char* memory) const { ::operator delete(memory, std::align_val_t(kLine)); }
    };
    std::unique_ptr<char, Free> memory_;
    int64_t used_ = 0;
};

struct Shape {
    int64_t T, H, D;
    float scale;
    int64_t width() const { return whole_registers(D); }  // of a row of floats
};

// One task.
struct Head {
    int64_t first, length;  // of the sequence
    int64_t head;
};

// Rows of one head in qkv (part 0 to 2), or in out and dout.
template <class E>
struct Rows {
    E* first;
    int64_t stride;
    E* operator[](int64_t i) const { return first + i * stride; }
};
template <class E>
Rows<E> part_of(E* qkv, const Shape& shape, const Head& head, int64_t part) {
    const int64_t HD = shape.H * shape.D;
    return {qkv + (3 * head.first + part) * HD + head.head * shape.D, 3 * HD};
}
template <class E>
Rows<E> result_of(E* out, const Shape& shape, const Head& head) {
    return {out + (head.first * shape.H + head.head) * shape.D, shape.H * shape.D};
}

// to = factor * from; one of both is float, which a rounding to 16 bits may overwrite.
template <class To, class From>
void convert(To* to, From* from, int64_t n, float factor) {
    if constexpr (sizeof(To) == sizeof(From)) {  // in registers: memmove took up to three times as long
        for (int64_t i = 0; i < n; i += kLanes) store_some(to + i, factor * load_some(from + i, n - i), n - i);
    } else if constexpr (sizeof(To) > sizeof(From)) {
        convert(to, from, n);
        for (int64_t i = 0; i < n; ++i) to[i] *= factor;
    } else {
        for (int64_t i = 0; i < n; ++i) from[i] *= factor;
        convert(to, from, n);
    }
}

// Rows first .. first + count as floats times `factor`, then zeros up to `tall` rows; each padded with zeros to
// `width`.
template <class E>
void read_rows(float* to, const Rows<const E>& from, int64_t first, int64_t count, int64_t tall, const Shape& shape,
               float factor = 1) {
    const int64_t width = shape.width();
    for (int64_t i = 0; i < count; ++i, to += width) {
        convert(to, from[first + i], shape.D, factor);
        std::fill(to + shape.D, to + width, 0.0f);
    }
    std::fill(to, to + (tall - count) * width, 0.0f);
}

// Panels of the transpose of `count` rows: [panel][width][kPanel], zeros behind the last row; square: [kLanes, width].
template <class E>
void pack_transposed(float* to, const Rows<const E>& from, int64_t first, int64_t count, const Shape& shape,
                     float* square_rows) {
    const int64_t width = shape.width();
    for (int64_t j = 0; j < count; j += kLanes) {
        read_rows(square_rows, from, first + j, std::min<int64_t>(kLanes, count - j), kLanes, shape);
        float* panel = to + j / kPanel * kPanel * width + j % kPanel;
        for (int64_t d = 0; d < width; d += kLanes) {
            Vec square[kLanes];
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i) square[i] = load(square_rows + i * width + d);
            transpose(square);
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i) store(panel + (d + i) * kPanel, square[i]);
        }
    }
}

// Row i of a right side's panel begins at b + i * row, the next panel `panel` further.
struct Right {
    const float* b;
    int64_t row, panel;
};

// to [rows, columns] = or += left right; rows in multiples of kShort, columns of kLanes.
template <bool kAdd>
void product(const Left& left, int64_t rows, const Right& right, int64_t inner, int64_t columns, float* to,
             int64_t stride) {
    const auto finish = [=](int64_t r, int64_t column, Vec sum) {
        float* place = to + r * stride + column;
        store(place, kAdd ? load(place) + sum : sum);
    };
    for (int64_t n = 0; n < columns; n += kPanel) {
        const float* b = right.b + n / kPanel * right.panel;
        if (columns - n > kLanes)
            product_panel<kWide>(left, rows, b, right.row, inner, n, finish);
        else
            product_panel<1>(left, rows, b, right.row, inner, n, finish);
    }
}

inline float sum_of(Vec v) {
    float total = 0;
    for (int i = 0; i < kLanes; ++i) total += v[i];
    return total;
}

struct Forward {
    explicit Forward(Memory& memory, int64_t longest, int64_t width)
        : stride(up_to(longest, kPanel) + kLanes),  // no power of two, whose rows would share cache sets
          keys(memory.take<float>(up_to(longest, kPanel) * width)),
          values(memory.take<float>(longest * width)),
          queries(memory.take<float>(kQueries * width)),
          outs(memory.take<float>(kQueries * width)),
          square(memory.take<float>(kLanes * width)),
          scores(memory.take<float>(kQueries * stride)),
          bits(memory.take<uint16_t>(Dropout::padded(longest))) {}
    int64_t stride;
    float *keys, *values, *queries, *outs, *square, *scores;
    uint16_t* bits;
};

// scores[0 .. length) -> exp(score - the largest), what dropout drops 0; returns their sum before dropout, and the
// largest. Writes whole panels.
template <bool kDropout>
float softmax(float* scores, int64_t length, const uint16_t* bits, const Dropout& dropout, float& largest) {
    const int64_t end = up_to(length, kPanel);
    std::fill(scores + length, scores + end, -INFINITY);
    Vec top[kWide], sums[kWide] = {};
    for (int w = 0; w < kWide; ++w) top[w] = load(scores + w * kLanes);
    for (int64_t k = kPanel; k < end; k += kPanel)
        for (int w = 0; w < kWide; ++w) top[w] = larger(load(scores + k + w * kLanes), top[w]);
    const Vec both = larger(top[1], top[0]);
    largest = both[0];
    for (int i = 1; i < kLanes; ++i) largest = std::max(largest, both[i]);
    for (int64_t k = 0; k < end; k += kPanel)
#pragma GCC unroll 2
        for (int w = 0; w < kWide; ++w) {
            const int64_t at = k + w * kLanes;
            Vec e = fast_exp(load(scores + at) - largest);
            sums[w] += e;
            if (kDropout) e = dropout.apply(bits + at, e);
            store(scores + at, e);
        }
    return sum_of(sums[0] + sums[1]);
}

template <bool kDropout, class E>
void fwd(const E* qkv, E* out, float* lse, const Shape& shape, const Head& head, const Dropout& dropout,
         const Forward& m) {
    const int64_t width = shape.width(), length = head.length;
    const auto queries = part_of(qkv, shape, head, 0), keys = part_of(qkv, shape, head, 1);
    const auto outs = result_of(out, shape, head);
    pack_transposed(m.keys, keys, 0, length, shape, m.square);
    read_rows(m.values, part_of(qkv, shape, head, 2), 0, length, length, shape);
    for (int64_t first = 0; first < length; first += kQueries) {
        const int64_t count = std::min(kQueries, length - first), tall = up_to(count, kShort);
        read_rows(m.queries, queries, first, count, tall, shape, shape.scale);
        product<false>({m.queries, width, 1}, tall, {m.keys, kPanel, width * kPanel}, shape.D, whole_registers(length),
                       m.scores, m.stride);
        float factor[kQueries];
        for (int64_t i = 0; i < count; ++i) {
            const int64_t row = (head.first + first + i) * shape.H + head.head;
            if (kDropout) dropout.row(m.bits, row, length);
            float largest;
            const float sum = softmax<kDropout>(m.scores + i * m.stride, length, m.bits, dropout, largest);
            factor[i] = 1 / sum;
            lse[row] = largest + std::log(sum);
        }
        product<false>({m.scores, m.stride, 1}, tall, {m.values, width, kPanel}, length, width, m.outs, width);
        for (int64_t i = 0; i < count; ++i) convert(outs[first + i], m.outs + i * width, shape.D, factor[i]);
    }
}

struct Backward {
    explicit Backward(Memory& memory, int64_t longest, int64_t width)
        : queries(memory.take<float>(up_to(longest, kShort) * width)),
          douts(memory.take<float>(up_to(longest, kShort) * width)),
          dqueries(memory.take<float>(up_to(longest, kShort) * width)),
          delta(memory.take<float>(longest)),
          keys(memory.take<float>(kRows * width)),
          keys_t(memory.take<float>(kRows * width)),
          values_t(memory.take<float>(kRows * width)),
          dkeys(memory.take<float>(kRows * width)),
          dvalues(memory.take<float>(kRows * width)),
          square(memory.take<float>(kLanes * width)),
          probabilities(memory.take<float>(kRows * stride)),
          dscores(memory.take<float>(kRows * stride)),
          bits(memory.take<uint16_t>(Dropout::padded(kRows))) {}
    static constexpr int64_t stride = kRows + kLanes;  // as forward
    float *queries, *douts, *dqueries, *delta, *keys, *keys_t, *values_t, *dkeys, *dvalues, *square;
    float *probabilities, *dscores;
    uint16_t* bits;
};

// Scores and the gradient of what dropout kept -> the probabilities after dropout, and the scores' gradient.
template <bool kDropout>
void softmax_bwd(float* scores, float* gradient, int64_t count, float lse, float delta, const uint16_t* bits,
                 const Dropout& dropout) {
    for (int64_t k = 0; k < count; k += kLanes) {
        Vec p = fast_exp(load(scores + k) - lse), d = load(gradient + k);
        if (kDropout) d = dropout.apply(bits + k, d);
        store(gradient + k, p * (d - delta));
        if (kDropout) p = dropout.apply(bits + k, p);
        store(scores + k, p);
    }
}

template <bool kDropout, class E>
void bwd(const E* qkv, const E* out, const float* lse, const E* dout, E* dqkv, const Shape& shape, const Head& head,
         const Dropout& dropout, const Backward& m) {
    const int64_t width = shape.width(), length = head.length;
    const auto keys = part_of(qkv, shape, head, 1), values = part_of(qkv, shape, head, 2);
    const auto outs = result_of(out, shape, head);
    const auto dqueries = part_of(dqkv, shape, head, 0), dkeys = part_of(dqkv, shape, head, 1),
               dvalues = part_of(dqkv, shape, head, 2);
    read_rows(m.queries, part_of(qkv, shape, head, 0), 0, length, up_to(length, kShort), shape, shape.scale);
    read_rows(m.douts, result_of(dout, shape, head), 0, length, up_to(length, kShort), shape);
    std::fill(m.dqueries, m.dqueries + up_to(length, kShort) * width, 0.0f);
    for (int64_t i = 0; i < length; ++i) {
        read_rows(m.square, outs, i, 1, 1, shape);
        Vec sum{};
        for (int64_t d = 0; d < width; d += kLanes) sum += load(m.square + d) * load(m.douts + i * width + d);
        m.delta[i] = sum_of(sum);
    }
    for (int64_t key = 0; key < length; key += kRows) {
        const int64_t count = std::min(kRows, length - key), columns = whole_registers(count),
                      tall = up_to(count, kShort);
        read_rows(m.keys, keys, key, count, count, shape);
        pack_transposed(m.keys_t, keys, key, count, shape, m.square);
        pack_transposed(m.values_t, values, key, count, shape, m.square);
        std::fill(m.dkeys, m.dkeys + tall * width, 0.0f);
        std::fill(m.dvalues, m.dvalues + tall * width, 0.0f);
        for (int64_t first = 0; first < length; first += kRows) {
            const int64_t rows = std::min(kRows, length - first), tall_rows = up_to(rows, kShort);
            const float *queries = m.queries + first * width, *douts = m.douts + first * width;
            product<false>({queries, width, 1}, tall_rows, {m.keys_t, kPanel, width * kPanel}, shape.D, columns,
                           m.probabilities, m.stride);
            product<false>({douts, width, 1}, tall_rows, {m.values_t, kPanel, width * kPanel}, shape.D, columns,
                           m.dscores, m.stride);
            for (int64_t i = 0; i < rows; ++i) {
                const int64_t row = (head.first + first + i) * shape.H + head.head, at = i * m.stride;
                if (kDropout) dropout.row(m.bits, row, count, key);
                softmax_bwd<kDropout>(m.probabilities + at, m.dscores + at, count, lse[row], m.delta[first + i], m.bits,
                                      dropout);
            }
            product<true>({m.probabilities, 1, m.stride}, tall, {douts, width, kPanel}, rows, width, m.dvalues, width);
            product<true>({m.dscores, 1, m.stride}, tall, {queries, width, kPanel}, rows, width, m.dkeys, width);
            product<true>({m.dscores, m.stride, 1}, tall_rows, {m.keys, width, kPanel}, count, width,
                          m.dqueries + first * width, width);
        }
        for (int64_t i = 0; i < count; ++i) {
            convert(dkeys[key + i], m.dkeys + i * width, shape.D, 1.0f);
            convert(dvalues[key + i], m.dvalues + i * width, shape.D, 1.0f);
        }
    }
    for (int64_t i = 0; i < length; ++i) convert(dqueries[i], m.dqueries + i * width, shape.D, shape.scale);
}

// The sequences that have tokens, longest first, so that the threads end together.
struct Batch {
    std::vector<Head> sequences;
    int64_t longest = 0, end = 0;  // end: of the last sequence
};

Batch read_batch(const int32_t* cu_seqlens, int64_t T, int64_t b, int64_t longest) {
    Batch batch;
    const auto refuse = [](const std::string& text) { throw std::invalid_argument("attention: cu_seqlens " + text); };
    if (cu_seqlens[0] != 0) refuse("begins with " + std::to_string(cu_seqlens[0]) + ", expected 0");
    for (int64_t i = 0; i < b; ++i) {
        const int64_t first = cu_seqlens[i], last = cu_seqlens[i + 1];
        const std::string name = "has sequence " + std::to_string(i) + " from token " + std::to_string(first) + " to " +
                                 std::to_string(last);
        if (last < first) refuse(name + "; its entries must not decrease");
        if (last > T) refuse(name + ", but qkv has " + std::to_string(T) + " tokens");
        if (last - first > longest) refuse(name + ", longer than longest, " + std::to_string(longest));
        if (last > first) batch.sequences.push_back({first, last - first, 0});
    }
    std::stable_sort(batch.sequences.begin(), batch.sequences.end(),
                     [](const Head& one, const Head& other) { return one.length > other.length; });
    if (!batch.sequences.empty()) batch.longest = batch.sequences[0].length;
    batch.end = cu_seqlens[b];
    return batch;
}

// body(head, memory) for all heads of all sequences.
template <class Space, class Body>
void for_each_head(const Batch& batch, const Shape& shape, Body&& body) {
    std::vector<Memory> memories(omp_get_max_threads());
    std::vector<std::unique_ptr<Space>> spaces(memories.size());
    parallel_tasks(static_cast<int64_t>(batch.sequences.size()) * shape.H, [&](int64_t task) {
        auto& space = spaces[omp_get_thread_num()];
        if (!space) {
            Memory& memory = memories[omp_get_thread_num()];
            Space(memory, batch.longest, shape.width());
            memory.allocate();
            space.reset(new Space(memory, batch.longest, shape.width()));
        }
        Head head = batch.sequences[task / shape.H];
        head.head = task % shape.H;
        body(head, *space);
    });
}

template <bool kDropout, class E>
void fwd_all(const E* qkv, E* out, float* lse, const Shape& shape, const Batch& batch, const Dropout& dropout) {
    for_each_head<Forward>(batch, shape, [&](const Head& head, const Forward& memory) {
        fwd<kDropout>(qkv, out, lse, shape, head, dropout, memory);
    });
    std::fill(out + batch.end * shape.H * shape.D, out + shape.T * shape.H * shape.D, E{});
    std::fill(lse + batch.end * shape.H, lse + shape.T * shape.H, 0.0f);
}

template <bool kDropout, class E>
void bwd_all(const E* qkv, const E* out, const float* lse, const E* dout, E* dqkv, const Shape& shape,
             const Batch& batch, const Dropout& dropout) {
    for_each_head<Backward>(batch, shape, [&](const Head& head, const Backward& memory) {
        bwd<kDropout>(qkv, out, lse, dout, dqkv, shape, head, dropout, memory);
    });
    std::fill(dqkv + batch.end * 3 * shape.H * shape.D, dqkv + shape.T * 3 * shape.H * shape.D, E{});
}

void check(int64_t T, int64_t H, int64_t D, int64_t b, int64_t longest, uintptr_t state, int64_t threshold) {
    require_at_least("attention", "T", T, 0);
    require_at_least("attention", "H", H, 1);
    require_at_least("attention", "D", D, 1);
    require_at_least("attention", "b", b, 0);
    require_at_least("attention", "longest", longest, 0);
    checked_product("attention", T, checked_product("attention", 3 * H, D));
    if (threshold < 0 || threshold > 65535 || (threshold > 0 && state == 0))
        throw std::invalid_argument("attention: threshold must be 0 to 65535, with a state where it isn't 0");
}

}  // namespace

void attention_fwd(uintptr_t qkv, uintptr_t cu_seqlens, uintptr_t out, uintptr_t lse, int64_t T, int64_t H, int64_t D,
                   int64_t b, int64_t longest, float scale, uintptr_t state, int64_t site, int64_t threshold,
                   int stored_as) {
    check(T, H, D, b, longest, state, threshold);
    const Batch batch = read_batch(pointer<int32_t>(cu_seqlens), T, b, longest);
    const Dropout dropout(pointer<int64_t>(state), site, threshold);
    as_stored(stored_as, [&](auto kind) {
        using E = decltype(kind);
        const auto run = threshold ? fwd_all<true, E> : fwd_all<false, E>;
        run(pointer<E>(qkv), pointer<E>(out), pointer<float>(lse), {T, H, D, scale}, batch, dropout);
    });
}

void attention_bwd(uintptr_t qkv, uintptr_t cu_seqlens, uintptr_t out, uintptr_t lse, uintptr_t dout, uintptr_t dqkv,
                   int64_t T, int64_t H, int64_t D, int64_t b, int64_t longest, float scale, uintptr_t state,
                   int64_t site, int64_t threshold, int stored_as) {
    check(T, H, D, b, longest, state, threshold);
    const Batch batch = read_batch(pointer<int32_t>(cu_seqlens), T, b, longest);
    const Dropout dropout(pointer<int64_t>(state), site, threshold);
    as_stored(stored_as, [&](auto kind) {
        using E = decltype(kind);
        const auto run = threshold ? bwd_all<true, E> : bwd_all<false, E>;
        run(pointer<E>(qkv), pointer<E>(out), pointer<float>(lse), pointer<E>(dout), pointer<E>(dqkv), {T, H, D, scale},
            batch, dropout);
    });
}
