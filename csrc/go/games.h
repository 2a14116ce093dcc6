// Many games in one buffer that the caller owns: what Python sees of the engine. Addresses arrive as integers.
//
//   games   u8 [count, stride], 8-aligned: one game a row, a multiple of 64 bytes; go_game_bytes() says how many. A row
//           is a value: copying its bytes copies the game, and a slice of rows is a buffer too.
//   moves   points row * size + column; size * size is the pass. What is read for a game of another size than the
//           first one's is refused, as are bytes that go_new() didn't write: std::invalid_argument names the game.
//
// Rows are worked on in parallel; all functions but go_new() and go_play() leave the games as they are.
#pragma once
#include <cstdint>

// Bytes of a game of this size (5 .. 19) that can hold max_stones stones played, captured ones too, 1 .. 2^20.
int64_t go_game_bytes(int64_t size, int64_t max_stones);

// Makes new games, all from one set-up (std::invalid_argument where it has a chain without liberties, a point twice or
// off the board).
//   points  int32 [n]    colours int8 [n], +1 Black, -1 White    to_move +1 or -1
void go_new(uintptr_t games, int64_t count, int64_t stride, int64_t size, int64_t max_stones, uintptr_t points,
            uintptr_t colours, int64_t n, int64_t to_move);

// One move in each game.
//   moves    int32 [count]; -1 leaves that game alone, and its verdict is 0
//   colours  int8 [count] or null: +1 Black, -1 White, 0 the side to move
//   verdicts int32 [count]: Verdict of position.h. Where it isn't 0 the game stays as it was.
// A game whose max_stones have been played takes passes only.
void go_play(uintptr_t games, int64_t count, int64_t stride, uintptr_t moves, uintptr_t colours, uintptr_t verdicts);

// legal u8 [count, points + 1]: 1 for what the side to move may play, the pass last; nothing once a game is over.
void go_legal(uintptr_t games, int64_t count, int64_t stride, uintptr_t legal);

// planes u8 [count, 13, size, size] of planes.h, each in the symmetry that int32 [count] names, 0 .. 7; null: as it is.
void go_planes(uintptr_t games, int64_t count, int64_t stride, uintptr_t symmetries, uintptr_t planes);

// stones int8 [count, points]: +1 Black, -1 White, 0 empty.   liberties int32 [count, points]: of the stone's chain, 0
// where empty.   hashes int64 [count].   Any of them may be null.
void go_stones(uintptr_t games, int64_t count, int64_t stride, uintptr_t stones, uintptr_t liberties, uintptr_t hashes);

// facts int32 [count, 7]: side to move (+1, -1), moves played, passes in a row, the point that simple ko forbids (-1:
// none), black and white stones captured, last move (-1: none).
constexpr int kGoFacts = 7;
void go_facts(uintptr_t games, int64_t count, int64_t stride, uintptr_t facts);

// alive int8 [count, points]: pass-alive points; owner int8 [count, points]: the area, as area.h has them, +1 Black,
// -1 White; scores int32 [count]: its sum; settled u8 [count]: whether every empty point is pass-alive. Any of them may
// be null.
void go_area(uintptr_t games, int64_t count, int64_t stride, uintptr_t alive, uintptr_t owner, uintptr_t scores,
             uintptr_t settled);

// `repeats` random playouts of each game, as playout.h has them, of at most max_moves moves (1 .. 2^20).
//   moves, scores int32 [count, repeats]; those of playout r of game g come from the game, seed and first + g * repeats
//                 + r alone
void go_playouts(uintptr_t games, int64_t count, int64_t stride, int64_t repeats, int64_t seed, int64_t first,
                 int64_t max_moves, bool own_eyes, uintptr_t moves, uintptr_t scores);

// Example i of `from` goes to `to` in symmetry symmetries[i] (int32, 0 .. 7), or back from it.
//   planes   u8 [count, channels, size, size]
//   policies f32 [count, size * size + 1]: the pass stays last
void go_transform_planes(uintptr_t from, uintptr_t to, int64_t count, int64_t channels, int64_t size,
                         uintptr_t symmetries, bool back);
void go_transform_policies(uintptr_t from, uintptr_t to, int64_t count, int64_t size, uintptr_t symmetries, bool back);
