// Monte Carlo tree search for many games at once (mlcommons/training, retired_benchmarks/minigo, cc/mcts_tree.h, and
// cc/concurrent_selfplay.cc). Addresses arrive as integers, as in games.h; all values are from Black's side.
//
//   select()   walks down each game's tree to its leaves and writes the planes of all of them, one after the other
//   back_up()  takes the network's answers in the same order
//
// Work is shared out by games, and each game's numbers come from its own: how many threads there are changes nothing.
// A cache is read while trees grow and changes between, in the order of games and rows. Only where other searches work
// with it at the same time, it's their pace that decides what is found.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cache.h"
#include "game.h"
#include "planes.h"
#include "playout.h"
#include "tree.h"

namespace go {

struct SearchOptions {
    int64_t leaves;        // a game puts into one batch at most
    double value_penalty;  // a move not yet read looks so much worse than the node: first-play urgency
    double komi;           // which White gets
    double noise_alpha;    // of the Dirichlet distribution
    double noise_mix;      // the share of the noise in P
    int64_t soft_moves;    // moves at the start of a game that are drawn by visits
    double soft_power;     // of the visits then
    int64_t
        restrict_passes;  // so many passes in a row by one side bar moves in pass-alive area from then on; 0: always
    bool own_eyes;        // false: no own eye is filled, and a pass is read only where nothing else is left
    int64_t seed;
};

class Search {
   public:
    // The rows stay the caller's, and only play() may change them; count > 0.
    // cache: null, or of what the network has answered already, which then isn't asked for.
    Search(uintptr_t games, int64_t count, int64_t stride, const SearchOptions& options, std::shared_ptr<Cache> cache);

    // Forgets what was read of the games that u8 [count] names (null: of all): their rows hold other games now.
    // ids int64 [count]: what a game's random numbers come from, with the seed.
    void reset(uintptr_t which, uintptr_t ids);

    // Each game's root is to have readouts (int32 [count]) visits more than it has; 0 leaves a game alone. full u8
    // [count]: the tree is thrown away after that sum was made, and noise is added to the root's P once it has one.
    void start(uintptr_t readouts, uintptr_t full);

    // Queues leaves until a game has enough of them or its visits; games that are over need no network.
    //   planes      u8 [count * leaves, 13, size, size]
    //   symmetries  int32 [count * leaves], in which those planes are    games int32 [count * leaves], whose they are
    // Returns how many rows were written: 0 says that all visits were made.
    int64_t select(uintptr_t planes, uintptr_t symmetries, uintptr_t games);

    // policies f32 [rows, points + 1], in the symmetries of the planes; values f32 [rows]. What isn't finite, a policy
    // below 0 and a value beyond 1 are std::invalid_argument, and then nothing was taken.
    void back_up(uintptr_t policies, uintptr_t values, int64_t rows);

    // done u8 [count]: 1 where start() gave the root a target, its visits were made, and no leaf waits for a value. A
    // game without a target, also because it was over then, isn't done; one that is stays so until play() or reset().
    void done(uintptr_t done) const;

    // values f32 [rows] of the leaves that wait, the answers of a network that plays one random game from each, as
    // playout.h has them: no own eye is filled, at most 3 * points moves. 1 where Black wins it, -1 where White does.
    // Superko looks at the boards that the game has seen and at the playout's own, not at those in between. The numbers
    // come from the seed, the game's id and the position. Returns how many rows were written. Refused beside a cache,
    // which would give a random game's result for the position's value.
    int64_t play_out(uintptr_t values) const;

    // The move of each game whose mode (u8 [count]) isn't 0, others get -1.
    //   mode      1; 2: visits that the search wouldn't make again are taken out first (target pruning)
    //   moves     int32 [count]
    //   pi        f32 [count, points + 1], the visits as shares     q f32 [count], of the root; 0 where mode is 0
    void choose(uintptr_t modes, uintptr_t moves, uintptr_t pi, uintptr_t q);

    // Plays moves (int32 [count]; -1: none) in the rows; what was read below them stays. verdicts as go_play().
    void play(uintptr_t moves, uintptr_t verdicts);

    // Of each root: visits int32, W and P f32 [count, points + 1], 0 for moves that aren't legal or not expanded;
    // own_visits int32, own_W f32 [count].
    void roots(uintptr_t visits, uintptr_t W, uintptr_t P, uintptr_t own_visits, uintptr_t own_W) const;

    // What both sides are expected to play in one game: from the root on the moves with the most visits, of equals the
    // first, as far as there are any; -1 or the first of the moves. Returns how many, at most `most`, were written.
    //   moves int32 [most]
    int64_t line(int64_t game, int64_t first, uintptr_t moves, int64_t most) const;

    // f64 [count] in [0, 1): draw number `purpose` (0 .. 2^20) of each game, of its present move or of the whole game.
    void draws(int64_t purpose, bool by_move, uintptr_t out) const;

    int64_t bytes() const;  // that the trees hold

   private:
    enum Purpose : int64_t { kPlayOut = -4, kTurns = -3, kNoise = -2, kPick = -1 };  // draws() has the others
    struct Leaf {
        Node* node;
        int slot;  // of `legal`, and the planes' row counted from the game's first one
    };
    struct One {
        Tree tree;
        std::vector<Leaf> queue;
        std::vector<uint8_t> legal;       // [leaves, points + 1]
        std::vector<Question> questions;  // [leaves] where there is a cache
        std::vector<Question> found;      // what the cache answered
        int slots = 0;
        int64_t first_row = 0, id = 0;
        int32_t target = 0, passes[3] = {};  // passes in a row, by colour
        bool noise = false, restricted = false;
        uint64_t turns = 0;  // what symmetries come from, with a position's hash
    };

    static std::string name(const char* op, int64_t game) { return std::string(op) + ": game " + std::to_string(game); }
    void require_same(const char* op) const;
    Random random(int64_t purpose, const One& one, int64_t moves) const;
    int symmetry(const One& one, const Node& node) const;
    void fill(int64_t game);
    void find_legal(const Game& game, const Node& node, uint8_t* legal) const;
    void add_noise(One& one) const;
    bool look_up(One& one, Node& node, const uint8_t* legal);
    void remember(const float* policies, const float* values);
    void write(const Game& game, const One& one, const Leaf& leaf, uint8_t* out) const;
    void prune(One& one, const int8_t* alive) const;
    int pick(const One& one, const int8_t* alive) const;

    const SearchOptions options_;
    const Table rows_;
    const int64_t count_;
    const std::shared_ptr<Cache> cache_;
    int size_ = 0, moves_ = 0;  // moves_: points + 1
    const Symmetries symmetries_;
    std::vector<One> games_;
    int64_t queued_ = 0;                              // rows that wait for values
    std::vector<float> mean_policies_, mean_values_;  // of rows, from the cache, in canonical orientations
};

}  // namespace go
