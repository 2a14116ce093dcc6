#include "dot_interaction.h"

#include <cstring>
#include <vector>

#include "common/check.h"
#include "common/parallel.h"

namespace {

struct BFloat16 {
    uint16_t bits;
};

float load(float x) { return x; }
float load(BFloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
void store(float* to, float x) { *to = x; }
void store(BFloat16* to, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const bool nan = (bits & 0x7fffffff) > 0x7f800000;
    to->bits = nan ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <class E>
void fwd(const E* dense, const E* sparse, E* out, int64_t B, int64_t T, int64_t D) {
    parallel_shares(B, 1, [&](int64_t first, int64_t last) {
        for (int64_t b = first; b < last; ++b) {
            const E *x = dense + b * D, *rows = sparse + (b * T - 1) * D;
            E* o = out + b * (D + T * (T + 1) / 2);
            for (int64_t d = 0; d < D; ++d) o[d] = x[d];
            o += D;
            for (int64_t i = 1; i <= T; ++i)
                for (int64_t j = 0; j < i; ++j) {
                    const E *p = rows + i * D, *q = j ? rows + j * D : x;
                    float sum = 0;
#pragma omp simd reduction(+ : sum)
                    for (int64_t d = 0; d < D; ++d) sum += load(p[d]) * load(q[d]);
                    store(o++, sum);
                }
        }
    });
}

template <class E>
void bwd(const E* dense, const E* sparse, const E* dout, E* ddense, E* dsparse, int64_t B, int64_t T, int64_t D) {
    parallel_shares(B, 1, [&](int64_t first, int64_t last) {
        std::vector<float> sum(D);
        for (int64_t b = first; b < last; ++b) {
            const E *x = dense + b * D, *rows = sparse + (b * T - 1) * D;
            const E* g = dout + b * (D + T * (T + 1) / 2);
            for (int64_t i = 0; i <= T; ++i) {
                for (int64_t d = 0; d < D; ++d) sum[d] = i ? 0 : load(g[d]);
                for (int64_t j = 0; j <= T; ++j) {
                    if (j == i) continue;
                    const int64_t hi = i > j ? i : j, lo = i > j ? j : i;
                    const float s = load(g[D + hi * (hi - 1) / 2 + lo]);
                    const E* q = j ? rows + j * D : x;
                    for (int64_t d = 0; d < D; ++d) sum[d] += s * load(q[d]);
                }
                E* to = i ? dsparse + (b * T + i - 1) * D : ddense + b * D;
                for (int64_t d = 0; d < D; ++d) store(to + d, sum[d]);
            }
        }
    });
}

void check(int64_t B, int64_t T, int64_t D) {
    require_at_least("dot_interaction", "B", B, 0);
    require_at_least("dot_interaction", "T", T, 1);
    require_at_least("dot_interaction", "D", D, 1);
}

}  // namespace

void dot_interaction_fwd(uintptr_t dense, uintptr_t sparse, uintptr_t out, int64_t B, int64_t T, int64_t D, bool bf16) {
    check(B, T, D);
    if (bf16)
        fwd(pointer<BFloat16>(dense), pointer<BFloat16>(sparse), pointer<BFloat16>(out), B, T, D);
    else
        fwd(pointer<float>(dense), pointer<float>(sparse), pointer<float>(out), B, T, D);
}

void dot_interaction_bwd(uintptr_t dense, uintptr_t sparse, uintptr_t dout, uintptr_t ddense, uintptr_t dsparse,
                         int64_t B, int64_t T, int64_t D, bool bf16) {
    check(B, T, D);
    if (bf16)
        bwd(pointer<BFloat16>(dense), pointer<BFloat16>(sparse), pointer<BFloat16>(dout), pointer<BFloat16>(ddense),
            pointer<BFloat16>(dsparse), B, T, D);
    else
        bwd(pointer<float>(dense), pointer<float>(sparse), pointer<float>(dout), pointer<float>(ddense),
            pointer<float>(dsparse), B, T, D);
}
