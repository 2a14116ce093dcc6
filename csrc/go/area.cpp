#include "area.h"

#include <algorithm>

namespace go {
namespace {

// Connected cells for which inside(cell) holds, found from `start` on and appended to `list`; `mark` [cells] gets `id`
// there, and is 0 before. Returns the list's new end.
template <class Inside>
int flood(int start, int stride, uint16_t* list, int end, uint16_t* mark, uint16_t id, Inside&& inside) {
    int at = end;
    list[end++] = static_cast<uint16_t>(start);
    mark[start] = id;
    for (; at < end; ++at)
        for (const int step : {-stride, -1, 1, stride}) {
            const int beside = list[at] + step;
            if (mark[beside] != 0 || !inside(beside)) continue;
            mark[beside] = id;
            list[end++] = static_cast<uint16_t>(beside);
        }
    return end;
}

struct Region {
    int begin, end;  // in the list of cells
    int interior;    // empty cells that touch no chain of the colour
    int vitals;
    uint16_t vital[4];  // cells that stand for the chains to which it is vital
    bool alive;
};

// One colour's chains and regions; run(owned) calls owned(cell) for what is pass-alive.
class Benson {
   public:
    Benson(const Position& position, int colour)
        : cell_(position.cells()), g_(position.board()), colour_(colour), stride_(position.size + 1) {
        for (int point = 0; point < g_.points; ++point) {
            const int at = g_.cell_of[point];
            if (cell_[at].colour() != colour || cell_[at].root() != at) continue;
            chains_[count_++] = static_cast<uint16_t>(at);
            alive_[at] = true;
        }
        living_ = count_;
    }

    template <class Owned>
    void run(Owned&& owned) {
        if (count_ == 0) return;
        find_regions();
        while (drop_chains() && living_ > 0)
            for (int i = 0; i < regions_; ++i) region_[i].alive = region_[i].alive && walls_alive(region_[i]);
        if (living_ == 0) return;
        for (int i = 0; i < count_; ++i) {
            if (!alive_[chains_[i]]) continue;
            int stone = chains_[i];
            do {
                owned(stone);
                stone = cell_[stone].next;
            } while (stone != chains_[i]);
        }
        for (int i = 0; i < regions_; ++i) {
            const Region& region = region_[i];
            if (!region.alive || region.interior > 1) continue;
            for (int k = region.begin; k < region.end; ++k) owned(list_[k]);
        }
    }

   private:
    void find_regions() {
        uint16_t mark[kMostCells] = {};
        int end = 0;
        for (int point = 0; point < g_.points; ++point) {
            const int start = g_.cell_of[point];
            if (mark[start] != 0 || cell_[start].colour() == colour_) continue;
            const int begin = end;
            end = flood(start, stride_, list_, end, mark, 1,
                        [&](int at) { return cell_[at].colour() != colour_ && cell_[at].colour() != kWall; });
            region_[regions_] = {begin, end, 0, 0, {}, true};
            find_vital(region_[regions_++]);
        }
    }

    // All chains to which it is vital touch its first empty cell; each other one keeps those that it touches too.
    void find_vital(Region& region) const {
        bool first = true;
        for (int k = region.begin; k < region.end; ++k) {
            if (cell_[list_[k]].chain != 0) continue;
            uint16_t roots[4];
            int count = 0, kept = 0;
            for (const int step : {-stride_, -1, 1, stride_}) {
                const Cell& beside = cell_[list_[k] + step];
                if (beside.colour() == colour_) add_new(static_cast<uint16_t>(beside.root()), roots, &count);
            }
            region.interior += count == 0;
            if (first) region.vitals = static_cast<int>(std::copy(roots, roots + count, region.vital) - region.vital);
            for (int i = 0; i < region.vitals; ++i)
                if (std::find(roots, roots + count, region.vital[i]) != roots + count)
                    region.vital[kept++] = region.vital[i];
            region.vitals = kept;
            first = false;
        }
    }

    // Takes the chains with fewer than two vital regions out; false where there was none.
    bool drop_chains() {
        uint16_t vital[kMostCells] = {};
        for (int i = 0; i < regions_; ++i)
            for (int k = 0; region_[i].alive && k < region_[i].vitals; ++k) ++vital[region_[i].vital[k]];
        bool dropped = false;
        for (int i = 0; i < count_; ++i) {
            if (!alive_[chains_[i]] || vital[chains_[i]] >= 2) continue;
            alive_[chains_[i]] = false;
            --living_;
            dropped = true;
        }
        return dropped;
    }

    bool walls_alive(const Region& region) const {
        for (int k = region.begin; k < region.end; ++k)
            for (const int step : {-stride_, -1, 1, stride_}) {
                const Cell& near = cell_[list_[k] + step];
                if (near.colour() == colour_ && !alive_[near.root()]) return false;
            }
        return true;
    }

    const Cell* const cell_;
    const Geometry& g_;
    const int colour_, stride_;
    int count_ = 0, living_ = 0, regions_ = 0;
    uint16_t chains_[kMostPoints];  // the cells that stand for them
    uint16_t list_[kMostPoints];    // cells of the regions, one after the other
    Region region_[kMostPoints];
    bool alive_[kMostCells] = {};
};

}  // namespace

void pass_alive(const Position& position, int8_t* owner) {
    const Geometry& g = position.board();
    std::memset(owner, 0, g.points);
    Benson(position, kBlack).run([&](int at) { owner[g.point_of[at]] = 1; });
    Benson(position, kWhite).run([&](int at) { owner[g.point_of[at]] = -1; });
}

bool all_pass_alive(const Position& position) {
    int8_t owner[kMostPoints];
    pass_alive(position, owner);
    const Geometry& g = position.board();
    for (int point = 0; point < g.points; ++point)
        if (owner[point] == 0 && position.cells()[g.cell_of[point]].chain == 0) return false;
    return true;
}

int area(const Position& position, int8_t* owner) {
    const Geometry& g = position.board();
    const Cell* const cell = position.cells();
    pass_alive(position, owner);
    int score = 0;
    for (int point = 0; point < g.points; ++point) {
        const int colour = cell[g.cell_of[point]].colour();
        if (owner[point] == 0 && colour != kEmpty) owner[point] = colour == kBlack ? 1 : -1;
        score += owner[point];
    }
    uint16_t mark[kMostCells] = {}, list[kMostPoints];
    const auto nobodys = [&](int at) { return cell[at].colour() != kWall && owner[g.point_of[at]] == 0; };
    for (int point = 0; point < g.points; ++point) {
        const int start = g.cell_of[point];
        if (mark[start] != 0 || owner[point] != 0) continue;
        const int end = flood(start, g.stride, list, 0, mark, 1, nobodys);
        bool black = false, white = false;
        for (int k = 0; k < end; ++k)
            for (const int step : {-g.stride, -1, 1, g.stride}) {
                const int beside = list[k] + step;
                if (cell[beside].colour() == kWall) continue;
                black |= owner[g.point_of[beside]] == 1;
                white |= owner[g.point_of[beside]] == -1;
            }
        if (black == white) continue;
        const int8_t side = black ? 1 : -1;
        for (int k = 0; k < end; ++k) owner[g.point_of[list[k]]] = side;
        score += side * end;
    }
    return score;
}

}  // namespace go
