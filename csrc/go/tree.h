// The tree of one game's search: nodes and edges in an arena. All W are from Black's side.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "position.h"

namespace go {

// Memory in blocks that grow; all of it is taken back at once, and kept for the next tree.
class Arena {
   public:
    void* take(int64_t bytes);
    void reset() { block_ = used_ = 0; }
    int64_t held() const;  // bytes

   private:
    struct Block {
        std::unique_ptr<uint64_t[]> memory;
        int64_t bytes;
    };
    std::vector<Block> blocks_;
    int64_t block_ = 0, used_ = 0;  // the block in use, and its bytes that are taken
};

struct Node;

// The legal moves of an expanded node, in ascending order, side by side. At least one is there, so that those that
// aren't legal, which the reference scores -1000, would never be chosen.
struct Edges {
    int32_t count = 0;  // 0: not expanded
    float *W, *P;
    int32_t* N;
    Node** child;  // null until it is chosen
    uint16_t* move;
};

struct Node {
    Node* parent;  // null: the root
    float* W;      // this node's own statistics: they lie in the parent's edges, and the root's in its tree
    int32_t* N;
    Edges edges;
    int32_t stones;  // played on the way from the root
    int32_t queued;  // the number of the batch that asks for it; 0: none
    int8_t winner;   // of a game that is over, +1 Black, -1 White, 0 a draw
    bool scored;

    Position& position() { return *reinterpret_cast<Position*>(this + 1); }
    const Position& position() const { return *reinterpret_cast<const Position*>(this + 1); }
    float sign() const { return position().to_move == kBlack ? 1.0f : -1.0f; }
};

class Tree {
   public:
    // Starts again from a position without statistics.
    void begin(const Position& position);

    Node& root() { return *root_; }
    const Node& root() const { return *root_; }
    // The node after edge `edge`, made where there is none.
    Node& child(Node& node, int edge);
    // Takes the legal moves, 1 in legal [points + 1], with P as the policy has them, scaled to a sum of 1, and W such
    // that a child looks `penalty` worse to the side to move than the node's value.
    void expand(Node& node, const uint8_t* legal, const float* policy, float value, float penalty);
    // The child after `move` becomes the root and its statistics stay; what isn't below it goes. `spare` is memory to
    // copy to, and the memory copied from afterwards. Where the move wasn't read, the root begins from `position`.
    void advance(int move, const Position& position, Arena& spare);
    int64_t held() const { return arena_.held(); }

   private:
    Node& make(Arena& arena, const Position& position);
    static void take_edges(Arena& arena, int count, Edges& edges);

    Arena arena_;
    Node* root_ = nullptr;
    float root_W_ = 0;
    int32_t root_N_ = 0;
};

// 2 * (ln((1 + N + 19652) / 19652) + 1.25), of a node that was visited N times.
float exploration(int32_t visits);

// sign * Q + common * P / (1 + N), with Q = W / (1 + N): the initial W is worth a visit. sign: Black +1, White -1;
// common: exploration() times the root of the node's visits, which of them its callers say.
inline float action_score(const Edges& edges, int i, float sign, float common) {
    return (sign * edges.W[i] + common * edges.P[i]) / static_cast<float>(1 + edges.N[i]);
}

// The edge to read next: of the highest score with the root of N - 1, at least 1; of equals the first.
int best_edge(const Node& node);

}  // namespace go
