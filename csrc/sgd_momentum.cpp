#include "sgd_momentum.h"

#include "common/ahead.h"
#include "common/check.h"
#include "common/mixed_list.h"
#include "common/multi_tensor.h"

namespace {

// What is the same for every element. With g = grad_scale grad + gradient_decay p:
struct Numbers {
    float grad_scale, gradient_decay;
    float keep, take;         // b = keep b + take g
    float direct, by_buffer;  // p -= direct g + by_buffer b
};

template <bool first>
void update(float* __restrict p, const float* __restrict g, float* __restrict b, int64_t n, const Numbers& x) {
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) {
        const float grad = x.grad_scale * g[k] + x.gradient_decay * p[k];
        b[k] = first ? x.take * grad : x.keep * b[k] + x.take * grad;
        p[k] -= x.direct * grad + x.by_buffer * b[k];
    }
}

}  // namespace

void sgd_momentum(uintptr_t params, uintptr_t grads, uintptr_t momentum_buffers, uintptr_t copies, uintptr_t sizes,
                  int64_t count, int grad_type, int copy_type, uintptr_t lr, uintptr_t step, uintptr_t grad_scale,
                  uintptr_t found_inf, double momentum, double dampening, bool nesterov, double weight_decay,
                  bool lr_inside) {
    const Line line("sgd_momentum", sizes, count);
    const MixedList gradients("sgd_momentum", grads, grad_type), rounded("sgd_momentum", copies, copy_type);
    if (found_inf && *pointer<float>(found_inf) != 0) return;
    const bool first = *pointer<float>(step) == 1;
    const double rate = *pointer<float>(lr), before = lr_inside ? rate : 1, after = lr_inside ? 1 : rate;
    Numbers x;
    x.grad_scale = grad_scale ? *pointer<float>(grad_scale) : 1.0f;
    x.gradient_decay = static_cast<float>(weight_decay);
    x.keep = static_cast<float>(momentum);
    x.take = static_cast<float>((first ? 1 : 1 - dampening) * before);
    x.direct = static_cast<float>(nesterov ? rate : 0);
    x.by_buffer = static_cast<float>((nesterov ? momentum : 1) * after);
    const Ahead ahead(sizes, count, {gradients, {"sgd_momentum", params}, {"sgd_momentum", momentum_buffers}, rounded});
    line.each([&](int64_t i, int64_t begin, int64_t end) {
        float* p = tensor<float>(params, i);
        float* b = tensor<float>(momentum_buffers, i);
        float block[kPiece];
        ahead.in_pieces(i, begin, end, [&](int64_t k, int64_t n) {
            (first ? update<true> : update<false>)(p + k, gradients.read(i, k, n, block), b + k, n, x);
            rounded.write(i, k, n, p + k);
        });
    });
}
