#include "embedding_layer_norm.h"

#include <algorithm>
#include <string>
#include <vector>

#include "common/as_stored.h"
#include "common/check.h"
#include "common/dropout.h"
#include "common/parallel.h"
#include "common/rows.h"
#include "common/simd.h"

namespace {

constexpr const char* kOp = "embedding_layer_norm";
constexpr int64_t kGrain = 8 << 10;  // elements that make another thread worth waking
constexpr int64_t kAhead = 4;        // tokens between a prefetch and its use: rows are long

// Each token's row of one table.
template <class E>
struct Rows {
    const int32_t* ids;
    const E* table;
    int64_t N;

    const E* row(int64_t t) const { return table + ids[t] * N; }
};

template <class E>
struct Sum {
    Rows<E> word, position, segment;
    int64_t T, N;

    // One thread's copies of rows that aren't whole blocks of floats.
    struct Buffers {
        explicit Buffers(int64_t N) : word(padded(N)), position(padded(N)), segment(padded(N)) {}
        Buffer word, position, segment;
    };

    // Calls body(n, i, sum) for the registers of token t's sum: that of part i at element n.
    template <class Body>
    void each(int64_t t, Buffers& buffers, Body&& body) const {
        const float* w = read(word.row(t), buffers.word.data(), N);
        const float* p = read(position.row(t), buffers.position.data(), N);
        const float* s = read(segment.row(t), buffers.segment.data(), N);
        if (t + kAhead < T) prefetch(word.row(t + kAhead), N);
        for (int64_t n = 0; n < N; n += kBlock)
#pragma GCC unroll 4
            for (int i = 0; i < kParts; ++i) {
                const int64_t k = n + i * kLanes;
                body(k, i, load(w + k) + load(p + k) + load(s + k));
            }
    }
};

template <bool kDropout, class E>
void fwd(const Sum<E>& embedded, const float* gamma, const float* beta, E* y, float* mean, float* rstd, float eps,
         const Dropout& dropout) {
    const int64_t T = embedded.T, N = embedded.N;
    const Padded factor(gamma, N), offset(beta, N);
    const bool streamed = streams(y, T, N);
    parallel_shares(T, std::max<int64_t>(1, kGrain / N), [&](int64_t first, int64_t last) {
        typename Sum<E>::Buffers rows(N);
        Buffer sums(padded(N)), y_row(padded(N));
        std::vector<uint16_t> bits(Dropout::padded(N));
        float* s = sums.data();
        for (int64_t t = first; t < last; ++t) {
            Vec total[kParts] = {};
            embedded.each(t, rows, [&](int64_t k, int i, Vec v) {
                store(s + k, v);
                total[i] += v;
            });
            const auto [m, scaled] = moments(s, total, N, eps);
            mean[t] = m, rstd[t] = scaled;
            if (kDropout) dropout.row(bits.data(), t, N);
            float* out = begin_write(y + t * N, y_row.data(), N);
            for (int64_t n = 0; n < N; n += kBlock)
#pragma GCC unroll 4
                for (int i = 0; i < kParts; ++i) {
                    const int64_t k = n + i * kLanes;
                    Vec v = (load(s + k) - m) * scaled * load(factor.data + k) + load(offset.data + k);
                    if (kDropout) v = dropout.apply(bits.data() + k, v);
                    put(out + k, v, streamed);
                }
            end_write(y + t * N, out, N);
        }
        if (streamed) stream_end();
    });
}

template <bool kDropout, class E>
void bwd(const Sum<E>& embedded, const float* gamma, const float* mean, const float* rstd, const E* dy, float* dsum,
         float* sums, const Dropout& dropout) {
    const int64_t T = embedded.T, N = embedded.N, P = padded(N), tokens = block_rows(T);
    const int64_t blocks = (T + tokens - 1) / tokens;
    const Padded factor(gamma, N);
    const float share = 1.0f / static_cast<float>(N);
    Buffer partial(blocks * 2 * P);
    parallel_shares(blocks, std::max<int64_t>(1, kGrain / (tokens * N)), [&](int64_t first, int64_t last) {
        typename Sum<E>::Buffers rows(N);
        Buffer normal(P), weighted_row(P), dy_row(P), dsum_row(P);
        std::vector<uint16_t> bits(Dropout::padded(N));
        float *normalized = normal.data(), *weighted = weighted_row.data();
        for (int64_t t = first * tokens; t < std::min(T, last * tokens); ++t) {
            float *dgamma = partial.data() + t / tokens * 2 * P, *dbeta = dgamma + P;
            const float* g = read(dy + t * N, dy_row.data(), N);
            if (kDropout) dropout.row(bits.data(), t, N);
            const float m = mean[t], scaled = rstd[t];
            Vec total[kParts] = {}, product[kParts] = {};
            embedded.each(t, rows, [&](int64_t k, int i, Vec v) {
                Vec d = load(g + k);
                if (kDropout) d = dropout.apply(bits.data() + k, d);
                const Vec z = (v - m) * scaled, w = d * load(factor.data + k);
                store(normalized + k, z);
                store(weighted + k, w);
                store(dgamma + k, load(dgamma + k) + d * z);
                store(dbeta + k, load(dbeta + k) + d);
                total[i] += w;
                product[i] += w * z;
            });
            const float mean_total = sum(total) * share, mean_product = sum(product) * share;
            float* to = begin_write(dsum + t * N, dsum_row.data(), N);
            for (int64_t k = 0; k < N; k += kLanes)
                store(to + k, scaled * (load(weighted + k) - mean_total - load(normalized + k) * mean_product));
            end_write(dsum + t * N, to, N);
        }
    });
    std::fill(sums, sums + 2 * N, 0.0f);
    for (int64_t block = 0; block < blocks; ++block)
        for (int row = 0; row < 2; ++row)
            for (int64_t n = 0; n < N; ++n) sums[row * N + n] += partial.data()[(block * 2 + row) * P + n];
}

void check_ids(const int32_t* ids, int64_t T, int64_t rows, const char* table) {
    for (int64_t t = 0; t < T; ++t)
        if (ids[t] < 0 || ids[t] >= rows)
            throw std::out_of_range(std::string(kOp) + ": token " + std::to_string(t) + ": " + table + " " +
                                    std::to_string(ids[t]) + " is outside [0, " + std::to_string(rows) + ")");
}

struct Tables {
    uintptr_t ids, positions, segments, word, position, segment;
    int64_t T, V, P, S, N;

    void check(uintptr_t state, int64_t threshold) const {
        require_at_least(kOp, "T", T, 0);
        require_at_least(kOp, "H", N, 1);
        for (int64_t rows : {T, V, P, S}) checked_product(kOp, rows, N);
        if (threshold < 0 || threshold > 65535 || (threshold > 0 && state == 0))
            throw std::invalid_argument(std::string(kOp) +
                                        ": threshold must be 0 to 65535, with a state where it isn't 0");
        check_ids(pointer<int32_t>(ids), T, V, "word");
        check_ids(pointer<int32_t>(positions), T, P, "position");
        check_ids(pointer<int32_t>(segments), T, S, "segment");
    }

    template <class E>
    Sum<E> sum() const {
        return {{pointer<int32_t>(ids), pointer<E>(word), N},
                {pointer<int32_t>(positions), pointer<E>(position), N},
                {pointer<int32_t>(segments), pointer<E>(segment), N},
                T,
                N};
    }
};

struct Gradient {
    const int32_t* ids;
    float* table;
    int64_t rows;
};

// Large tables past the caches: half the time.
void fill_zeros(float* to, int64_t rows, int64_t N) {
    const bool streamed = streams(to, rows, N);
    parallel_shares(rows, std::max<int64_t>(1, kGrain / N), [&](int64_t first, int64_t last) {
        if (!streamed) return std::fill(to + first * N, to + last * N, 0.0f);
        for (int64_t k = first * N; k < last * N; k += kLanes) stream(to + k, Vec{});
        stream_end();
    });
}

void add(float* to, const float* from, int64_t count) {
#pragma omp simd
    for (int64_t n = 0; n < count; ++n) to[n] += from[n];
}

}  // namespace

void embedding_layer_norm_fwd(uintptr_t ids, uintptr_t positions, uintptr_t segments, uintptr_t word,
                              uintptr_t position, uintptr_t segment, uintptr_t gamma, uintptr_t beta, uintptr_t y,
                              uintptr_t mean, uintptr_t rstd, int64_t T, int64_t V, int64_t P, int64_t S, int64_t H,
                              float eps, uintptr_t state, int64_t site, int64_t threshold, int stored_as) {
    const Tables tables{ids, positions, segments, word, position, segment, T, V, P, S, H};
    tables.check(state, threshold);
    const Dropout dropout(pointer<int64_t>(state), site, threshold);
    as_stored(stored_as, [&](auto kind) {
        using E = decltype(kind);
        const auto run = threshold ? fwd<true, E> : fwd<false, E>;
        run(tables.sum<E>(), pointer<float>(gamma), pointer<float>(beta), pointer<E>(y), pointer<float>(mean),
            pointer<float>(rstd), eps, dropout);
    });
}

void embedding_layer_norm_bwd(uintptr_t ids, uintptr_t positions, uintptr_t segments, uintptr_t word,
                              uintptr_t position, uintptr_t segment, uintptr_t gamma, uintptr_t mean, uintptr_t rstd,
                              uintptr_t dy, uintptr_t dsum, uintptr_t sums, int64_t T, int64_t V, int64_t P, int64_t S,
                              int64_t H, uintptr_t state, int64_t site, int64_t threshold, int stored_as) {
    const Tables tables{ids, positions, segments, word, position, segment, T, V, P, S, H};
    tables.check(state, threshold);
    const Dropout dropout(pointer<int64_t>(state), site, threshold);
    as_stored(stored_as, [&](auto kind) {
        using E = decltype(kind);
        const auto run = threshold ? bwd<true, E> : bwd<false, E>;
        run(tables.sum<E>(), pointer<float>(gamma), pointer<float>(mean), pointer<float>(rstd), pointer<E>(dy),
            pointer<float>(dsum), pointer<float>(sums), dropout);
    });
}

void embedding_layer_norm_tables(uintptr_t ids, uintptr_t positions, uintptr_t segments, uintptr_t dsum,
                                 uintptr_t dword, uintptr_t dposition, uintptr_t dsegment, int64_t T, int64_t V,
                                 int64_t P, int64_t S, int64_t H) {
    const Tables tables{ids, positions, segments, dword, dposition, dsegment, T, V, P, S, H};
    tables.check(0, 0);
    Gradient gradients[3];
    int wanted = 0;
    for (const Gradient& one : {Gradient{pointer<int32_t>(ids), pointer<float>(dword), V},
                                Gradient{pointer<int32_t>(positions), pointer<float>(dposition), P},
                                Gradient{pointer<int32_t>(segments), pointer<float>(dsegment), S}})
        if (one.table != nullptr) gradients[wanted++] = one;
    for (int i = 0; i < wanted; ++i) fill_zeros(gradients[i].table, gradients[i].rows, H);
    // Threads own whole cache lines of columns.
    parallel_shares((H + kLineFloats - 1) / kLineFloats, std::max<int64_t>(1, kGrain / (T * kLineFloats + 1)),
                    [&](int64_t first, int64_t last) {
                        const int64_t begin = first * kLineFloats, count = std::min(H, last * kLineFloats) - begin;
                        for (int64_t t = 0; t < T; ++t)
                            for (int i = 0; i < wanted; ++i) {
                                const auto& [id, table, rows] = gradients[i];
                                if (t + kAhead < T) prefetch(table + id[t + kAhead] * H + begin, count);
                                add(table + id[t] * H + begin, pointer<float>(dsum) + t * H + begin, count);
                            }
                    });
}
