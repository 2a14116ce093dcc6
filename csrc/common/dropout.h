// Which elements dropout keeps, by a counter: backward computes it again, so that no mask is stored.
//
// Element (row, col) of a matrix has 16 random bits and is kept when they are >= threshold = 65,536 p, rounded. They
// are half-word col % 8, the low half of a word first, of Philox 4x32 with 7 rounds, the fewest that pass BigCrush
// (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC'11):
//   counter = col / 8, row, step, site    key = seed, low word and high word
// state [2] int64 = seed, step. ops/dropout.py has the same in PyTorch, kernels/dropout.py in Triton.
#pragma once
#include <cstdint>
#include <utility>

#include "simd.h"

constexpr int kDropoutRounds = 7;
constexpr int64_t kDropoutPad = 64;  // elements: what one turn of the widest registers writes

class Dropout {
   public:
    // threshold 0 drops nothing, and `state` may be null then.
    Dropout(const int64_t* state, int64_t site, int64_t threshold)
        : threshold(static_cast<uint16_t>(threshold)),
          scale(static_cast<float>(65536.0 / static_cast<double>(65536 - threshold))),
          site_(static_cast<uint32_t>(site)) {
        if (state == nullptr) return;
        uint32_t low = static_cast<uint32_t>(state[0]), high = static_cast<uint32_t>(state[0] >> 32);
        for (Wide* key = keys_; key < keys_ + 2 * kDropoutRounds; key += 2) {
            key[0] = both(low), key[1] = both(high);
            low += 0x9E3779B9u, high += 0xBB67AE85u;
        }
        step_ = static_cast<uint32_t>(state[1]);
    }

    // bits[0 .. cols) of the columns from `first` on, a multiple of 8; and up to padded(cols) of no meaning.
    void row(uint16_t* bits, int64_t row, int64_t cols, int64_t first = 0) const {
        Wide lane;
        for (int i = 0; i < kWide; ++i) lane[i] = i;
        for (int64_t group = 0; 8 * group < cols; group += kWide) {
            Wide x[4] = {lane + static_cast<uint64_t>(first / 8 + group), both(static_cast<uint32_t>(row)), both(step_),
                         both(site_)};
#pragma GCC unroll 7
            for (int round = 0; round < kDropoutRounds; ++round) {
                // Only the low half of a lane counts; what stands above it is never read.
                const Wide first = product(x[0], 0xD2511F53u), second = product(x[2], 0xCD9E8D57u);
                x[0] = (second >> 32) ^ (x[1] ^ keys_[2 * round]);
                x[2] = (first >> 32) ^ (x[3] ^ keys_[2 * round + 1]);
                x[1] = second, x[3] = first;
            }
            const Wide front = (x[0] & both(~0u)) | (x[1] << 32), back = (x[2] & both(~0u)) | (x[3] << 32);
            in_turn(bits + 8 * group, front, back, std::make_index_sequence<kWide>());
        }
    }

    // v with 0 for what is dropped by the first kLanes of bits, and the rest scaled.
    Vec apply(const uint16_t* bits, Vec v) const {
        typedef uint16_t Bits __attribute__((vector_size(kLanes * sizeof(uint16_t))));
        typedef int Lanes __attribute__((vector_size(sizeof(Vec))));
        Bits found;
        std::memcpy(&found, bits, sizeof(found));
        return __builtin_convertvector(found, Lanes) < static_cast<int>(threshold) ? Vec{} : v * scale;
    }

    static int64_t padded(int64_t cols) { return (cols + kDropoutPad - 1) / kDropoutPad * kDropoutPad; }

    const uint16_t threshold;
    const float scale;  // of what is kept: 1 / (1 - threshold / 65,536)

   private:
    typedef uint64_t Wide __attribute__((vector_size(sizeof(Vec))));
    static constexpr int kWide = kLanes / 2;

    static Wide both(uint32_t x) { return Wide{} + x; }

    // Of the low halves of all lanes.
    static Wide product(Wide a, uint32_t b) {
#if defined(__AVX512F__)
        return (Wide)_mm512_mul_epu32((__m512i)a, (__m512i)both(b));
#elif defined(__AVX2__)
        return (Wide)_mm256_mul_epu32((__m256i)a, (__m256i)both(b));
#elif defined(__SSE2__)
        return (Wide)_mm_mul_epu32((__m128i)a, (__m128i)both(b));
#else
        return (a & both(~0u)) * b;
#endif
    }

    // a0 b0 a1 b1 ...
    template <size_t... I>
    static void in_turn(uint16_t* to, Wide a, Wide b, std::index_sequence<I...>) {
        constexpr uint64_t kHalf = kWide / 2;
        constexpr Wide kFirst = {(I / 2 + I % 2 * kWide)...}, kSecond = {(kHalf + I / 2 + I % 2 * kWide)...};
        const Wide first = __builtin_shuffle(a, b, kFirst), second = __builtin_shuffle(a, b, kSecond);
        std::memcpy(to, &first, sizeof(first));
        std::memcpy(to + sizeof(first) / sizeof(*to), &second, sizeof(second));
    }

    Wide keys_[2 * kDropoutRounds];  // of each round; made once, since a row may be short
    const uint32_t site_;
    uint32_t step_ = 0;
};
