// What the network sees, and the eight symmetries of it. The planes are those of the C++ engine of MLPerf's reference
// (mlcommons/training, retired_benchmarks/minigo, cc/model/features.h); its Python engine differs in two.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#include "position.h"

namespace go {

constexpr int kPlanes = 13, kHistory = 3;

// out u8 [13, size, size], 0 or 1:
//   0 2 4 6   stones of the side to move now, and 1, 2, 3 positions ago (a pass makes a position too)
//   1 3 5 7   stones of the other side
//   8         ones where Black is to move
//   9 10 11   stones whose chain has 1, 2, 3 or more liberties
//   12        empty points where a legal move captures
// before[i] are the stones i + 1 positions ago, null where there was no such position: zeros.
// legal [points + 1] as of legal_moves().
void write_planes(const Position& position, const Stones* const before[kHistory], const uint8_t* legal, uint8_t* out);

// Symmetry s of a square array a is numpy.rot90(a.T if s & 4 else a, s & 3), its turns counter-clockwise.
class Symmetries {
   public:
    explicit Symmetries(int size);
    static int inverse(int symmetry) { return symmetry < 4 ? (4 - symmetry) % 4 : symmetry; }

    // The symmetry that applies `first` and then `next`.
    static int after(int next, int first) { return ((next + (next & 4 ? -first : first)) & 3) | ((next ^ first) & 4); }
    // Where a point lies in the symmetry.
    int place(int symmetry, int point) const { return source_[inverse(symmetry) * points_ + point]; }

    // to [count, size, size] = the symmetry of each of `from`, which it mustn't overlap.
    template <class Value>
    void apply(int symmetry, int64_t count, const Value* from, Value* to) const {
        const uint16_t* const source = source_.data() + int64_t{symmetry} * points_;
        for (int64_t i = 0; i < count; ++i, from += points_, to += points_)
            for (int point = 0; point < points_; ++point) to[point] = from[source[point]];
    }

   private:
    int points_;
    std::vector<uint16_t> source_;  // [8, points]
};

}  // namespace go
