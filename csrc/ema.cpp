#include "ema.h"

#include "common/ahead.h"
#include "common/check.h"
#include "common/mixed_list.h"
#include "common/multi_tensor.h"

void ema(uintptr_t averages, uintptr_t params, uintptr_t sizes, int64_t count, int param_type, uintptr_t decay,
         uintptr_t found_inf) {
    const Line line("ema", sizes, count);
    const MixedList weights("ema", params, param_type);
    if (found_inf && *pointer<float>(found_inf) != 0) return;
    const float keep = *pointer<float>(decay), take = 1 - keep;
    const Ahead ahead(sizes, count, {weights, {"ema", averages}});
    line.each([&](int64_t i, int64_t begin, int64_t end) {
        float block[kPiece];
        ahead.in_pieces(i, begin, end, [&](int64_t first, int64_t n) {
            float* average = tensor<float>(averages, i) + first;
            const float* w = weights.read(i, first, n, block);
#pragma omp simd
            for (int64_t k = 0; k < n; ++k) average[k] = keep * average[k] + take * w[k];
        });
    });
}
