#include "adam.h"

#include <cmath>

#include "common/ahead.h"
#include "common/check.h"
#include "common/mixed_list.h"
#include "common/multi_tensor.h"

namespace {

// What is the same for every element, worked out once in double.
struct Numbers {
    float grad_scale, gradient_decay, keep;  // g = grad_scale g + gradient_decay p; p *= keep
    float beta1, take1, beta2, take2;
    float rate, inverse_root, eps;  // p -= rate m / (sqrt(v) inverse_root + eps)
};

void update(float* __restrict p, const float* __restrict g, float* __restrict m, float* __restrict v, int64_t n,
            const Numbers& x) {
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) {
        const float grad = x.grad_scale * g[k] + x.gradient_decay * p[k];
        const float first = x.beta1 * m[k] + x.take1 * grad;
        const float second = x.beta2 * v[k] + x.take2 * grad * grad;
        m[k] = first;
        v[k] = second;
        p[k] = x.keep * p[k] - x.rate * first / (std::sqrt(second) * x.inverse_root + x.eps);
    }
}

}  // namespace

void adam(uintptr_t params, uintptr_t grads, uintptr_t exp_avgs, uintptr_t exp_avg_sqs, uintptr_t copies,
          uintptr_t sizes, int64_t count, int grad_type, int copy_type, uintptr_t lr, uintptr_t step,
          uintptr_t grad_scale, uintptr_t found_inf, double beta1, double beta2, double eps, double weight_decay,
          bool decoupled) {
    const Line line("adam", sizes, count);
    const MixedList gradients("adam", grads, grad_type), rounded("adam", copies, copy_type);
    if (found_inf && *pointer<float>(found_inf) != 0) return;
    const double rate = *pointer<float>(lr), t = *pointer<float>(step);
    Numbers x;
    x.grad_scale = grad_scale ? *pointer<float>(grad_scale) : 1.0f;
    x.gradient_decay = static_cast<float>(decoupled ? 0 : weight_decay);
    x.keep = static_cast<float>(decoupled ? 1 - rate * weight_decay : 1);
    x.beta1 = static_cast<float>(beta1), x.take1 = static_cast<float>(1 - beta1);
    x.beta2 = static_cast<float>(beta2), x.take2 = static_cast<float>(1 - beta2);
    x.rate = static_cast<float>(rate / (1 - std::pow(beta1, t)));
    x.inverse_root = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, t)));
    x.eps = static_cast<float>(eps);
    const Ahead ahead(sizes, count, {gradients, {"adam", params}, {"adam", exp_avgs}, {"adam", exp_avg_sqs}, rounded});
    line.each([&](int64_t i, int64_t begin, int64_t end) {
        float* p = tensor<float>(params, i);
        float* m = tensor<float>(exp_avgs, i);
        float* v = tensor<float>(exp_avg_sqs, i);
        float block[kPiece];
        ahead.in_pieces(i, begin, end, [&](int64_t k, int64_t n) {
            update(p + k, gradients.read(i, k, n, block), m + k, v + k, n, x);
            rounded.write(i, k, n, p + k);
        });
    });
}
