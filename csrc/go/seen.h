// The boards of a game, by their hashes: what positional superko asks. Open addressing in memory that the caller owns.
#pragma once
#include <cstdint>

#include "position.h"

namespace go {

class Seen {
   public:
    // slots: zeros, a power of two of them, more than the boards that it will hold.
    Seen(uint64_t* slots, int64_t count) : slots_(slots), mask_(static_cast<uint64_t>(count) - 1) {}

    // Slots for so many boards, at most half of them used.
    static int64_t slots(int64_t boards) {
        int64_t count = 16;
        while (count < 2 * boards) count *= 2;
        return count;
    }
    bool contains(uint64_t hash) const {
        for (uint64_t i = hash & mask_; slots_[i] != 0; i = (i + 1) & mask_)
            if (slots_[i] == hash) return true;
        return false;
    }
    // The empty board's 0 leaves the slots as they are: no move leads back to it.
    void insert(uint64_t hash) {
        uint64_t i = hash & mask_;
        while (slots_[i] != 0 && slots_[i] != hash) i = (i + 1) & mask_;
        slots_[i] = hash;
    }

   private:
    uint64_t* slots_;
    uint64_t mask_;
};

// By all rules but the end of the game. seen(hash) tells whether a board was there before.
template <class SeenBefore>
Verdict full_verdict(const Position& position, int colour, int at, SeenBefore&& seen) {
    const Verdict verdict = position.verdict(colour, at);
    if (verdict != kLegal) return verdict;
    // A board that comes back has this stone: one stood there before, and was taken.
    const int point = position.board().point_of[at];
    if (!(position.vacated[point / 64] >> point % 64 & 1)) return kLegal;
    return seen(position.hash_after(colour, at)) ? kSuperko : kLegal;
}

// legal [points + 1], the pass last: 1 for what the side to move may play. After the game's end that is nothing.
template <class SeenBefore>
void legal_moves(const Position& position, SeenBefore&& seen, uint8_t* legal) {
    const Geometry& g = position.board();
    const bool going = !position.over();
    for (int point = 0; point < g.points; ++point)
        legal[point] = going && full_verdict(position, position.to_move, g.cell_of[point], seen) == kLegal;
    legal[g.points] = going;
}

}  // namespace go
