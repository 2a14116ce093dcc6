#include "playout.h"

#include <algorithm>

#include "area.h"

namespace go {

Playouts::Playouts(int size, int64_t most_moves)
    : most_moves_(most_moves),
      position_(Position::bytes(size) / 8),
      slots_(Seen::slots(most_moves)),
      seen_(slots_.data(), static_cast<int64_t>(slots_.size())) {}

// The place in empty_ of the cell to play; -1: pass. The list's order changes.
int Playouts::draw(const Seen& earlier, Random& random, bool own_eyes) {
    const Position& now = position();
    const int colour = now.to_move;
    const auto repeats = [&](uint64_t hash) { return seen_.contains(hash) || earlier.contains(hash); };
    // What is refused goes behind the candidates: none is asked twice. A pass that is as likely as a point is one more.
    for (int candidates = empties_; candidates + own_eyes > 0;) {
        const int place = random.below(candidates + own_eyes);
        if (place == candidates) return -1;
        const int at = empty_[place];
        if ((own_eyes || !own_eye(now, colour, at)) && full_verdict(now, colour, at, repeats) == kLegal) return place;
        std::swap(empty_[place], empty_[--candidates]);
    }
    return -1;
}

int64_t Playouts::run(const Position& start, const Seen& earlier, Random random, bool own_eyes) {
    Position& now = position();
    copy(start, now);
    std::fill(slots_.begin(), slots_.end(), 0);
    const Geometry& g = now.board();
    empties_ = 0;
    for (int point = 0; point < g.points; ++point)
        if (now.cells()[g.cell_of[point]].chain == 0) empty_[empties_++] = g.cell_of[point];
    int64_t moves = 0;
    for (; moves < most_moves_ && !now.over(); ++moves) {
        const int colour = now.to_move, place = draw(earlier, random, own_eyes);
        if (place < 0) {
            now.pass(colour);
            continue;
        }
        const int at = empty_[place];
        empty_[place] = empty_[--empties_];
        now.play(colour, at, [&](int captured) { empty_[empties_++] = static_cast<uint16_t>(captured); });
        seen_.insert(now.hash);
    }
    return moves;
}

int Playouts::score() const {
    int8_t owner[kMostPoints];
    return area(position(), owner);
}

}  // namespace go
