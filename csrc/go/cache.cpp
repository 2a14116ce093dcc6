#include "go/cache.h"

#include <algorithm>

#include "common/check.h"
#include "go/game.h"

namespace go {

Question question(const Position& position, const uint8_t* legal, int turn, const Symmetries& symmetries) {
    const int points = position.board().points;
    const auto for_each_stone = [&](auto&& body) {
        for (int word = 0; word < kStoneWords; ++word)
            for (const int colour : {kBlack, kWhite}) {
                uint64_t bits = (colour == kBlack ? position.stones.black : position.stones.white)[word];
                for (; bits; bits &= bits - 1) body(colour, 64 * word + __builtin_ctzll(bits));
            }
    };
    uint64_t hashes[8] = {};
    for_each_stone([&](int colour, int point) {
        for (int s = 0; s < 8; ++s) hashes[s] ^= kStoneNumbers[colour][symmetries.place(s, point)];
    });
    const uint64_t* smallest = std::min_element(hashes, hashes + 8);
    if (std::count(hashes, hashes + 8, *smallest) > 1) smallest = hashes;
    const int symmetry = static_cast<int>(smallest - hashes);

    // By other numbers than the hash: together they are 128 bits, which two positions don't share.
    uint64_t rest = static_cast<uint64_t>(2 * position.to_move + (position.passes > 0));
    for_each_stone([&](int colour, int point) {
        rest += mixed(kStoneNumbers[colour][symmetries.place(symmetry, point)] + kGolden);
    });
    for (int point = 0; point < points; ++point) {
        if (legal[point] || position.cells()[position.board().cell_of[point]].chain) continue;
        const int place = symmetries.place(symmetry, point);
        rest += mixed(kStoneNumbers[kBlack][place] ^ kStoneNumbers[kWhite][place]);
    }
    return {*smallest, mixed(rest), symmetry, Symmetries::after(turn, Symmetries::inverse(symmetry))};
}

Cache::Cache(int64_t megabytes, int64_t size) : size_(size) {
    require_range("cache", "megabytes", megabytes, 1, 1 << 20);
    require_range("cache", "the board's size", size, kLeastSize, kMostSize);
    moves_ = size * size + 1;
    stride_ = (static_cast<int64_t>(sizeof(Entry)) + 4 * moves_ + 7) / 8 * 8;
    capacity_ = (megabytes << 20) / kShards / (stride_ + 8);  // 8: two buckets, more than an entry ever has
    while (buckets_ < capacity_) buckets_ *= 2;
    for (Shard& shard : shards_) shard.memory.reset(new uint64_t[(4 * buckets_ + capacity_ * stride_) / 8]);
    clear();
}

Cache::Entry& Cache::entry(Shard& shard, int32_t i) const {
    return *reinterpret_cast<Entry*>(reinterpret_cast<char*>(shard.buckets() + buckets_) + i * stride_);
}

int32_t Cache::place(Shard& shard, const Question& asked) const {
    int32_t i = bucket(shard, asked.rest);
    while (i >= 0 && (entry(shard, i).stones != asked.stones || entry(shard, i).rest != asked.rest))
        i = entry(shard, i).next;
    return i;
}

void Cache::unlink(Shard& shard, Entry& one) const {
    (one.newer < 0 ? shard.newest : entry(shard, one.newer).older) = one.older;
    (one.older < 0 ? shard.oldest : entry(shard, one.older).newer) = one.newer;
}

void Cache::put_first(Shard& shard, int32_t i) const {
    Entry& one = entry(shard, i);
    one.newer = -1;
    one.older = shard.newest;
    (shard.newest < 0 ? shard.oldest : entry(shard, shard.newest).newer) = i;
    shard.newest = i;
}

// An entry without answers, in the oldest one's place where all are taken.
int32_t Cache::make(Shard& shard, const Question& asked) const {
    int32_t i = shard.used;
    if (i < capacity_) {
        ++shard.used;
    } else {
        i = shard.oldest;
        Entry& old = entry(shard, i);
        unlink(shard, old);
        int32_t* link = &bucket(shard, old.rest);
        while (*link != i) link = &entry(shard, *link).next;
        *link = old.next;
    }
    int32_t& first = bucket(shard, asked.rest);
    entry(shard, i) = Entry{asked.stones, asked.rest, -1, -1, first, 0, 0};
    first = i;
    put_first(shard, i);
    return i;
}

bool Cache::find(const Question& asked, float* policy, float* value) {
    Shard& in = shards_[shard(asked)];
    const std::lock_guard<std::mutex> lock(in.mutex);
    const int32_t i = place(in, asked);
    const bool hit = i >= 0 && entry(in, i).asked >> asked.asked & 1;
    ++(hit ? in.hits : in.misses);
    if (!hit) return false;
    Entry& one = entry(in, i);
    std::copy(one.policy(), one.policy() + moves_, policy);
    *value = one.value;
    return true;
}

void Cache::touch(const Question& asked) {
    Shard& in = shards_[shard(asked)];
    const std::lock_guard<std::mutex> lock(in.mutex);
    const int32_t i = place(in, asked);
    if (i < 0 || i == in.newest) return;
    unlink(in, entry(in, i));
    put_first(in, i);
}

void Cache::merge(const Question& asked, float* policy, float* value) {
    Shard& in = shards_[shard(asked)];
    const std::lock_guard<std::mutex> lock(in.mutex);
    int32_t i = place(in, asked);
    if (i < 0) {
        i = make(in, asked);
    } else {
        unlink(in, entry(in, i));
        put_first(in, i);
    }
    Entry& one = entry(in, i);
    float* const mean = one.policy();
    if (one.asked == 0) {
        std::copy(policy, policy + moves_, mean);
        one.value = *value;
    } else if (!(one.asked >> asked.asked & 1)) {
        const auto answers = static_cast<float>(__builtin_popcount(one.asked) + 1);
        for (int64_t move = 0; move < moves_; ++move) mean[move] += (policy[move] - mean[move]) / answers;
        one.value += (*value - one.value) / answers;
    }
    one.asked = static_cast<uint8_t>(one.asked | 1 << asked.asked);
    std::copy(mean, mean + moves_, policy);
    *value = one.value;
}

void Cache::clear() {
    for (Shard& shard : shards_) {
        const std::lock_guard<std::mutex> lock(shard.mutex);
        std::fill_n(shard.buckets(), buckets_, -1);
        shard.used = 0;
        shard.newest = shard.oldest = -1;
        shard.hits = shard.misses = 0;
    }
}

std::array<int64_t, 4> Cache::counts() {
    std::array<int64_t, 4> all = {};
    for (Shard& shard : shards_) {
        const std::lock_guard<std::mutex> lock(shard.mutex);
        all[0] += shard.hits;
        all[1] += shard.misses;
        all[2] += shard.used;
        all[3] += 4 * buckets_ + capacity_ * stride_;
    }
    return all;
}

}  // namespace go
