#include "sgd.h"

#include <algorithm>
#include <vector>

#include "common/check.h"
#include "common/parallel.h"

namespace {
constexpr int64_t kChunk = 64 << 10;  // elements: large enough to hide the loop's cost, small enough to share out
}

void sgd(uintptr_t params, uintptr_t grads, uintptr_t sizes, int64_t count, uintptr_t lr, uintptr_t grad_scale,
         uintptr_t found_inf) {
    require_at_least("sgd", "count", count, 0);
    if (found_inf && *pointer<float>(found_inf) != 0) return;
    const float rate = *pointer<float>(lr) * (grad_scale ? *pointer<float>(grad_scale) : 1.0f);
    const int64_t* size = pointer<int64_t>(sizes);

    // All tensors lie one behind another on a line of elements; each thread takes one stretch of it.
    std::vector<int64_t> starts(count + 1, 0);
    for (int64_t i = 0; i < count; ++i) {
        require_at_least("sgd", "a tensor's size", size[i], 0);
        starts[i + 1] = starts[i] + size[i];
    }
    parallel_shares(starts[count], kChunk, [&](int64_t first, int64_t last) {
        int64_t i = std::upper_bound(starts.begin(), starts.end(), first) - starts.begin() - 1;
        for (; first < last; ++i) {
            const int64_t end = std::min(last, starts[i + 1]);
            float* w = reinterpret_cast<float*>(pointer<int64_t>(params)[i]) - starts[i];
            const float* g = reinterpret_cast<float*>(pointer<int64_t>(grads)[i]) - starts[i];
#pragma omp simd
            for (int64_t k = first; k < end; ++k) w[k] -= rate * g[k];
            first = end;
        }
    });
}
