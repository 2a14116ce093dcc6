// Random games from a position to its end.
#pragma once
#include <cstdint>
#include <vector>

#include "seen.h"

namespace go {

// Random bits by a counter: number i of stream s under a seed is a fixed value, whichever thread asks. SplitMix64,
// whose streams begin at scattered places of its one sequence.
class Random {
   public:
    Random(uint64_t seed, uint64_t stream) : counter_(mixed(mixed(seed + kGolden) + (stream + 1) * kGolden)) {}
    // [0, 1), in steps of 2^-53.
    double uniform() {
        counter_ += kGolden;
        return static_cast<double>(mixed(counter_) >> 11) * 0x1p-53;
    }
    // 0 .. count-1. Uneven by less than count / 2^32.
    int below(int count) {
        counter_ += kGolden;
        return static_cast<int>((mixed(counter_) >> 32) * static_cast<uint64_t>(count) >> 32);
    }

   private:
    uint64_t counter_;
};

// One thread's memory for playouts of one board size.
class Playouts {
   public:
    Playouts(int size, int64_t most_moves);

    // Plays from `start` until both passed, or for most_moves moves. Each is drawn with equal chances from the legal
    // moves: without `own_eyes` from those that fill no eye of the mover's own, and a pass only where there is none;
    // with it from all, the pass among them. `earlier` holds the boards of the game so far.
    // Returns the moves played; score() is the area then.
    int64_t run(const Position& start, const Seen& earlier, Random random, bool own_eyes);
    int score() const;

   private:
    int draw(const Seen& earlier, Random& random, bool own_eyes);

    Position& position() { return *reinterpret_cast<Position*>(position_.data()); }
    const Position& position() const { return *reinterpret_cast<const Position*>(position_.data()); }

    const int64_t most_moves_;
    std::vector<uint64_t> position_, slots_;
    Seen seen_;
    uint16_t empty_[kMostPoints];
    int empties_ = 0;
};

}  // namespace go
