#include "lars.h"

#include <cmath>

#include "common/ahead.h"
#include "common/mixed_list.h"
#include "common/squares.h"
#include "common/two_passes.h"

namespace {

// What is the same for every element of a tensor.
struct Numbers {
    float grad_scale, weight_decay;
    float momentum, take;  // b = momentum b + take (grad_scale g + weight_decay w)
    float rate;            // w -= rate b
};

void step(float* __restrict w, const float* __restrict g, float* __restrict b, int64_t n, const Numbers& x) {
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) {
        b[k] = x.momentum * b[k] + x.take * (x.grad_scale * g[k] + x.weight_decay * w[k]);
        w[k] -= x.rate * b[k];
    }
}

}  // namespace

void lars(uintptr_t params, uintptr_t grads, uintptr_t momentum_buffers, uintptr_t copies, uintptr_t sizes,
          int64_t count, int grad_type, int copy_type, uintptr_t weight_decays, uintptr_t adapted, uintptr_t lr,
          uintptr_t grad_scale, uintptr_t found_inf, double momentum, double eta, double eps, bool lr_inside) {
    const MixedList gradients("lars", grads, grad_type), rounded("lars", copies, copy_type);
    if (found_inf && *pointer<float>(found_inf) != 0) return;
    const float rate = *pointer<float>(lr), scale = grad_scale ? *pointer<float>(grad_scale) : 1.0f;
    const float before = lr_inside ? rate : 1, after = lr_inside ? 1 : rate;
    const float *decay = pointer<float>(weight_decays), *adapts = pointer<float>(adapted);

    const MixedList weights("lars", params), buffers("lars", momentum_buffers);
    const Ahead of_norms(sizes, count, {weights, gradients}),
        of_update(sizes, count, {weights, gradients, buffers, rounded});
    const auto norms = [&](int64_t i, int64_t begin, int64_t end, float*) {
        TwoSums squares;
        if (adapts[i] == 0) return squares;
        float block[kBlock];
        of_norms.in_pieces<kBlock>(i, begin, end, [&](int64_t k, int64_t n) {
            squares.add(
                {sum_of_squares(tensor<float>(params, i) + k, n), sum_of_squares(gradients.read(i, k, n, block), n)});
        });
        return squares;
    };
    const auto trust_ratio = [&](int64_t i, const TwoSums& squares) {
        const double weight = std::sqrt(squares.a), gradient = std::sqrt(squares.b) * std::fabs(scale);
        if (weight == 0 || gradient == 0) return 1.0f;
        return static_cast<float>(eta * weight / (gradient + decay[i] * weight + eps));
    };
    const auto update = [&](int64_t i, int64_t begin, int64_t end, float ratio, const float*) {
        const Numbers x{scale, decay[i], static_cast<float>(momentum), before * ratio, after};
        float block[kPiece];
        of_update.in_pieces(i, begin, end, [&](int64_t k, int64_t n) {
            float* w = tensor<float>(params, i) + k;
            step(w, gradients.read(i, k, n, block), tensor<float>(momentum_buffers, i) + k, n, x);
            rounded.write(i, k, n, w);
        });
    };
    two_passes("lars", sizes, count, norms, trust_ratio, update);
}
