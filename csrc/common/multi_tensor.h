// Many tensors as one line of elements: tensor i holds the places starts[i] .. starts[i + 1], so that threads can share
// out work by elements, whatever the tensors' sizes.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "check.h"
#include "parallel.h"

constexpr int64_t kChunk = 64 << 10;  // elements: large enough to hide the loop's cost, small enough to share out

class Line {
   public:
    // sizes: int64 [count], the elements of each tensor; 0 is fine. Each tensor starts at a multiple of `unit` on the
    // line, so that a share of the line that does too is whole units of each tensor.
    Line(const char* op, uintptr_t sizes, int64_t count, int64_t unit = 1) : sizes_(pointer<int64_t>(sizes)) {
        require_at_least(op, "count", count, 0);
        starts_.assign(count + 1, 0);
        for (int64_t i = 0; i < count; ++i) {
            require_at_least(op, "a tensor's size", sizes_[i], 0);
            starts_[i + 1] = starts_[i] + (sizes_[i] + unit - 1) / unit * unit;
        }
    }
    int64_t total() const { return starts_.back(); }
    int64_t count() const { return static_cast<int64_t>(starts_.size()) - 1; }
    int64_t start(int64_t i) const { return starts_[i]; }

    // Calls body(i, begin, end) for the elements begin .. end of each tensor i that lies within the places first ..
    // last.
    template <class Body>
    void walk(int64_t first, int64_t last, Body&& body) const {
        int64_t i = std::upper_bound(starts_.begin(), starts_.end(), first) - starts_.begin() - 1;
        for (; first < last; ++i) {
            const int64_t end = std::min(last, starts_[i + 1]);
            body(i, first - starts_[i], std::min(end - starts_[i], sizes_[i]));
            first = end;
        }
    }

    // The same for all tensors, the threads taking stretches of the line.
    template <class Body>
    void each(Body&& body) const {
        parallel_pieces(total(), kChunk, kChunk / 4, [&](int64_t first, int64_t last) { walk(first, last, body); });
    }

   private:
    const int64_t* sizes_;
    std::vector<int64_t> starts_;
};

// The i-th of a table of addresses (int64 on the host).
template <class Value>
Value* tensor(uintptr_t addresses, int64_t i) {
    return reinterpret_cast<Value*>(pointer<int64_t>(addresses)[i]);
}
