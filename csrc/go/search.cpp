#include "go/search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "go/area.h"

namespace go {
namespace {

// Bad for whoever moved into these nodes, until the values are there.
void add_virtual_loss(Node& leaf, float sign) {
    for (Node* node = &leaf; node != nullptr; node = node->parent) *node->W += sign * node->sign();
}

void add_value(Node& leaf, float value) {
    for (Node* node = &leaf; node != nullptr; node = node->parent) {
        *node->W += value;
        ++*node->N;
    }
}

// The logarithm of a number of the gamma distribution; alpha > 0. Marsaglia and Tsang (A simple method for generating
// gamma variables, 2000) for alpha + 1, and its step down to alpha. Of small alphas the number itself may underflow.
double log_gamma_draw(double alpha, Random& random) {
    const double d = alpha + 2.0 / 3, c = 1 / std::sqrt(9 * d);
    for (;;) {
        const double u = 1 - random.uniform(), angle = 2 * 3.14159265358979323846 * random.uniform();
        const double x = std::sqrt(-2 * std::log(u)) * std::cos(angle), v = std::pow(1 + c * x, 3);
        if (v <= 0) continue;
        if (std::log(1 - random.uniform()) < 0.5 * x * x + d - d * v + d * std::log(v))
            return std::log(d * v) + std::log(1 - random.uniform()) / alpha;
    }
}

}  // namespace

Search::Search(uintptr_t games, int64_t count, int64_t stride, const SearchOptions& options,
               std::shared_ptr<Cache> cache)
    : options_(options),
      rows_("search", games, count, stride),
      count_(count),
      cache_(std::move(cache)),
      size_((require_range("search", "the number of games", count, 1, int64_t{1} << 24), rows_[0].position().size)),
      moves_(size_ * size_ + 1),
      symmetries_(size_),
      games_(count) {
    require_range("search", "leaves", options.leaves, 1, 1024);
    if (cache_) require_range("search", "the size of the cache's boards", cache_->size(), size_, size_);
    require_at_least("search", "soft_moves", options.soft_moves, 0);
    require_at_least("search", "restrict_passes", options.restrict_passes, 0);
    const auto require = [](const char* name, double value, double least, double most) {
        if (!(value >= least && value <= most))
            throw std::invalid_argument(std::string("search: ") + name + " is " + std::to_string(value) +
                                        "; expected " + std::to_string(least) + " to " + std::to_string(most));
    };
    require("value_penalty", options.value_penalty, 0, 2);
    require("komi", options.komi, -kMostPoints, kMostPoints);
    require("noise_alpha", options.noise_alpha, 1e-4, 1e4);
    require("noise_mix", options.noise_mix, 0, 1);
    require("soft_power", options.soft_power, 0, 100);
    for (int64_t i = 0; i < count; ++i) {
        games_[i].id = i;
        games_[i].legal.resize(options.leaves * moves_);
        if (cache_) games_[i].questions.resize(options.leaves);
    }
    reset(0, 0);
}

Random Search::random(int64_t purpose, const One& one, int64_t moves) const {
    const uint64_t seed = mixed(static_cast<uint64_t>(options_.seed)) + static_cast<uint64_t>(purpose);
    return Random(seed, mixed(static_cast<uint64_t>(one.id) + kGolden) + static_cast<uint64_t>(moves));
}

void Search::reset(uintptr_t which, uintptr_t ids) {
    const auto* chosen = pointer<uint8_t>(which);
    for (int64_t i = 0; i < count_; ++i)
        if ((!chosen || chosen[i]) && !games_[i].queue.empty())
            throw std::invalid_argument(name("reset", i) + " has leaves that wait for values; expected back_up first");
    for_each_game(count_, [&](int64_t i) {
        if (chosen && !chosen[i]) return;
        One& one = games_[i];
        if (ids) one.id = pointer<int64_t>(ids)[i];
        one.tree.begin(rows_[i].position());
        one.target = 0;
        one.passes[kBlack] = one.passes[kWhite] = 0;
        one.noise = false;
        one.restricted = options_.restrict_passes == 0;
        one.turns = static_cast<uint64_t>(random(kTurns, one, 0).uniform() * 0x1p53);
    });
}

// A row that was changed from outside would make the tree another game's.
void Search::require_same(const char* op) const {
    for (int64_t i = 0; i < count_; ++i) {
        const Position &row = rows_[i].position(), &root = games_[i].tree.root().position();
        if (row.hash != root.hash || row.moves != root.moves || row.to_move != root.to_move)
            throw std::invalid_argument(name(op, i) + " isn't at the search's root any more; expected reset()");
    }
}

void Search::start(uintptr_t readouts, uintptr_t full) {
    require_same("start");
    const auto* more = pointer<int32_t>(readouts);
    for (int64_t i = 0; i < count_; ++i) {
        require_range("start", "readouts", more[i], 0, int64_t{1} << 24);
        if (more[i] && !games_[i].queue.empty())
            throw std::invalid_argument(name("start", i) + " has leaves that wait for values; expected back_up first");
    }
    for_each_game(count_, [&](int64_t i) {
        One& one = games_[i];
        if (more[i] == 0 || rows_[i].position().over()) return;
        one.target = *one.tree.root().N + more[i];
        one.noise = pointer<uint8_t>(full)[i];
        if (one.noise) one.tree.begin(rows_[i].position());
    });
}

// By the whole game's boards and those on the way from the root.
void Search::find_legal(const Game& game, const Node& node, uint8_t* legal) const {
    const Position& position = node.position();
    const Geometry& g = position.board();
    const Seen seen = game.seen();
    uint64_t marks[16] = {};  // bits of the hashes on the way: most boards aren't among them
    for (const Node* above = &node; above->parent; above = above->parent) {
        const uint64_t hash = above->position().hash;
        marks[hash % 16] |= uint64_t{1} << (hash >> 4) % 64;
    }
    legal_moves(
        position,
        [&](uint64_t hash) {
            if (seen.contains(hash)) return true;
            if (!(marks[hash % 16] >> (hash >> 4) % 64 & 1)) return false;
            for (const Node* above = &node; above->parent; above = above->parent)
                if (above->position().hash == hash) return true;
            return false;
        },
        legal);
    if (game.stones_played + node.stones >= game.max_stones) std::memset(legal, 0, g.points);
    if (options_.own_eyes) return;
    bool any = false;
    for (int point = 0; point < g.points; ++point) {
        legal[point] = legal[point] && !own_eye(position, position.to_move, g.cell_of[point]);
        any |= legal[point];
    }
    legal[g.points] = !any;
}

void Search::add_noise(One& one) const {
    Node& root = one.tree.root();
    Edges& edges = root.edges;
    Random draw = random(kNoise, one, root.position().moves);
    std::vector<double> noise(edges.count);
    for (double& x : noise) x = log_gamma_draw(options_.noise_alpha, draw);
    const double largest = *std::max_element(noise.begin(), noise.end());
    double sum = 0;
    for (double& x : noise) sum += x = std::exp(x - largest);
    for (int i = 0; i < edges.count; ++i)
        edges.P[i] = static_cast<float>((1 - options_.noise_mix) * edges.P[i] + options_.noise_mix * noise[i] / sum);
}

// Expands a node that the cache knows.
bool Search::look_up(One& one, Node& node, const uint8_t* legal) {
    Question& asked = one.questions[one.slots] = question(node.position(), legal, symmetry(one, node), symmetries_);
    float mean[kMostPoints + 1], own[kMostPoints + 1], value;
    if (!cache_->find(asked, mean, &value)) return false;
    symmetries_.apply(Symmetries::inverse(asked.symmetry), 1, mean, own);
    own[moves_ - 1] = mean[moves_ - 1];
    one.tree.expand(node, legal, own, value, static_cast<float>(options_.value_penalty));
    add_value(node, value);
    one.found.push_back(asked);
    return true;
}

void Search::fill(int64_t game) {
    One& one = games_[game];
    one.slots = 0;
    Node& root = one.tree.root();
    while (static_cast<int64_t>(one.queue.size()) < options_.leaves && *root.N < one.target) {
        if (one.noise && root.edges.count) {
            add_noise(one);
            one.noise = false;
        }
        Node* node = &root;
        while (node->edges.count) node = &one.tree.child(*node, best_edge(*node));
        if (node->position().over()) {
            if (!node->scored) {
                int8_t owner[kMostPoints];
                const double score = area(node->position(), owner) - options_.komi;
                node->winner = static_cast<int8_t>((score > 0) - (score < 0));
                node->scored = true;
            }
            add_value(*node, node->winner);
            continue;
        }
        if (!node->queued) {
            uint8_t* const legal = one.legal.data() + int64_t{one.slots} * moves_;
            find_legal(rows_[game], *node, legal);
            if (cache_ && look_up(one, *node, legal)) continue;
            node->queued = ++one.slots;
        }
        one.queue.push_back({node, node->queued - 1});
        add_virtual_loss(*node, 1);
        if (node == &root) break;  // nothing is known yet that would lead elsewhere
    }
}

int Search::symmetry(const One& one, const Node& node) const {
    return static_cast<int>(mixed(node.position().hash + one.turns) & 7);
}

void Search::write(const Game& game, const One& one, const Leaf& leaf, uint8_t* out) const {
    const Stones* before[kHistory];
    const Node* above = leaf.node->parent;
    int outside = 0;  // boards of before the root
    for (int age = 0; age < kHistory; ++age) {
        if (above) {
            before[age] = &above->position().stones;
            above = above->parent;
        } else {
            before[age] = outside < game.earlier ? &game.before[outside] : nullptr;
            ++outside;
        }
    }
    const uint8_t* const legal = one.legal.data() + int64_t{leaf.slot} * moves_;
    const int turn = symmetry(one, *leaf.node);
    uint8_t own[kPlanes * kMostPoints];
    write_planes(leaf.node->position(), before, legal, turn ? own : out);
    if (turn) symmetries_.apply(turn, kPlanes, own, out);
}

int64_t Search::select(uintptr_t planes, uintptr_t symmetries, uintptr_t games) {
    require_same("select");
    if (queued_ != 0)
        throw std::invalid_argument("select: " + std::to_string(queued_) +
                                    " leaves wait for values; expected back_up first");
    for_each_game(count_, [&](int64_t i) { fill(i); });
    for (One& one : games_) {
        one.first_row = queued_;
        queued_ += one.slots;
        for (const Question& found : one.found) cache_->touch(found);
        one.found.clear();
    }
    for_each_game(count_, [&](int64_t i) {
        const One& one = games_[i];
        int next = 0;
        for (const Leaf& leaf : one.queue) {
            if (leaf.slot != next) continue;  // chosen twice, written once
            const int64_t row = one.first_row + next++;
            write(rows_[i], one, leaf, pointer<uint8_t>(planes) + row * kPlanes * (moves_ - 1));
            pointer<int32_t>(symmetries)[row] = symmetry(one, *leaf.node);
            pointer<int32_t>(games)[row] = static_cast<int32_t>(i);
        }
    });
    return queued_;
}

// Averages the answers into the cache, each shard's in the order of the rows.
void Search::remember(const float* policies, const float* values) {
    mean_policies_.resize(queued_ * moves_);
    mean_values_.assign(values, values + queued_);
    std::vector<const Question*> asked;
    for (const One& one : games_)
        for (int slot = 0; slot < one.slots; ++slot) asked.push_back(&one.questions[slot]);
    parallel_tasks(Cache::kShards, [&](int64_t shard) {
        for (int64_t row = 0; row < queued_; ++row) {
            if (cache_->shard(*asked[row]) != shard) continue;
            const float* const policy = policies + row * moves_;
            float* const mean = mean_policies_.data() + row * moves_;
            symmetries_.apply(Symmetries::inverse(asked[row]->asked), 1, policy, mean);
            mean[moves_ - 1] = policy[moves_ - 1];
            cache_->merge(*asked[row], mean, &mean_values_[row]);
        }
    });
}

void Search::back_up(uintptr_t policies, uintptr_t values, int64_t rows) {
    if (rows != queued_)
        throw std::invalid_argument("back_up: " + std::to_string(rows) + " rows; expected " + std::to_string(queued_) +
                                    ", as select wrote");
    const auto* policy = pointer<float>(policies);
    const auto* value = pointer<float>(values);
    parallel_pieces(rows, 16, 1, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) {
            const float* const p = policy + row * moves_;
            float least = 0, sum = 0;
            for (int i = 0; i < moves_; ++i) {
                least = std::min(least, p[i]);
                sum += p[i];
            }
            const std::string where = "back_up: row " + std::to_string(row);
            if (!(least >= 0 && sum <= std::numeric_limits<float>::max()))
                throw std::invalid_argument(where + " of the policy has a number that isn't finite or is below 0");
            if (!(value[row] >= -1 && value[row] <= 1))
                throw std::invalid_argument(where + " has value " + std::to_string(value[row]) + "; expected -1 to 1");
        }
    });
    if (cache_) {
        remember(policy, value);
        policy = mean_policies_.data();
        value = mean_values_.data();
    }
    const auto penalty = static_cast<float>(options_.value_penalty);
    for_each_game(count_, [&](int64_t i) {
        One& one = games_[i];
        for (const Leaf& leaf : one.queue) {
            Node& node = *leaf.node;
            add_virtual_loss(node, -1);
            if (node.edges.count) continue;
            const int64_t row = one.first_row + leaf.slot;
            float own[kMostPoints + 1];
            const int turned = cache_ ? one.questions[leaf.slot].symmetry : symmetry(one, node);
            symmetries_.apply(Symmetries::inverse(turned), 1, policy + row * moves_, own);
            own[moves_ - 1] = policy[row * moves_ + moves_ - 1];
            one.tree.expand(node, one.legal.data() + int64_t{leaf.slot} * moves_, own, value[row], penalty);
            add_value(node, value[row]);
            node.queued = 0;
        }
        one.queue.clear();
    });
    queued_ = 0;
}

void Search::done(uintptr_t done) const {
    for (int64_t i = 0; i < count_; ++i) {
        const One& one = games_[i];
        pointer<uint8_t>(done)[i] = one.target > 0 && one.queue.empty() && *one.tree.root().N >= one.target;
    }
}

int64_t Search::play_out(uintptr_t values) const {
    if (cache_) throw std::invalid_argument("play_out: the search has a cache; expected none");
    parallel_pieces(count_, 2, 1, [&](int64_t first, int64_t last) {  // a playout takes as long as planes of some
        Playouts playouts(size_, 3 * int64_t{moves_ - 1});
        for (int64_t i = first; i < last; ++i) {
            const One& one = games_[i];
            int next = 0;
            for (const Leaf& leaf : one.queue) {
                if (leaf.slot != next) continue;  // chosen twice, played once
                ++next;
                const Position& position = leaf.node->position();
                const uint64_t board = mixed(position.hash) + static_cast<uint64_t>(position.moves);
                playouts.run(position, rows_[i].seen(), random(kPlayOut, one, static_cast<int64_t>(board)), false);
                const double score = playouts.score() - options_.komi;
                pointer<float>(values)[one.first_row + leaf.slot] = static_cast<float>((score > 0) - (score < 0));
            }
        }
    });
    return queued_;
}

void Search::play(uintptr_t moves, uintptr_t verdicts) {
    require_same("play");
    const auto* move = pointer<int32_t>(moves);
    for (int64_t i = 0; i < count_; ++i)
        if (move[i] != -1 && !games_[i].queue.empty())
            throw std::invalid_argument(name("play", i) + " has leaves that wait for values; expected back_up first");
    parallel_pieces(count_, kGrain, 1, [&](int64_t first, int64_t last) {
        Arena spare;
        for (int64_t i = first; i < last; ++i) {
            pointer<int32_t>(verdicts)[i] = kLegal;
            if (move[i] == -1) continue;
            One& one = games_[i];
            const int colour = rows_[i].position().to_move;
            const Verdict verdict = go::play(rows_[i], move[i], 0);
            pointer<int32_t>(verdicts)[i] = verdict;
            if (verdict != kLegal) continue;
            one.passes[colour] = move[i] == moves_ - 1 ? one.passes[colour] + 1 : 0;
            one.restricted |= one.passes[colour] >= options_.restrict_passes;
            one.tree.advance(move[i], rows_[i].position(), spare);
            one.target = 0;
            one.noise = false;
        }
    });
}

void Search::roots(uintptr_t visits, uintptr_t W, uintptr_t P, uintptr_t own_visits, uintptr_t own_W) const {
    const int64_t all = count_ * moves_;
    std::fill_n(pointer<int32_t>(visits), all, 0);
    std::fill_n(pointer<float>(W), all, 0.0f);
    std::fill_n(pointer<float>(P), all, 0.0f);
    for_each_game(count_, [&](int64_t i) {
        const Node& root = games_[i].tree.root();
        pointer<int32_t>(own_visits)[i] = *root.N;
        pointer<float>(own_W)[i] = *root.W;
        for (int k = 0; k < root.edges.count; ++k) {
            const int64_t at = i * moves_ + root.edges.move[k];
            pointer<int32_t>(visits)[at] = root.edges.N[k];
            pointer<float>(W)[at] = root.edges.W[k];
            pointer<float>(P)[at] = root.edges.P[k];
        }
    });
}

int64_t Search::line(int64_t game, int64_t first, uintptr_t moves, int64_t most) const {
    require_range("line", "game", game, 0, count_ - 1);
    const Node* node = &games_[game].tree.root();
    for (int64_t found = 0; found < most; ++found) {
        const Edges& edges = node->edges;
        int best = -1;
        for (int i = 0; i < edges.count; ++i) {
            const bool is_wanted = found > 0 || first == -1 || edges.move[i] == first;
            if (is_wanted && edges.N[i] > 0 && (best < 0 || edges.N[i] > edges.N[best])) best = i;
        }
        if (best < 0) return found;
        pointer<int32_t>(moves)[found] = edges.move[best];
        node = edges.child[best];
    }
    return most;
}

void Search::draws(int64_t purpose, bool by_move, uintptr_t out) const {
    require_range("draws", "purpose", purpose, 0, 1 << 20);
    for (int64_t i = 0; i < count_; ++i)
        pointer<double>(out)[i] = random(purpose, games_[i], by_move ? rows_[i].position().moves : -1).uniform();
}

int64_t Search::bytes() const {
    int64_t all = 0;
    for (const One& one : games_) all += one.tree.held();
    return all;
}

}  // namespace go
