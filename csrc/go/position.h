// One position: stones with their chains and liberties, whose turn it is, the point that simple ko forbids. It is a
// flat run of bytes(size) bytes, 8-aligned, without pointers: memcpy copies it, and nothing here allocates. Superko
// needs the boards that came before, which the caller keeps (seen.h): a game in a table, a search along its path.
#pragma once
#include <cstdint>
#include <cstring>

#include "geometry.h"

namespace go {

// Why a move isn't one; the numbers are board.py's too.
enum Verdict : int32_t {
    kLegal = 0,
    kOccupied = 1,
    kSuicide = 2,
    kKo = 3,
    kSuperko = 4,   // the board after it was there before in this game, whoever was to move
    kOver = 5,      // two passes ended the game
    kFull = 6,      // the game has no room for another board
    kOffBoard = 7,  // no point of this board, and not the pass
};

constexpr int kStoneWords = (kMostPoints + 63) / 64;

// A board by bits: point p of Black is bit p % 64 of black[p / 64].
struct Stones {
    uint64_t black[kStoneWords], white[kStoneWords];
};

struct Cell {
    uint16_t chain;      // colour + 4 * the cell that stands for the chain; 0 where empty
    uint16_t next;       // a ring through the chain's stones
    uint16_t liberties;  // these two of the chain, right only in the cell that stands for it
    uint16_t stones;
    int colour() const { return chain & 3; }
    int root() const { return chain >> 2; }
};

// Appends what the list doesn't hold yet; whether it did.
inline bool add_new(uint16_t value, uint16_t* list, int* count) {
    for (int i = 0; i < *count; ++i)
        if (list[i] == value) return false;
    list[(*count)++] = value;
    return true;
}

struct Position {
    uint64_t hash;
    Stones stones;
    uint64_t vacated[kStoneWords];  // bit p % 64 of vacated[p / 64]: a stone was captured at point p in this game
    int32_t lost[3];                // stones captured so far, by their colour
    int32_t moves;                  // played so far, passes among them
    uint16_t ko;                    // the cell that simple ko forbids to the side to move; 0: none
    uint8_t size, to_move, passes;

    Position() = delete;
    Position(const Position&) = delete;

    static int64_t bytes(int size) {
        const int64_t all = sizeof(Position) + sizeof(Cell) * geometry(size).cells;
        return (all + 7) / 8 * 8;
    }
    Cell* cells() { return reinterpret_cast<Cell*>(this + 1); }
    const Cell* cells() const { return reinterpret_cast<const Cell*>(this + 1); }
    const Geometry& board() const { return geometry(size); }
    bool over() const { return passes >= 2; }

    void clear(int lines);
    void pass(int colour) {
        ko = 0;
        ++passes;
        ++moves;
        to_move = static_cast<uint8_t>(other(colour));
    }

    // By all rules but superko and the end of the game. `at` is a cell of the board.
    Verdict verdict(int colour, int at) const {
        const Cell* const cell = cells();
        if (cell[at].chain != 0) return kOccupied;
        if (at == ko && colour == to_move) return kKo;
        const int stride = size + 1;
        for (const int step : {-stride, -1, 1, stride}) {
            const Cell& beside = cell[at + step];
            if (beside.chain == 0) return kLegal;
            const int liberties = cell[beside.root()].liberties;
            if (beside.colour() == colour ? liberties > 1 : (beside.colour() == other(colour) && liberties == 1))
                return kLegal;
        }
        return kSuicide;
    }

    // The hash after a move for which verdict() says kLegal.
    uint64_t hash_after(int colour, int at) const {
        const Cell* const cell = cells();
        const auto& point_of = board().point_of;
        uint64_t after = hash ^ kStoneNumbers[colour][point_of[at]];
        const int stride = size + 1;
        uint16_t taken[4];
        int chains = 0;
        for (const int step : {-stride, -1, 1, stride}) {
            const Cell& beside = cell[at + step];
            if (beside.colour() != other(colour) || cell[beside.root()].liberties != 1) continue;
            if (!add_new(beside.chain, taken, &chains)) continue;
            int stone = beside.root();
            do {
                after ^= kStoneNumbers[other(colour)][point_of[stone]];
                stone = cell[stone].next;
            } while (stone != beside.root());
        }
        return after;
    }

    // Plays a move for which verdict() says kLegal. removed(cell) is called for each stone captured.
    template <class Removed>
    void play(int colour, int at, Removed&& removed) {
        Cell* const cell = cells();
        const int stride = size + 1, steps[4] = {-stride, -1, 1, stride};
        // The stone takes a liberty of each chain beside it, once. The longest of its own chains will hold it.
        uint16_t own[4], enemy[4];
        int owns = 0, enemies = 0, base = 0;
        for (const int step : steps) {
            const Cell& beside = cell[at + step];
            if (beside.colour() == colour) {
                if (!add_new(beside.chain, own, &owns)) continue;
                const int root = beside.root();
                --cell[root].liberties;
                if (base == 0 || cell[root].stones > cell[base].stones) base = root;
            } else if (beside.colour() == other(colour)) {
                if (add_new(beside.chain, enemy, &enemies)) --cell[beside.root()].liberties;
            }
        }
        int captured = 0, last_captured = 0;
        for (int i = 0; i < enemies; ++i) {
            const int root = enemy[i] >> 2;
            if (cell[root].liberties != 0) continue;
            captured += cell[root].stones;
            last_captured = root;
            remove(root, removed);
        }
        join(at, colour, own, owns, base);
        const Cell& stone = cell[at];
        // Only a lone stone that took one stone, and has no other liberty, can be taken back at once.
        ko = captured == 1 && base == 0 && stone.liberties == 1 ? static_cast<uint16_t>(last_captured) : uint16_t{0};
        lost[other(colour)] += captured;
        passes = 0;
        ++moves;
        to_move = static_cast<uint8_t>(other(colour));
    }

   private:
    uint64_t* words(int colour) { return colour == kBlack ? stones.black : stones.white; }

    template <class Removed>
    void remove(int root, Removed&& removed) {
        Cell* const cell = cells();
        const auto& point_of = board().point_of;
        const int colour = cell[root].colour(), stride = size + 1;
        uint64_t* const bits = words(colour);
        int stone = root;
        do {
            const int next = cell[stone].next, point = point_of[stone];
            // Its cell is a liberty now of each chain of the other side beside it, once.
            uint16_t chains[4];
            int count = 0;
            for (const int step : {-stride, -1, 1, stride}) {
                const Cell& beside = cell[stone + step];
                if (beside.colour() == other(colour) && add_new(beside.chain, chains, &count))
                    ++cell[beside.root()].liberties;
            }
            cell[stone] = Cell{};
            hash ^= kStoneNumbers[colour][point];
            bits[point / 64] &= ~(uint64_t{1} << point % 64);
            vacated[point / 64] |= uint64_t{1} << point % 64;
            removed(stone);
            stone = next;
        } while (stone != root);
    }

    void join(int at, int colour, const uint16_t* own, int owns, int base);
};

inline void copy(const Position& from, Position& to) {
    std::memcpy(static_cast<void*>(&to), static_cast<const void*>(&from), Position::bytes(from.size));
}

// A point that is `colour`'s own eye: own stones and the edge around it, and too few diagonal enemies to make it false.
bool own_eye(const Position& position, int colour, int at);

}  // namespace go
