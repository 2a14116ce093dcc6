// Who owns what. `owner` [points]: +1 Black, -1 White, 0 nobody.
#pragma once
#include <cstdint>

#include "position.h"

namespace go {

// Pass-alive chains, which their opponent can't take even if their owner only passes (Benson, Life in the game of Go,
// 1976), and their regions. A region is a connected set without stones of that colour; it is vital to a chain that
// touches each of its empty points. Alive are the chains with two vital regions whose surrounding chains are all alive.
// An alive region has only such chains around it, at least one, and at most one empty point that touches none of them:
// the opponent can't live there either, so what stands in it is dead.
void pass_alive(const Position& position, int8_t* owner);

// Whether each empty point lies in a pass-alive region: nothing is left to play for.
bool all_pass_alive(const Position& position);

// The area: pass-alive stones and regions with all that is in them, then other stones, then the empty regions that
// touch one colour only. Returns Black's points minus White's, without komi.
int area(const Position& position, int8_t* owner);

}  // namespace go
