#include "batch_norm.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "common/as_stored.h"
#include "common/check.h"
#include "common/parallel.h"
#include "common/rows.h"
#include "common/simd.h"

namespace {

typedef decltype(Vec{} <= Vec{}) Bits;  // whole numbers, a lane each

constexpr int64_t kGrain = 8 << 10;            // elements that make another thread worth waking
constexpr int64_t kGroup = 32;                 // rows that share a mask's words
constexpr int64_t kBlockElements = 256 << 10;  // of a block with sums of its own, at least

inline Bits load_bits(const int32_t* from) {
    Bits v;
    std::memcpy(&v, from, sizeof(v));
    return v;
}
inline void store_bits(int32_t* to, Bits v) { std::memcpy(to, &v, sizeof(v)); }
inline Bits bit_of(int64_t row) { return Bits{} + static_cast<int32_t>(1u << row); }

// A matrix of R rows of N columns that hold C channels, in groups of rows and blocks of groups.
struct Shape {
    int64_t R, N, C;
    int64_t P() const { return padded(N); }
    int64_t groups() const { return (R + kGroup - 1) / kGroup; }
    int64_t rows(int64_t group) const { return std::min(kGroup, R - group * kGroup); }
    int64_t grain() const { return std::max<int64_t>(1, kGrain / (kGroup * N)); }
    // A function of the shape alone; at most 64, whose sums are added up in order afterwards.
    int64_t block_groups() const { return std::max((groups() + 63) / 64, kBlockElements / (kGroup * N)) + 1; }
    int64_t blocks() const { return (groups() + block_groups() - 1) / block_groups(); }
};

// Calls body(count, row, step) for all rows of a group, where `fours` four at a time: row, row + step, ... Taken from
// the group's quarters they come from four places in memory, which one core reads 1.4 times as fast as one place; and
// what belongs to a column is loaded once for the four. Rows that are also written, past the caches, are faster one by
// one.
template <class Body>
void each_row(int64_t rows, bool fours, Body&& body) {
    const int64_t step = fours ? rows / 4 : 0;
    for (int64_t r = 0; r < step; ++r) body(std::integral_constant<int, 4>(), r, step);
    for (int64_t r = 4 * step; r < rows; ++r) body(std::integral_constant<int, 1>(), r, int64_t{0});
}

// Rows of a matrix as floats, each in a buffer of its own where it must be converted or padded.
class Rows {
   public:
    explicit Rows(int64_t P) : P_(P), memory_(4 * P) {}
    template <int kCount, class E>
    void read_all(const E* from, int64_t row, int64_t step, int64_t N, const float* (&to)[kCount]) {
        for (int i = 0; i < kCount; ++i) to[i] = read(from + (row + i * step) * N, memory_.data() + i * P_, N);
    }

   private:
    const int64_t P_;
    Buffer memory_;
};

// A [C] vector of channels as a padded row of columns.
struct Columns {
    Columns(const Shape& shape, const float* channels) : buffer(shape.P()), data(buffer.data()) {
        for (int64_t n = 0; n < shape.N; n += shape.C) std::copy(channels, channels + shape.C, buffer.data() + n);
    }
    Columns(const Shape& shape, const std::vector<float>& channels) : Columns(shape, channels.data()) {}
    Buffer buffer;
    const float* const data;

   private:
    Columns(const Columns&) = delete;
};

std::vector<float> rstd_of(const float* variance, float eps, int64_t C) {
    std::vector<float> rstd(C);
    for (int64_t c = 0; c < C; ++c) rstd[c] = 1.0f / std::sqrt(variance[c] + eps);
    return rstd;
}

// Two sums a column: in float over a group of rows, in double over the groups.
struct Totals {
    explicit Totals(const Shape& shape) : P(shape.P()), memory(2 * P), first(memory.data()), second(first + P) {}
    void add_to(double* totals, int64_t N) {
        for (int64_t n = 0; n < N; ++n) totals[n] += first[n], totals[N + n] += second[n];
        std::fill(first, first + 2 * P, 0.0f);
    }
    const int64_t P;
    Buffer memory;
    float *const first, *const second;
};

// Of each block and column: the sum of x - pivot, of its square, and the pivot, which is a mean of a few of the block's
// values: what is summed then has the size of the deviation, whatever the mean is.
template <class E>
void moments(const E* x, float* mean, float* variance, float* running_mean, float* running_variance, float momentum,
             const Shape& shape) {
    const int64_t N = shape.N, C = shape.C, P = shape.P(), blocks = shape.blocks(), height = shape.block_groups();
    std::vector<double> partial(blocks * 3 * N);
    parallel_shares(blocks, 1, [&](int64_t first, int64_t last) {
        Rows rows(P);
        Buffer pivots(P);
        Totals sums(shape);
        float *const pivot = pivots.data(), *const first_sum = sums.first, *const second_sum = sums.second;
        for (int64_t block = first; block < last; ++block) {
            double* totals = partial.data() + block * 3 * N;
            const int64_t group = block * height, few = shape.rows(group);
            std::fill(pivot, pivot + P, 0.0f);
            for (int64_t r = 0; r < few; ++r) {
                const float* h[1];
                rows.read_all(x, group * kGroup + r, 0, N, h);
                for (int64_t n = 0; n < P; n += kLanes) store(pivot + n, load(pivot + n) + load(h[0] + n));
            }
            for (int64_t n = 0; n < P; ++n) pivot[n] *= 1.0f / static_cast<float>(few);
            for (int64_t n = 0; n < N; ++n) totals[2 * N + n] = pivot[n];
            for (int64_t g = group; g < std::min(group + height, shape.groups()); ++g) {
                each_row(shape.rows(g), true, [&](auto count, int64_t row, int64_t step) {
                    const float* h[count];
                    rows.read_all(x, g * kGroup + row, step, N, h);
                    for (int64_t n = 0; n < P; n += kLanes) {
                        const Vec middle = load(pivot + n);
                        Vec sum = load(first_sum + n), squares = load(second_sum + n);
                        for (int i = 0; i < count; ++i) {
                            const Vec d = load(h[i] + n) - middle;
                            sum += d;
                            squares += d * d;
                        }
                        store(first_sum + n, sum);
                        store(second_sum + n, squares);
                    }
                });
                sums.add_to(totals, N);
            }
        }
    });
    const auto rows_of = [&](int64_t block) {
        return static_cast<double>(std::min(shape.R, (block + 1) * height * kGroup) - block * height * kGroup);
    };
    const double count = static_cast<double>(shape.R) * static_cast<double>(N / C);
    for (int64_t c = 0; c < C; ++c) {
        double sum = 0, squares = 0;
        for (int64_t block = 0; block < blocks; ++block)
            for (int64_t n = c; n < N; n += C) {
                const double* totals = partial.data() + block * 3 * N + n;
                sum += totals[0] + rows_of(block) * totals[2 * N];
            }
        const double middle = sum / count;
        for (int64_t block = 0; block < blocks; ++block)
            for (int64_t n = c; n < N; n += C) {
                const double* totals = partial.data() + block * 3 * N + n;
                const double rows = rows_of(block), shift = totals[0] / rows, off = totals[2 * N] + shift - middle;
                squares += totals[N] - totals[0] * shift + rows * off * off;
            }
        const double spread = std::max(squares / count, 0.0);  // NaN stays NaN
        mean[c] = static_cast<float>(middle);
        variance[c] = static_cast<float>(spread);
        if (running_mean == nullptr) continue;
        const double unbiased = count > 1 ? spread * count / (count - 1) : spread;
        running_mean[c] += momentum * (mean[c] - running_mean[c]);
        running_variance[c] += momentum * (static_cast<float>(unbiased) - running_variance[c]);
    }
}

template <bool kRelu, class E>
void apply(const E* x, const E* residual, const float* mean, const float* variance, const float* gamma,
           const float* beta, E* y, int32_t* mask, float eps, const Shape& shape) {
    const int64_t N = shape.N, P = shape.P();
    std::vector<float> scale = rstd_of(variance, eps, shape.C);
    for (int64_t c = 0; c < shape.C; ++c) scale[c] *= gamma[c];
    const Columns center(shape, mean), factor(shape, scale), offset(shape, beta);
    const bool streamed = streams(y, shape.R, N);
    parallel_shares(shape.groups(), shape.grain(), [&](int64_t first, int64_t last) {
        Buffer x_row(P), residual_row(P), y_row(P);
        std::vector<int32_t> own(P);
        for (int64_t g = first; g < last; ++g) {
            int32_t* words = mask != nullptr && N % kBlock == 0 ? mask + g * N : own.data();
            for (int64_t r = 0; r < shape.rows(g); ++r) {
                const int64_t at = (g * kGroup + r) * N;
                const float* h = read(x + at, x_row.data(), N);
                const float* added = residual ? read(residual + at, residual_row.data(), N) : residual_row.data();
                float* out = begin_write(y + at, y_row.data(), N);
                const Bits bit = bit_of(r);
                const bool has_residual = residual != nullptr;
                for (int64_t n = 0; n < P; n += kBlock)
#pragma GCC unroll 4
                    for (int i = 0; i < kParts; ++i) {
                        const int64_t k = n + i * kLanes;
                        Vec v = (load(h + k) - load(center.data + k)) * load(factor.data + k) + load(offset.data + k);
                        if (has_residual) v += load(added + k);
                        if (kRelu) {
                            const Bits kept = ~(v <= 0.0f) & bit;  // NaN is kept, as torch's is
                            store_bits(words + k, r == 0 ? kept : load_bits(words + k) | kept);
                            v = larger(Vec{}, v);
                        }
                        put(out + k, v, streamed);
                    }
                end_write(y + at, out, N);
            }
            if (kRelu && mask != nullptr && words == own.data()) std::copy(words, words + N, mask + g * N);
        }
        if (streamed) stream_end();
    });
}

// A group's words of the mask, whose rows may have to be padded.
inline const int32_t* words_of(const int32_t* mask, int64_t g, std::vector<int32_t>& own, int64_t N) {
    if (mask == nullptr) return nullptr;
    if (N % kBlock == 0) return mask + g * N;
    std::copy(mask + g * N, mask + (g + 1) * N, own.begin());
    return own.data();
}

template <bool kRelu, class E>
void sums(const E* dy, const E* x, const int32_t* mask, const float* mean, const float* variance, float* out,
          E* dresidual, float eps, const Shape& shape) {
    const int64_t N = shape.N, C = shape.C, P = shape.P(), blocks = shape.blocks(), height = shape.block_groups();
    const Columns center(shape, mean);
    const bool streamed = dresidual != nullptr && streams(dresidual, shape.R, N);
    std::vector<double> partial(blocks * 2 * N);
    parallel_shares(blocks, 1, [&](int64_t first, int64_t last) {
        Rows x_rows(P), dy_rows(P);
        Buffer dresidual_row(P);
        std::vector<int32_t> own(P);
        Totals totals(shape);
        float *const first_sum = totals.first, *const second_sum = totals.second;
        for (int64_t block = first; block < last; ++block)
            for (int64_t g = block * height; g < std::min((block + 1) * height, shape.groups()); ++g) {
                const int32_t* words = words_of(mask, g, own, N);
                each_row(shape.rows(g), dresidual == nullptr, [&](auto count, int64_t row, int64_t step) {
                    const float *h[count], *d[count];
                    const int64_t at = g * kGroup + row;
                    x_rows.read_all(x, at, step, N, h);
                    dy_rows.read_all(dy, at, step, N, d);
                    float* to =
                        count == 1 && dresidual ? begin_write(dresidual + at * N, dresidual_row.data(), N) : nullptr;
                    for (int64_t n = 0; n < P; n += kLanes) {
                        const Vec middle = load(center.data + n);
                        const Bits kept = kRelu ? load_bits(words + n) : Bits{};
                        Vec sum = load(first_sum + n), product = load(second_sum + n);
                        for (int i = 0; i < count; ++i) {
                            Vec v = load(d[i] + n);
                            if (kRelu) v = (kept & bit_of(row + i * step)) != 0 ? v : Vec{};
                            if (count == 1 && to) put(to + n, v, streamed);
                            sum += v;
                            product += v * (load(h[i] + n) - middle);
                        }
                        store(first_sum + n, sum);
                        store(second_sum + n, product);
                    }
                    if (to) end_write(dresidual + at * N, to, N);
                });
                totals.add_to(partial.data() + block * 2 * N, N);
            }
        if (streamed) stream_end();
    });
    const std::vector<float> rstd = rstd_of(variance, eps, C);
    for (int64_t c = 0; c < C; ++c) {
        double plain = 0, product = 0;
        for (int64_t block = 0; block < blocks; ++block)
            for (int64_t n = c; n < N; n += C) {
                plain += partial[block * 2 * N + n];
                product += partial[block * 2 * N + N + n];
            }
        out[c] = static_cast<float>(plain);
        out[C + c] = static_cast<float>(product * rstd[c]);
    }
}

template <bool kRelu, class E>
void dx(const E* dy, const E* x, const int32_t* mask, const float* mean, const float* variance, const float* gamma,
        const float* sums, E* out, float eps, int64_t count, const Shape& shape) {
    const int64_t N = shape.N, C = shape.C, P = shape.P();
    std::vector<float> scale = rstd_of(variance, eps, C), plain(C), slope(C);
    for (int64_t c = 0; c < C; ++c) {
        plain[c] = sums[c] / static_cast<float>(count);
        slope[c] = sums[C + c] * scale[c] / static_cast<float>(count);
        scale[c] *= gamma[c];
    }
    const Columns center(shape, mean), factor(shape, scale), minus(shape, plain), tilt(shape, slope);
    const bool streamed = streams(out, shape.R, N);
    parallel_shares(shape.groups(), shape.grain(), [&](int64_t first, int64_t last) {
        Buffer x_row(P), dy_row(P), dx_row(P);
        std::vector<int32_t> own(P);
        for (int64_t g = first; g < last; ++g) {
            const int32_t* words = words_of(mask, g, own, N);
            for (int64_t r = 0; r < shape.rows(g); ++r) {
                const int64_t at = (g * kGroup + r) * N;
                const float *h = read(x + at, x_row.data(), N), *d = read(dy + at, dy_row.data(), N);
                float* to = begin_write(out + at, dx_row.data(), N);
                const Bits bit = bit_of(r);
                for (int64_t n = 0; n < P; n += kBlock)
#pragma GCC unroll 4
                    for (int i = 0; i < kParts; ++i) {
                        const int64_t k = n + i * kLanes;
                        Vec v = load(d + k);
                        if (kRelu) v = (load_bits(words + k) & bit) != 0 ? v : Vec{};
                        v -= load(minus.data + k) + (load(h + k) - load(center.data + k)) * load(tilt.data + k);
                        put(to + k, v * load(factor.data + k), streamed);
                    }
                end_write(out + at, to, N);
            }
        }
        if (streamed) stream_end();
    });
}

Shape checked(int64_t R, int64_t N, int64_t C, int64_t least_rows = 0) {
    require_at_least("batch_norm", "R", R, least_rows);
    require_at_least("batch_norm", "C", C, 1);
    require_at_least("batch_norm", "N", N, C);
    checked_product("batch_norm", R, N);
    if (N % C != 0) throw std::invalid_argument("batch_norm: N must be a multiple of C");
    return {R, N, C};
}

}  // namespace

void batch_norm_moments(uintptr_t x, uintptr_t mean, uintptr_t variance, uintptr_t running_mean,
                        uintptr_t running_variance, float momentum, int64_t R, int64_t N, int64_t C, int stored_as) {
    const Shape shape = checked(R, N, C, 1);
    as_stored(stored_as, [&](auto kind) {
        moments(pointer<decltype(kind)>(x), pointer<float>(mean), pointer<float>(variance),
                pointer<float>(running_mean), pointer<float>(running_variance), momentum, shape);
    });
}

void batch_norm_apply(uintptr_t x, uintptr_t residual, uintptr_t mean, uintptr_t variance, uintptr_t gamma,
                      uintptr_t beta, uintptr_t y, uintptr_t mask, float eps, bool relu, int64_t R, int64_t N,
                      int64_t C, int stored_as) {
    const Shape shape = checked(R, N, C);
    as_stored(stored_as, [&](auto kind) {
        using E = decltype(kind);
        const auto run = relu ? apply<true, E> : apply<false, E>;
        run(pointer<E>(x), pointer<E>(residual), pointer<float>(mean), pointer<float>(variance), pointer<float>(gamma),
            pointer<float>(beta), pointer<E>(y), pointer<int32_t>(mask), eps, shape);
    });
}

void batch_norm_sums(uintptr_t dy, uintptr_t x, uintptr_t mask, uintptr_t mean, uintptr_t variance, uintptr_t out,
                     uintptr_t dresidual, float eps, int64_t R, int64_t N, int64_t C, int stored_as) {
    const Shape shape = checked(R, N, C);
    as_stored(stored_as, [&](auto kind) {
        using E = decltype(kind);
        const auto run = mask ? sums<true, E> : sums<false, E>;
        run(pointer<E>(dy), pointer<E>(x), pointer<int32_t>(mask), pointer<float>(mean), pointer<float>(variance),
            pointer<float>(out), pointer<E>(dresidual), eps, shape);
    });
}

void batch_norm_dx(uintptr_t dy, uintptr_t x, uintptr_t mask, uintptr_t mean, uintptr_t variance, uintptr_t gamma,
                   uintptr_t sums, uintptr_t out, float eps, int64_t count, int64_t R, int64_t N, int64_t C,
                   int stored_as) {
    const Shape shape = checked(R, N, C);
    require_at_least("batch_norm", "count", count, 1);
    as_stored(stored_as, [&](auto kind) {
        using E = decltype(kind);
        const auto run = mask ? dx<true, E> : dx<false, E>;
        run(pointer<E>(dy), pointer<E>(x), pointer<int32_t>(mask), pointer<float>(mean), pointer<float>(variance),
            pointer<float>(gamma), pointer<float>(sums), pointer<E>(out), eps, count, shape);
    });
}
