#include "tree.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace go {

void* Arena::take(int64_t bytes) {
    constexpr int64_t kFirst = int64_t{1} << 15, kLargest = int64_t{1} << 20;
    bytes = (bytes + 7) / 8 * 8;
    while (block_ < static_cast<int64_t>(blocks_.size()) && used_ + bytes > blocks_[block_].bytes) {
        ++block_;
        used_ = 0;
    }
    if (block_ == static_cast<int64_t>(blocks_.size())) {
        const int64_t last = blocks_.empty() ? kFirst / 2 : blocks_.back().bytes;
        const int64_t size = std::max(std::min(2 * last, kLargest), bytes);
        blocks_.push_back({std::unique_ptr<uint64_t[]>(new uint64_t[size / 8]), size});
    }
    char* const found = reinterpret_cast<char*>(blocks_[block_].memory.get()) + used_;
    used_ += bytes;
    return found;
}

int64_t Arena::held() const {
    int64_t all = 0;
    for (const Block& block : blocks_) all += block.bytes;
    return all;
}

Node& Tree::make(Arena& arena, const Position& position) {
    void* const memory = arena.take(static_cast<int64_t>(sizeof(Node)) + Position::bytes(position.size));
    Node& node = *new (memory) Node{};
    copy(position, node.position());
    return node;
}

void Tree::take_edges(Arena& arena, int count, Edges& edges) {
    edges.count = count;
    edges.child = static_cast<Node**>(arena.take(count * static_cast<int64_t>(sizeof(Node*))));
    edges.W = static_cast<float*>(arena.take(count * static_cast<int64_t>(sizeof(float))));
    edges.P = static_cast<float*>(arena.take(count * static_cast<int64_t>(sizeof(float))));
    edges.N = static_cast<int32_t*>(arena.take(count * static_cast<int64_t>(sizeof(int32_t))));
    edges.move = static_cast<uint16_t*>(arena.take(count * static_cast<int64_t>(sizeof(uint16_t))));
}

void Tree::begin(const Position& position) {
    arena_.reset();
    root_ = &make(arena_, position);
    root_->W = &root_W_;
    root_->N = &root_N_;
    root_W_ = 0;
    root_N_ = 0;
}

Node& Tree::child(Node& node, int edge) {
    Edges& edges = node.edges;
    if (edges.child[edge] != nullptr) return *edges.child[edge];
    Node& made = make(arena_, node.position());
    Position& position = made.position();
    const int move = edges.move[edge], colour = position.to_move;
    const bool passes = move == position.board().points;
    if (passes)
        position.pass(colour);
    else
        position.play(colour, position.board().cell_of[move], [](int) {});
    made.parent = &node;
    made.W = edges.W + edge;
    made.N = edges.N + edge;
    made.stones = node.stones + !passes;
    return *(edges.child[edge] = &made);
}

void Tree::expand(Node& node, const uint8_t* legal, const float* policy, float value, float penalty) {
    const int moves = node.position().board().points + 1;
    int count = 0;
    float sum = 0;
    for (int move = 0; move < moves; ++move) {
        if (!legal[move]) continue;
        ++count;
        sum += policy[move];
    }
    // A network may put all that it has on moves that aren't legal: then the values alone decide.
    const float scale = sum > std::numeric_limits<float>::min() ? 1 / sum : 0.0f;
    const float first = std::clamp(value - penalty * node.sign(), -1.0f, 1.0f);
    Edges& edges = node.edges;
    take_edges(arena_, count, edges);
    int i = 0;
    for (int move = 0; move < moves; ++move) {
        if (!legal[move]) continue;
        edges.child[i] = nullptr;
        edges.W[i] = first;
        edges.P[i] = scale * policy[move];
        edges.N[i] = 0;
        edges.move[i++] = static_cast<uint16_t>(move);
    }
}

void Tree::advance(int move, const Position& position, Arena& spare) {
    const Edges& edges = root_->edges;
    int edge = 0;
    while (edge < edges.count && edges.move[edge] != move) ++edge;
    if (edge == edges.count) return begin(position);
    const float W = edges.W[edge];
    const int32_t N = edges.N[edge];
    if (edges.child[edge] == nullptr) {
        begin(position);
        root_W_ = W;
        root_N_ = N;
        return;
    }
    const Node& from = *edges.child[edge];
    const int32_t stones = from.stones;
    spare.reset();
    const auto copied = [&](const Node& node) -> Node* {
        Node& to = make(spare, node.position());
        to.stones = node.stones - stones;
        to.winner = node.winner;
        to.scored = node.scored;
        if (node.edges.count == 0) return &to;
        const Edges& old = node.edges;
        take_edges(spare, old.count, to.edges);
        std::copy(old.W, old.W + old.count, to.edges.W);
        std::copy(old.P, old.P + old.count, to.edges.P);
        std::copy(old.N, old.N + old.count, to.edges.N);
        std::copy(old.child, old.child + old.count, to.edges.child);  // still in the old memory
        std::copy(old.move, old.move + old.count, to.edges.move);
        return &to;
    };
    root_ = copied(from);
    // Depth first, without recursion: paths can be long.
    std::vector<Node*> waiting = {root_};
    while (!waiting.empty()) {
        Node& node = *waiting.back();
        waiting.pop_back();
        for (int i = 0; i < node.edges.count; ++i) {
            if (node.edges.child[i] == nullptr) continue;
            Node& below = *copied(*node.edges.child[i]);
            below.parent = &node;
            below.W = node.edges.W + i;
            below.N = node.edges.N + i;
            node.edges.child[i] = &below;
            if (below.edges.count) waiting.push_back(&below);
        }
    }
    std::swap(arena_, spare);
    root_->W = &root_W_;
    root_->N = &root_N_;
    root_W_ = W;
    root_N_ = N;
}

float exploration(int32_t visits) {
    return 2 * (std::log((1.0f + static_cast<float>(visits) + 19652.0f) / 19652.0f) + 1.25f);
}

int best_edge(const Node& node) {
    const Edges& edges = node.edges;
    const float visits = static_cast<float>(std::max(1, *node.N - 1));
    const float common = exploration(*node.N) * std::sqrt(visits), sign = node.sign();
    constexpr int kMost = kMostPoints + 1;
    float score[kMost], best = -1e30f;
    const int count = edges.count;
#pragma omp simd reduction(max : best)
    for (int i = 0; i < count; ++i) {
        score[i] = action_score(edges, i, sign, common);
        best = best > score[i] ? best : score[i];
    }
    int at = 0;
    while (at < count - 1 && score[at] != best) ++at;
    return at;
}

}  // namespace go
