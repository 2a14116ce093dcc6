// The moves that a search ends in, and what the network learns from them: Search::choose().
#include <algorithm>
#include <cmath>

#include "go/area.h"
#include "go/search.h"

namespace go {

// Of the best move all visits stay; others keep what the search would have given them, had it known what it knows now.
void Search::prune(One& one, const int8_t* alive) const {
    Node& root = one.tree.root();
    Edges& edges = root.edges;
    const float sign = root.sign(), visits = static_cast<float>(*root.N), scale = exploration(*root.N);
    const float common = scale * std::sqrt(1 + visits);
    int best = 0;
    const auto score = [&](int i) { return action_score(edges, i, sign, common); };
    for (int i = 1; i < edges.count; ++i)
        if (edges.N[i] > edges.N[best] || (edges.N[i] == edges.N[best] && score(i) > score(best))) best = i;
    const float best_score = score(best);
    bool any = false;
    for (int i = 0; i < edges.count; ++i) {
        if (alive && edges.move[i] < moves_ - 1 && alive[edges.move[i]]) {
            edges.N[i] = 0;
        } else if (i != best) {
            const float q = edges.W[i] / static_cast<float>(1 + edges.N[i]);
            const float kept = scale * edges.P[i] * std::sqrt(visits) / (best_score - sign * q);
            if (!(kept > 0))
                edges.N[i] = 0;
            else if (kept < static_cast<float>(edges.N[i]))
                edges.N[i] = static_cast<int32_t>(kept);
        }
        any |= edges.N[i] > 0;
    }
    if (!any && edges.move[edges.count - 1] == moves_ - 1) edges.N[edges.count - 1] = 1;
}

int Search::pick(const One& one, const int8_t* alive) const {
    const Node& root = one.tree.root();
    const Edges& edges = root.edges;
    const int pass = moves_ - 1;
    if (root.position().moves < options_.soft_moves) {
        double sum[kMostPoints + 1], all = 0;
        int points = 0;
        for (; points < edges.count && edges.move[points] < pass; ++points)
            sum[points] = all += edges.N[points] ? std::pow(edges.N[points], options_.soft_power) : 0.0;
        if (all == 0) return pass;
        const double drawn = random(kPick, one, root.position().moves).uniform() * all;
        int i = 0;
        while (sum[i] <= drawn) ++i;
        return edges.move[i];
    }
    const float common = exploration(*root.N) * std::sqrt(1 + static_cast<float>(*root.N));
    int best = -1;
    for (int i = 0; i < edges.count; ++i) {
        if (alive && edges.move[i] < pass && alive[edges.move[i]]) continue;
        const auto score = [&](int k) { return action_score(edges, k, root.sign(), common); };
        if (best < 0 || edges.N[i] > edges.N[best] || (edges.N[i] == edges.N[best] && score(i) > score(best))) best = i;
    }
    return best < 0 ? pass : edges.move[best];
}

void Search::choose(uintptr_t modes, uintptr_t moves, uintptr_t pi, uintptr_t q) {
    require_same("choose");
    const auto* mode = pointer<uint8_t>(modes);
    for (int64_t i = 0; i < count_; ++i) {
        if (!mode[i]) continue;
        require_range("choose", "a mode", mode[i], 0, 2);
        if (!games_[i].queue.empty() || !games_[i].tree.root().edges.count)
            throw std::invalid_argument(name("choose", i) + (games_[i].queue.empty()
                                                                 ? " has read nothing; expected start and select first"
                                                                 : " has leaves that wait for values"));
    }
    for_each_game(count_, [&](int64_t i) {
        One& one = games_[i];
        float* const shares = pointer<float>(pi) + i * moves_;
        std::fill(shares, shares + moves_, 0.0f);
        pointer<int32_t>(moves)[i] = -1;
        pointer<float>(q)[i] = 0;
        if (!mode[i]) return;
        const Node& root = one.tree.root();
        const Edges& edges = root.edges;
        int8_t alive[kMostPoints];
        if (one.restricted) pass_alive(root.position(), alive);
        pointer<int32_t>(moves)[i] = pick(one, one.restricted ? alive : nullptr);
        pointer<float>(q)[i] = *root.W / static_cast<float>(1 + *root.N);
        if (mode[i] == 2) prune(one, one.restricted ? alive : nullptr);
        const bool soft = root.position().moves < options_.soft_moves;
        const auto weight = [&](int k) {
            return soft && edges.N[k] ? std::pow(edges.N[k], options_.soft_power) : static_cast<double>(edges.N[k]);
        };
        double sum = 0;
        for (int k = 0; k < edges.count; ++k) sum += weight(k);
        for (int k = 0; k < edges.count && sum > 0; ++k) shares[edges.move[k]] = static_cast<float>(weight(k) / sum);
    });
}

}  // namespace go
