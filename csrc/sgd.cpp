#include "sgd.h"

#include "common/ahead.h"
#include "common/check.h"
#include "common/multi_tensor.h"

void sgd(uintptr_t params, uintptr_t grads, uintptr_t sizes, int64_t count, uintptr_t lr, uintptr_t grad_scale,
         uintptr_t found_inf) {
    const Line line("sgd", sizes, count);
    if (found_inf && *pointer<float>(found_inf) != 0) return;
    const float rate = *pointer<float>(lr) * (grad_scale ? *pointer<float>(grad_scale) : 1.0f);
    const Ahead ahead(sizes, count, {{"sgd", params}, {"sgd", grads}});
    line.each([&](int64_t i, int64_t begin, int64_t end) {
        ahead.in_pieces(i, begin, end, [&](int64_t first, int64_t n) {
            float* w = tensor<float>(params, i) + first;
            const float* g = tensor<float>(grads, i) + first;
#pragma omp simd
            for (int64_t k = 0; k < n; ++k) w[k] -= rate * g[k];
        });
    });
}
