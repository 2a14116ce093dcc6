// Boards of 5 to 19 lines. A *point* is row * size + column, counted from the top left: the index in policies and
// planes; size * size is the pass. A *cell* is its place on a board with a wall around it, one column of which serves
// both sides, so that neighbours are fixed steps away: -stride, -1, +1, +stride.
#pragma once
#include <array>
#include <cstdint>

namespace go {

constexpr int kLeastSize = 5, kMostSize = 19;
constexpr int kMostPoints = kMostSize * kMostSize;
constexpr int kMostCells = (kMostSize + 2) * (kMostSize + 1) + 1;

enum Colour : uint8_t { kEmpty = 0, kBlack = 1, kWhite = 2, kWall = 3 };
constexpr int other(int colour) { return kBlack + kWhite - colour; }

struct Geometry {
    int size = 0, stride = 0, points = 0, cells = 0;
    std::array<uint16_t, kMostPoints> cell_of{};
    std::array<uint16_t, kMostCells> point_of{};  // of walls: 0

    constexpr explicit Geometry(int lines)
        : size(lines), stride(lines + 1), points(lines * lines), cells((lines + 2) * (lines + 1) + 1) {
        for (int point = 0; point < points; ++point) {
            const int cell = (point / size + 1) * stride + point % size + 1;
            cell_of[point] = static_cast<uint16_t>(cell);
            point_of[cell] = static_cast<uint16_t>(point);
        }
    }
};

inline constexpr std::array<Geometry, kMostSize - kLeastSize + 1> kGeometries = {
    Geometry(5),  Geometry(6),  Geometry(7),  Geometry(8),  Geometry(9),  Geometry(10), Geometry(11), Geometry(12),
    Geometry(13), Geometry(14), Geometry(15), Geometry(16), Geometry(17), Geometry(18), Geometry(19),
};
inline const Geometry& geometry(int size) { return kGeometries[size - kLeastSize]; }

// The output function of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection in which every bit depends on all.
constexpr uint64_t mixed(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;

// A board's hash is the exclusive or of its stones' numbers, by colour and point; an empty board's is 0. Two different
// boards of one game share a hash with a chance of about (moves squared) / 2^65.
constexpr std::array<std::array<uint64_t, kMostPoints>, 3> stone_numbers() {
    std::array<std::array<uint64_t, kMostPoints>, 3> numbers{};
    for (int colour = kBlack; colour <= kWhite; ++colour)
        for (int point = 0; point < kMostPoints; ++point)
            numbers[colour][point] = mixed(static_cast<uint64_t>(colour * kMostPoints + point) * kGolden);
    return numbers;
}
inline constexpr auto kStoneNumbers = stone_numbers();

}  // namespace go
