#include "planes.h"

#include <algorithm>

namespace go {
namespace {

void write_bits(const uint64_t* words, int points, uint8_t* out) {
    for (int first = 0; first < points; first += 64) {
        const uint64_t word = words[first / 64];
        const int count = std::min(64, points - first);
        for (int i = 0; i < count; ++i) out[first + i] = word >> i & 1;
    }
}

}  // namespace

void write_planes(const Position& position, const Stones* const before[kHistory], const uint8_t* legal, uint8_t* out) {
    const Geometry& g = position.board();
    const int points = g.points;
    const bool black = position.to_move == kBlack;
    for (int age = 0; age <= kHistory; ++age) {
        const Stones* const then = age == 0 ? &position.stones : before[age - 1];
        uint8_t* const plane = out + 2 * age * points;
        if (then == nullptr) {
            std::memset(plane, 0, 2 * points);
            continue;
        }
        write_bits(black ? then->black : then->white, points, plane);
        write_bits(black ? then->white : then->black, points, plane + points);
    }
    std::memset(out + 8 * points, black, points);

    const Cell* const cell = position.cells();
    const int enemy = other(position.to_move);
    uint8_t* const liberties = out + 9 * points;
    std::memset(liberties, 0, 4 * points);
    for (int point = 0; point < points; ++point) {
        const int at = g.cell_of[point];
        if (cell[at].chain != 0) {
            const int count = std::min<int>(cell[cell[at].root()].liberties, 3);
            liberties[(count - 1) * points + point] = 1;
            continue;
        }
        if (!legal[point]) continue;
        for (const int step : {-g.stride, -1, 1, g.stride}) {
            const Cell& beside = cell[at + step];
            if (beside.colour() == enemy && cell[beside.root()].liberties == 1) liberties[3 * points + point] = 1;
        }
    }
}

Symmetries::Symmetries(int size) : points_(size * size), source_(8 * points_) {
    for (int symmetry = 0; symmetry < 8; ++symmetry)
        for (int point = 0; point < points_; ++point) {
            int row = point / size, column = point % size;
            for (int turn = 0; turn < (symmetry & 3); ++turn) {
                const int old = row;
                row = column;
                column = size - 1 - old;
            }
            if (symmetry & 4) std::swap(row, column);
            source_[symmetry * points_ + point] = static_cast<uint16_t>(row * size + column);
        }
}

}  // namespace go
