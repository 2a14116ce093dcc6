#include "lamb.h"

#include <cmath>

#include "common/ahead.h"
#include "common/mixed_list.h"
#include "common/two_passes.h"

namespace {

// What is the same for every element, worked out once in double.
struct Numbers {
    float scale;                          // g' = scale g
    float beta1, take1, beta2, take2;     // m = beta1 m + take1 g'; v = beta2 v + take2 g'^2
    float correction, inverse_root, eps;  // u = correction m / (sqrt(v) inverse_root + eps) + weight_decay w
};

Numbers numbers(uintptr_t step, double beta1, double beta2, double eps, bool bias_correction) {
    Numbers x{};
    const double t = *pointer<float>(step);
    x.beta1 = static_cast<float>(beta1), x.beta2 = static_cast<float>(beta2);
    x.take2 = static_cast<float>(1 - beta2);
    x.correction = static_cast<float>(bias_correction ? 1 / (1 - std::pow(beta1, t)) : 1);
    x.inverse_root = static_cast<float>(bias_correction ? 1 / std::sqrt(1 - std::pow(beta2, t)) : 1);
    x.eps = static_cast<float>(eps);
    return x;
}

void add_gradient(Numbers* x, uintptr_t grad_norm, uintptr_t grad_scale, double beta1, double max_grad_norm,
                  bool grad_averaging) {
    const double norm = grad_norm ? *pointer<double>(grad_norm) : 0;
    const double clip = norm > max_grad_norm ? max_grad_norm / norm : 1;
    x->scale = static_cast<float>(clip * (grad_scale ? *pointer<float>(grad_scale) : 1.0f));
    x->take1 = static_cast<float>(grad_averaging ? 1 - beta1 : 1);
}

inline float direction(const Numbers& x, float m, float v, float w, float decay) {
    return x.correction * m / (std::sqrt(v) * x.inverse_root + x.eps) + decay * w;
}

// The first pass over one block; returns the sums of w^2 and u^2.
TwoSums moments(const float* __restrict w, const float* __restrict g, float* __restrict m, float* __restrict v,
                float* __restrict u, int64_t n, const Numbers& x, float decay) {
    float ww = 0, uu = 0;
#pragma omp simd reduction(+ : ww, uu)
    for (int64_t k = 0; k < n; ++k) {
        const float grad = x.scale * g[k];
        m[k] = x.beta1 * m[k] + x.take1 * grad;
        v[k] = x.beta2 * v[k] + x.take2 * grad * grad;
        u[k] = direction(x, m[k], v[k], w[k], decay);
        ww += w[k] * w[k];
        uu += u[k] * u[k];
    }
    return {ww, uu};
}

void directions(const float* __restrict w, const float* __restrict m, const float* __restrict v, float* __restrict u,
                int64_t n, const Numbers& x, float decay) {
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) u[k] = direction(x, m[k], v[k], w[k], decay);
}

void subtract(float* __restrict w, const float* __restrict u, float rate, int64_t n) {
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) w[k] -= rate * u[k];
}

float trust_ratio(float adapted, const TwoSums& squares) {
    const bool both = squares.a > 0 && squares.b > 0;
    return adapted != 0 && both ? static_cast<float>(std::sqrt(squares.a) / std::sqrt(squares.b)) : 1.0f;
}

// The lists, as the functions' arguments name them, and the two passes over a part of one tensor.
struct Lists {
    uintptr_t params, exp_avgs, exp_avg_sqs, sizes;
    int64_t count;
    uintptr_t weight_decays;
    MixedList grads, copies;
    Ahead ahead{sizes, count, {grads, {"lamb", params}, {"lamb", exp_avgs}, {"lamb", exp_avg_sqs}}};  // of the first

    // `keep` receives the directions of the whole part, if it isn't nullptr.
    TwoSums first(int64_t i, int64_t begin, int64_t end, float* keep, const Numbers& x) const {
        TwoSums sums;
        float block[kPiece], u[kPiece];
        ahead.in_pieces(i, begin, end, [&](int64_t k, int64_t n) {
            sums.add(moments(tensor<float>(params, i) + k, grads.read(i, k, n, block), tensor<float>(exp_avgs, i) + k,
                             tensor<float>(exp_avg_sqs, i) + k, keep ? keep + (k - begin) : u, n, x, decay(i)));
        });
        return sums;
    }
    void second(int64_t i, int64_t begin, int64_t end, float rate, const float* kept, const Numbers& x) const {
        float u[kBlock];
        in_blocks(begin, end, [&](int64_t k, int64_t n) {
            float* w = tensor<float>(params, i) + k;
            if (!kept)
                directions(w, tensor<float>(exp_avgs, i) + k, tensor<float>(exp_avg_sqs, i) + k, u, n, x, decay(i));
            subtract(w, kept ? kept + (k - begin) : u, rate, n);
            copies.write(i, k, n, w);
        });
    }
    float decay(int64_t i) const { return pointer<float>(weight_decays)[i]; }
};

bool skipped(uintptr_t found_inf) { return found_inf && *pointer<float>(found_inf) != 0; }

}  // namespace

void lamb(uintptr_t params, uintptr_t grads, uintptr_t exp_avgs, uintptr_t exp_avg_sqs, uintptr_t copies,
          uintptr_t sizes, int64_t count, int grad_type, int copy_type, uintptr_t weight_decays, uintptr_t adapted,
          uintptr_t lr, uintptr_t step, uintptr_t grad_norm, uintptr_t grad_scale, uintptr_t found_inf, double beta1,
          double beta2, double eps, double max_grad_norm, bool grad_averaging, bool bias_correction) {
    const Lists lists{params,
                      exp_avgs,
                      exp_avg_sqs,
                      sizes,
                      count,
                      weight_decays,
                      {"lamb", grads, grad_type},
                      {"lamb", copies, copy_type}};
    if (skipped(found_inf)) return;
    Numbers x = numbers(step, beta1, beta2, eps, bias_correction);
    add_gradient(&x, grad_norm, grad_scale, beta1, max_grad_norm, grad_averaging);
    const float rate = *pointer<float>(lr);
    two_passes(
        "lamb", sizes, count,
        [&](int64_t i, int64_t begin, int64_t end, float* keep) { return lists.first(i, begin, end, keep, x); },
        [&](int64_t i, const TwoSums& sums) { return rate * trust_ratio(pointer<float>(adapted)[i], sums); },
        [&](int64_t i, int64_t begin, int64_t end, float its_rate, const float* kept) {
            lists.second(i, begin, end, its_rate, kept, x);
        });
}

void lamb_moments(uintptr_t params, uintptr_t grads, uintptr_t exp_avgs, uintptr_t exp_avg_sqs, uintptr_t sizes,
                  int64_t count, int grad_type, uintptr_t squares, uintptr_t weight_decays, uintptr_t step,
                  uintptr_t grad_norm, uintptr_t grad_scale, uintptr_t found_inf, double beta1, double beta2,
                  double eps, double max_grad_norm, bool grad_averaging, bool bias_correction) {
    const Lists lists{params,
                      exp_avgs,
                      exp_avg_sqs,
                      sizes,
                      count,
                      weight_decays,
                      {"lamb_moments", grads, grad_type},
                      {"lamb_moments", 0, kFloat32}};
    const Line line("lamb_moments", sizes, count, kBlock);
    double* totals = pointer<double>(squares);
    std::fill(totals, totals + 2 * count, 0.0);
    if (skipped(found_inf)) return;
    Numbers x = numbers(step, beta1, beta2, eps, bias_correction);
    add_gradient(&x, grad_norm, grad_scale, beta1, max_grad_norm, grad_averaging);
    // Cut by chunk and by tensor: each next part has the next chunk or the next tensor, so their sum numbers it.
    const int64_t chunks = (line.total() + kChunk - 1) / kChunk;
    std::vector<TwoSums> sums(chunks + count);
    parallel_pieces(chunks, 1, 1, [&](int64_t first, int64_t last) {
        for (int64_t chunk = first; chunk < last; ++chunk)
            line.walk(chunk * kChunk, std::min((chunk + 1) * kChunk, line.total()),
                      [&](int64_t i, int64_t begin, int64_t end) {
                          sums[chunk + i] = lists.first(i, begin, end, nullptr, x);
                      });
    });
    for (int64_t i = 0; i < count; ++i) {
        TwoSums all;
        const int64_t end = line.start(i + 1);
        for (int64_t at = line.start(i); at < end; at = (at / kChunk + 1) * kChunk) all.add(sums[at / kChunk + i]);
        totals[2 * i] = all.a, totals[2 * i + 1] = all.b;
    }
}

void lamb_apply(uintptr_t params, uintptr_t exp_avgs, uintptr_t exp_avg_sqs, uintptr_t copies, uintptr_t sizes,
                int64_t count, int copy_type, uintptr_t squares, uintptr_t weight_decays, uintptr_t adapted,
                uintptr_t lr, uintptr_t step, uintptr_t found_inf, double beta1, double beta2, double eps,
                bool bias_correction) {
    const Lists lists{params,
                      exp_avgs,
                      exp_avg_sqs,
                      sizes,
                      count,
                      weight_decays,
                      {"lamb_apply", 0, kFloat32},
                      {"lamb_apply", copies, copy_type}};
    const Line line("lamb_apply", sizes, count);
    if (skipped(found_inf)) return;
    const Numbers x = numbers(step, beta1, beta2, eps, bias_correction);
    const float rate = *pointer<float>(lr);
    line.each([&](int64_t i, int64_t begin, int64_t end) {
        const double* its = pointer<double>(squares) + 2 * i;
        const float ratio = trust_ratio(pointer<float>(adapted)[i], {its[0], its[1]});
        lists.second(i, begin, end, rate * ratio, nullptr, x);
    });
}
