// Sums of squares, for norms.
#pragma once
#include <cstdint>

// Independent sums, so that no addition waits for the one before; pairwise in the end.
template <class Sum>
inline double sum_of_squares_in(const float* x, int64_t n) {
    constexpr int kSums = 64;
    Sum sums[kSums] = {};
    int64_t k = 0;
    for (; k + kSums <= n; k += kSums)
#pragma GCC unroll 64
        for (int j = 0; j < kSums; ++j) sums[j] += static_cast<Sum>(x[k + j]) * x[k + j];
    for (int j = 0; k + j < n; ++j) sums[j] += static_cast<Sum>(x[k + j]) * x[k + j];
    for (int half = kSums / 2; half > 0; half /= 2)
        for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
    return sums[0];
}

// The sum over one block (kBlock, mixed_list.h). In float where that is safe, which is most of the time: it takes half
// the time of double.
inline double sum_of_squares(const float* x, int64_t n) {
    const double sum = sum_of_squares_in<float>(x, n);
    return sum > 1e-30 && sum < 1e38 ? sum : sum_of_squares_in<double>(x, n);
}
