// One row of a buffer of games (games.h): a position, the boards before it, and what superko asks.
#pragma once
#include <stdexcept>
#include <string>

#include "common/check.h"
#include "common/parallel.h"
#include "games.h"
#include "planes.h"
#include "seen.h"

namespace go {

constexpr uint64_t kMark = 0x31304F474F474F47u;  // begins each game: a buffer of anything else is refused
constexpr int64_t kMostStones = int64_t{1} << 20;
constexpr int64_t kGrain = 8;  // games that a thread takes at least: waking it costs as much as planes of some

struct Game {
    uint64_t mark;
    int32_t max_stones, stones_played;
    int32_t last;     // move; -1: none
    int32_t earlier;  // of `before`, how many there are
    Stones before[kHistory];

    Position& position() { return *reinterpret_cast<Position*>(this + 1); }
    const Position& position() const { return *reinterpret_cast<const Position*>(this + 1); }
    int64_t slots() const { return Seen::slots(max_stones + 1); }
    // The first board counts too.
    Seen seen() const {
        const char* const end = reinterpret_cast<const char*>(this + 1) + Position::bytes(position().size);
        return Seen(reinterpret_cast<uint64_t*>(const_cast<char*>(end)), slots());
    }
};

// A move of `side`: +1 Black, -1 White, 0 the side to move. Where the verdict isn't kLegal the game stays as it was.
Verdict play(Game& game, int64_t move, int side);

// The rows of a buffer, checked once.
class Table {
   public:
    Table(const char* op, uintptr_t games, int64_t count, int64_t stride)
        : rows_(pointer<char>(games)), stride_(stride) {
        require_at_least(op, "count", count, 0);
        for (int64_t i = 0; i < count; ++i) {
            const Game& game = (*this)[i];
            const bool is_one = stride >= static_cast<int64_t>(sizeof(Game) + sizeof(Position)) && game.mark == kMark &&
                                game.position().size >= kLeastSize && game.position().size <= kMostSize &&
                                stride == go_game_bytes(game.position().size, game.max_stones);
            if (!is_one || game.position().size != (*this)[0].position().size)
                throw std::invalid_argument(std::string(op) + ": row " + std::to_string(i) + " of the buffer " +
                                            (is_one ? "has a board of another size than row 0" : "holds no game"));
        }
    }
    Game& operator[](int64_t i) const { return *reinterpret_cast<Game*>(rows_ + i * stride_); }

   private:
    char* rows_;
    int64_t stride_;
};

template <class Body>
void for_each_game(int64_t count, Body&& body) {
    parallel_pieces(count, kGrain, 1, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) body(i);
    });
}

inline void require_range(const char* op, const char* name, int64_t value, int64_t least, int64_t most) {
    if (value < least || value > most)
        throw std::invalid_argument(std::string(op) + ": " + name + " is " + std::to_string(value) + "; expected " +
                                    std::to_string(least) + " to " + std::to_string(most));
}

}  // namespace go
