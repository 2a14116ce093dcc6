#include "grad_norm.h"

#include <cmath>
#include <vector>

#include "common/ahead.h"
#include "common/mixed_list.h"
#include "common/multi_tensor.h"
#include "common/squares.h"

void grad_norm(uintptr_t grads, uintptr_t sizes, uintptr_t counts, uintptr_t grad_scale, uintptr_t found_inf,
               uintptr_t norm, bool unscale) {
    const int64_t* of_type = pointer<int64_t>(counts);
    const int64_t first_16bit = of_type[kFloat32], first_half = first_16bit + of_type[kBFloat16];
    const int64_t count = first_half + of_type[kFloat16];
    const Line line("grad_norm", sizes, count, kBlock);
    const MixedList lists[] = {
        {"grad_norm", grads, kFloat32}, {"grad_norm", grads, kBFloat16}, {"grad_norm", grads, kFloat16}};
    const float scale = grad_scale ? *pointer<float>(grad_scale) : 1.0f;
    const int64_t total = line.total(), chunks = (total + kChunk - 1) / kChunk;
    const Ahead ahead[] = {
        {sizes, count, {lists[kFloat32]}}, {sizes, count, {lists[kBFloat16]}}, {sizes, count, {lists[kFloat16]}}};
    std::vector<double> sums(chunks, 0.0);  // one a chunk, not one a thread: the same sums whoever takes a chunk
    parallel_pieces(chunks, 1, 1, [&](int64_t first, int64_t last) {
        float block[kBlock];
        for (int64_t chunk = first; chunk < last; ++chunk) {
            line.walk(chunk * kChunk, std::min((chunk + 1) * kChunk, total),
                      [&](int64_t i, int64_t begin, int64_t end) {
                          const int type = i < first_16bit ? kFloat32 : i < first_half ? kBFloat16 : kFloat16;
                          const MixedList& list = lists[type];
                          ahead[type].in_pieces<kBlock>(i, begin, end, [&](int64_t k, int64_t n) {
                              const float* g = list.read(i, k, n, block);
                              sums[chunk] += sum_of_squares(g, n);
                              if (!unscale) return;
                              float* to = i < first_16bit ? tensor<float>(grads, i) + k : block;
                              for (int64_t j = 0; j < n; ++j) to[j] = scale * g[j];
                              if (to == block) list.write(i, k, n, block);
                          });
                      });
        }
    });
    double sum = 0;
    for (const double part : sums) sum += part;
    if (found_inf && !std::isfinite(sum)) *pointer<float>(found_inf) = 1;
    *pointer<double>(norm) = std::sqrt(sum) * scale;
}
