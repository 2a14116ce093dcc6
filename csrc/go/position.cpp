#include "position.h"

#include <utility>

namespace go {

void Position::clear(int lines) {
    std::memset(static_cast<void*>(this), 0, bytes(lines));
    size = static_cast<uint8_t>(lines);
    to_move = kBlack;
    const Geometry& g = geometry(lines);
    for (int i = 0; i < g.cells; ++i) cells()[i].chain = kWall;
    for (int point = 0; point < g.points; ++point) cells()[g.cell_of[point]].chain = 0;
}

// Puts the stone and makes one chain of it and the `owns` chains beside it; `base` is the cell of the longest, 0: none.
void Position::join(int at, int colour, const uint16_t* own, int owns, int base) {
    Cell* const cell = cells();
    const int stride = size + 1, steps[4] = {-stride, -1, 1, stride};
    const int root = base ? base : at;
    const auto chain = static_cast<uint16_t>(root << 2 | colour);

    // What the new stone and the shorter chains add: empty cells beside them that aren't beside the longest chain.
    // None of them bears its name yet, so a look at a cell's neighbours tells.
    uint64_t counted[(kMostCells + 63) / 64];
    if (owns > 1) std::memset(counted, 0, sizeof counted);
    int added = 0;
    const auto count_beside = [&](int stone) {
        for (const int step : steps) {
            const int liberty = stone + step;
            if (cell[liberty].chain != 0 || liberty == at) continue;
            if (base && (cell[liberty - stride].chain == chain || cell[liberty - 1].chain == chain ||
                         cell[liberty + 1].chain == chain || cell[liberty + stride].chain == chain))
                continue;
            if (owns > 1) {  // several stones may share it
                uint64_t& word = counted[liberty / 64];
                const uint64_t bit = uint64_t{1} << liberty % 64;
                if (word & bit) continue;
                word |= bit;
            }
            ++added;
        }
    };
    count_beside(at);
    for (int i = 0; i < owns; ++i) {
        const int shorter = own[i] >> 2;
        if (shorter == base) continue;
        int stone = shorter;
        do {
            count_beside(stone);
            stone = cell[stone].next;
        } while (stone != shorter);
    }

    const int point = board().point_of[at];
    hash ^= kStoneNumbers[colour][point];
    words(colour)[point / 64] |= uint64_t{1} << point % 64;
    if (!base) {
        cell[at] = Cell{chain, static_cast<uint16_t>(at), static_cast<uint16_t>(added), 1};
        return;
    }
    cell[at] = Cell{chain, cell[base].next, 0, 0};
    cell[base].next = static_cast<uint16_t>(at);
    cell[base].stones += 1;
    for (int i = 0; i < owns; ++i) {
        const int shorter = own[i] >> 2;
        if (shorter == base) continue;
        cell[base].stones += cell[shorter].stones;
        int stone = shorter;
        do {
            cell[stone].chain = chain;
            stone = cell[stone].next;
        } while (stone != shorter);
        std::swap(cell[base].next, cell[shorter].next);  // two rings become one
    }
    cell[base].liberties += added;
}

bool own_eye(const Position& position, int colour, int at) {
    const Cell* const cell = position.cells();
    const int stride = position.size + 1;
    for (const int step : {-stride, -1, 1, stride}) {
        const int beside = cell[at + step].colour();
        if (beside != colour && beside != kWall) return false;
    }
    int enemies = 0, walls = 0;
    for (const int step : {-stride - 1, -stride + 1, stride - 1, stride + 1}) {
        enemies += cell[at + step].colour() == other(colour);
        walls += cell[at + step].colour() == kWall;
    }
    return enemies + (walls > 0) < 2;
}

}  // namespace go
