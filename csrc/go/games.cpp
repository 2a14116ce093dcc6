#include "go/games.h"

#include <algorithm>
#include <string>

#include "go/area.h"
#include "go/game.h"
#include "go/planes.h"
#include "go/playout.h"

namespace go {
namespace {

int sign(int colour) { return colour == kBlack ? 1 : colour == kWhite ? -1 : 0; }

void require_symmetries(const char* op, const int32_t* symmetries, int64_t count) {
    for (int64_t i = 0; i < count; ++i) require_range(op, "a symmetry", symmetries[i], 0, 7);
}

// The first board of a game. A set-up that the rules allow captures nothing on the way, in whatever order it is put.
void set_up(Game& game, const int32_t* points, const int8_t* colours, int64_t n, int to_move) {
    Position& position = game.position();
    const Geometry& g = position.board();
    const auto refuse = [](int64_t point, const std::string& what) {
        throw std::invalid_argument("go_new: point " + std::to_string(point) + " of the set-up " + what);
    };
    for (int64_t i = 0; i < n; ++i) {
        if (points[i] < 0 || points[i] >= g.points) refuse(points[i], "isn't on the board");
        const int at = g.cell_of[points[i]];
        if (position.cells()[at].chain != 0) refuse(points[i], "is named twice");
        bool captures = false;
        position.play(colours[i] > 0 ? kBlack : kWhite, at, [&](int) { captures = true; });
        if (captures || position.cells()[position.cells()[at].root()].liberties == 0)
            refuse(points[i], "makes a chain without liberties");
    }
    position.moves = 0;
    position.ko = 0;
    position.to_move = to_move > 0 ? kBlack : kWhite;
    game.seen().insert(position.hash);
}

}  // namespace

Verdict play(Game& game, int64_t move, int side) {
    Position& position = game.position();
    const Geometry& g = position.board();
    const int colour = side == 0 ? int{position.to_move} : side > 0 ? kBlack : kWhite;
    if (position.over()) return kOver;
    if (move < 0 || move > g.points) return kOffBoard;
    const bool passes = move == g.points;
    Seen seen = game.seen();
    if (!passes) {
        const int at = g.cell_of[move];
        const auto before = [&](uint64_t hash) { return seen.contains(hash); };
        const Verdict verdict = full_verdict(position, colour, at, before);
        if (verdict != kLegal) return verdict;
        if (game.stones_played == game.max_stones) return kFull;
    }
    std::copy_backward(game.before, game.before + kHistory - 1, game.before + kHistory);
    game.before[0] = position.stones;
    game.earlier = std::min(game.earlier + 1, kHistory);
    game.last = static_cast<int32_t>(move);
    if (passes) {
        position.pass(colour);
    } else {
        position.play(colour, g.cell_of[move], [](int) {});
        seen.insert(position.hash);
        ++game.stones_played;
    }
    return kLegal;
}

namespace {

void find_legal(const Game& game, uint8_t* legal) {
    const Seen seen = game.seen();
    if (game.stones_played == game.max_stones) {
        std::memset(legal, 0, game.position().board().points);
        legal[game.position().board().points] = !game.position().over();
        return;
    }
    legal_moves(game.position(), [&](uint64_t hash) { return seen.contains(hash); }, legal);
}

}  // namespace
}  // namespace go

using namespace go;

int64_t go_game_bytes(int64_t size, int64_t max_stones) {
    require_range("go", "the board's size", size, kLeastSize, kMostSize);
    require_range("go", "max_stones", max_stones, 1, kMostStones);
    const int64_t slots = Seen::slots(max_stones + 1) * static_cast<int64_t>(sizeof(uint64_t));
    return (static_cast<int64_t>(sizeof(Game)) + Position::bytes(static_cast<int>(size)) + slots + 63) / 64 * 64;
}

void go_new(uintptr_t games, int64_t count, int64_t stride, int64_t size, int64_t max_stones, uintptr_t points,
            uintptr_t colours, int64_t n, int64_t to_move) {
    require_at_least("go_new", "count", count, 0);
    const int64_t needed = go_game_bytes(size, max_stones);
    require_range("go_new", "a game's bytes", stride, needed, needed);
    if (count == 0) return;
    Game& first = *pointer<Game>(games);
    std::memset(static_cast<void*>(&first), 0, stride);
    first.max_stones = static_cast<int32_t>(max_stones);
    first.last = -1;
    first.position().clear(static_cast<int>(size));
    set_up(first, pointer<int32_t>(points), pointer<int8_t>(colours), n, static_cast<int>(to_move));
    first.mark = kMark;
    for (int64_t i = 1; i < count; ++i) std::memcpy(pointer<char>(games) + i * stride, &first, stride);
}

void go_play(uintptr_t games, int64_t count, int64_t stride, uintptr_t moves, uintptr_t colours, uintptr_t verdicts) {
    const Table table("go_play", games, count, stride);
    const auto* move = pointer<int32_t>(moves);
    const auto* colour = pointer<int8_t>(colours);
    auto* verdict = pointer<int32_t>(verdicts);
    for_each_game(count, [&](int64_t i) {
        verdict[i] = move[i] == -1 ? kLegal : play(table[i], move[i], colour ? colour[i] : 0);
    });
}

void go_legal(uintptr_t games, int64_t count, int64_t stride, uintptr_t legal) {
    const Table table("go_legal", games, count, stride);
    for_each_game(count, [&](int64_t i) {
        const int moves = table[i].position().board().points + 1;
        find_legal(table[i], pointer<uint8_t>(legal) + i * moves);
    });
}

void go_planes(uintptr_t games, int64_t count, int64_t stride, uintptr_t symmetries_, uintptr_t planes) {
    const Table table("go_planes", games, count, stride);
    if (count == 0) return;
    const auto* symmetries = pointer<int32_t>(symmetries_);
    if (symmetries) require_symmetries("go_planes", symmetries, count);
    const Symmetries turned(table[0].position().size);
    for_each_game(count, [&](int64_t i) {
        const Game& game = table[i];
        const int points = game.position().board().points;
        uint8_t legal[kMostPoints + 1], own[kPlanes * kMostPoints];
        find_legal(game, legal);
        const Stones* before[kHistory];
        for (int age = 0; age < kHistory; ++age) before[age] = age < game.earlier ? &game.before[age] : nullptr;
        uint8_t* const out = pointer<uint8_t>(planes) + i * kPlanes * points;
        const int symmetry = symmetries ? symmetries[i] : 0;
        write_planes(game.position(), before, legal, symmetry ? own : out);
        if (symmetry) turned.apply(symmetry, kPlanes, own, out);
    });
}

void go_stones(uintptr_t games, int64_t count, int64_t stride, uintptr_t stones_, uintptr_t liberties_,
               uintptr_t hashes_) {
    const Table table("go_stones", games, count, stride);
    auto* stones = pointer<int8_t>(stones_);
    auto* liberties = pointer<int32_t>(liberties_);
    auto* hashes = pointer<int64_t>(hashes_);
    for_each_game(count, [&](int64_t i) {
        const Position& position = table[i].position();
        const Geometry& g = position.board();
        const Cell* const cell = position.cells();
        for (int point = 0; point < g.points; ++point) {
            const Cell& here = cell[g.cell_of[point]];
            if (stones) stones[i * g.points + point] = static_cast<int8_t>(sign(here.colour()));
            if (liberties) liberties[i * g.points + point] = here.chain ? cell[here.root()].liberties : 0;
        }
        if (hashes) hashes[i] = static_cast<int64_t>(position.hash);
    });
}

void go_facts(uintptr_t games, int64_t count, int64_t stride, uintptr_t facts) {
    const Table table("go_facts", games, count, stride);
    for_each_game(count, [&](int64_t i) {
        const Game& game = table[i];
        const Position& position = game.position();
        const int32_t ko = position.ko ? position.board().point_of[position.ko] : -1;
        const int32_t found[kGoFacts] = {sign(position.to_move), position.moves,        position.passes, ko,
                                         position.lost[kBlack],  position.lost[kWhite], game.last};
        std::copy(found, found + kGoFacts, pointer<int32_t>(facts) + i * kGoFacts);
    });
}

void go_area(uintptr_t games, int64_t count, int64_t stride, uintptr_t alive, uintptr_t owner, uintptr_t scores,
             uintptr_t settled) {
    const Table table("go_area", games, count, stride);
    for_each_game(count, [&](int64_t i) {
        const Position& position = table[i].position();
        const int points = position.board().points;
        int8_t own[kMostPoints];
        if (alive) pass_alive(position, pointer<int8_t>(alive) + i * points);
        if (owner || scores) {
            const int score = area(position, owner ? pointer<int8_t>(owner) + i * points : own);
            if (scores) pointer<int32_t>(scores)[i] = score;
        }
        if (settled) pointer<uint8_t>(settled)[i] = all_pass_alive(position);
    });
}

void go_playouts(uintptr_t games, int64_t count, int64_t stride, int64_t repeats, int64_t seed, int64_t first,
                 int64_t max_moves, bool own_eyes, uintptr_t moves, uintptr_t scores) {
    const Table table("go_playouts", games, count, stride);
    require_at_least("go_playouts", "repeats", repeats, 0);
    require_range("go_playouts", "max_moves", max_moves, 1, kMostStones);
    if (count == 0) return;
    const int64_t all = checked_product("go_playouts", count, repeats);
    parallel_pieces(all, kGrain, 1, [&](int64_t begin, int64_t end) {
        Playouts playouts(table[0].position().size, max_moves);
        for (int64_t i = begin; i < end; ++i) {
            const Game& game = table[i / repeats];
            const Random random(static_cast<uint64_t>(seed), static_cast<uint64_t>(first + i));
            pointer<int32_t>(moves)[i] =
                static_cast<int32_t>(playouts.run(game.position(), game.seen(), random, own_eyes));
            pointer<int32_t>(scores)[i] = playouts.score();
        }
    });
}

namespace {

template <class Value>
void transform(const char* op, const Value* from, Value* to, int64_t count, int64_t channels, int64_t size,
               int64_t extra, const int32_t* symmetries, bool back) {
    require_range(op, "the board's size", size, kLeastSize, kMostSize);
    require_symmetries(op, symmetries, count);
    const Symmetries turned(static_cast<int>(size));
    const int64_t width = channels * size * size + extra;
    for_each_game(count, [&](int64_t i) {
        const int symmetry = back ? Symmetries::inverse(symmetries[i]) : symmetries[i];
        turned.apply(symmetry, channels, from + i * width, to + i * width);
        if (extra) to[i * width + width - 1] = from[i * width + width - 1];
    });
}

}  // namespace

void go_transform_planes(uintptr_t from, uintptr_t to, int64_t count, int64_t channels, int64_t size,
                         uintptr_t symmetries, bool back) {
    transform("go_transform_planes", pointer<uint8_t>(from), pointer<uint8_t>(to), count, channels, size, 0,
              pointer<int32_t>(symmetries), back);
}

void go_transform_policies(uintptr_t from, uintptr_t to, int64_t count, int64_t size, uintptr_t symmetries, bool back) {
    transform("go_transform_policies", pointer<float>(from), pointer<float>(to), count, 1, size, 1,
              pointer<int32_t>(symmetries), back);
}
