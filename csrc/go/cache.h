// The network's answers to positions, for all searches that share it (mlcommons/training, retired_benchmarks/minigo,
// cc/model/inference_cache.h): fixed memory, in which the position used least recently makes room. The eight symmetries
// of a position are one entry, which holds the mean of its answers. Calls may come from many threads.
//
// Of what came before a position the key has the last pass and the illegal points only, though the network sees more:
// a hit is approximate. So it is after the network has learnt: nothing but clear() forgets.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <mutex>

#include "planes.h"

namespace go {

// A question to the network, as the cache knows it.
struct Question {
    uint64_t stones, rest;  // the key: of stones, and of these and all else
    int symmetry;           // of the position that is the canonical orientation
    int asked;              // the symmetry of the canonical orientation that the network sees
};

// The network is to see `position` in symmetry `turn`. The canonical orientation is the one of the smallest hash; where
// several share that, stones are symmetric, it is the position's own. legal [points + 1] as of legal_moves(): of the
// empty points those that are illegal are part of the key, with the side to move and whether the last move was a pass.
Question question(const Position& position, const uint8_t* legal, int turn, const Symmetries& symmetries);

class Cache {
   public:
    static constexpr int kShards = 16;  // each has its own lock

    // Of 2^20 bytes each, 1 .. 2^20, for boards of `size` lines. The system gives the memory as it is used.
    Cache(int64_t megabytes, int64_t size);

    int64_t size() const { return size_; }
    int shard(const Question& asked) const { return static_cast<int>(asked.rest >> 60); }

    // Whether the network was asked in this symmetry. Then policy [points + 1] and value are the mean of the answers so
    // far, in the canonical orientation. What was found is as old as before until touch().
    bool find(const Question& asked, float* policy, float* value);
    void touch(const Question& asked);
    // Averages an answer in, a symmetry's only once, and leaves the mean in its place.
    void merge(const Question& asked, float* policy, float* value);

    void clear();  // the counts too
    // Finds that were hits and that weren't, positions that are held, bytes that they may take.
    std::array<int64_t, 4> counts();

   private:
    struct Entry {
        uint64_t stones, rest;
        int32_t newer, older;  // by use; -1: none
        int32_t next;          // in its bucket
        float value;
        uint8_t asked;  // bit s: symmetry s

        float* policy() { return reinterpret_cast<float*>(this + 1); }
    };
    struct alignas(64) Shard {
        std::mutex mutex;
        std::unique_ptr<uint64_t[]> memory;  // buckets, each the first of its entries or -1, then the entries
        int32_t used = 0, newest = -1, oldest = -1;
        int64_t hits = 0, misses = 0;

        int32_t* buckets() { return reinterpret_cast<int32_t*>(memory.get()); }
    };

    Entry& entry(Shard& shard, int32_t i) const;
    int32_t& bucket(Shard& shard, uint64_t rest) const { return shard.buckets()[rest & (buckets_ - 1)]; }
    int32_t place(Shard& shard, const Question& asked) const;  // -1: not there
    int32_t make(Shard& shard, const Question& asked) const;
    void unlink(Shard& shard, Entry& one) const;
    void put_first(Shard& shard, int32_t i) const;

    int64_t size_, moves_ = 0, stride_ = 0, capacity_ = 0, buckets_ = 2;  // of a shard; stride_: bytes of an entry
    std::array<Shard, kShards> shards_;
};

}  // namespace go
