// Lists of tensors that may be stored in 16 bits: read and written in blocks of float, so that an op's loop is written
// once, for float. A block stays in the first-level cache, and converting it costs no time beside the memory's.
#pragma once
#include <algorithm>
#include <cstdint>

#include "check.h"
#include "float16.h"
#include "multi_tensor.h"
#include "stored_as.h"

constexpr int64_t kBlock = 1024;  // elements: 4 KiB of float, so that a dozen blocks fit the first-level cache

class MixedList {
   public:
    // addresses: int64 [count] on the host, or 0 for a list that is absent; type: a StoredAs, the same for all.
    MixedList(const char* op, uintptr_t addresses, int type = kFloat32) : addresses_(addresses), type_(type) {
        if (type < kFloat32 || type > kFloat16)
            throw std::invalid_argument(std::string(op) + ": a list's type is " + std::to_string(type) +
                                        "; expected 0 (float32), 1 (bfloat16) or 2 (float16)");
    }

    uintptr_t addresses() const { return addresses_; }
    int64_t bytes() const { return type_ == kFloat32 ? 4 : 2; }  // of an element

    // The elements begin .. begin + n of tensor i, n at most kBlock: in place where they are float, else in `block`.
    const float* read(int64_t i, int64_t begin, int64_t n, float* block) const {
        if (type_ == kFloat32) return tensor<float>(addresses_, i) + begin;
        if (type_ == kBFloat16)
            convert(block, tensor<BFloat16>(addresses_, i) + begin, n);
        else
            convert(block, tensor<Float16>(addresses_, i) + begin, n);
        return block;
    }

    // Rounds `from` to those elements; does nothing for an absent list.
    void write(int64_t i, int64_t begin, int64_t n, const float* from) const {
        if (!addresses_) return;
        if (type_ == kFloat32)
            std::copy(from, from + n, tensor<float>(addresses_, i) + begin);
        else if (type_ == kBFloat16)
            convert(tensor<BFloat16>(addresses_, i) + begin, from, n);
        else
            convert(tensor<Float16>(addresses_, i) + begin, from, n);
    }

   private:
    uintptr_t addresses_;
    int type_;
};

// Calls body(k, n) for begin .. end in blocks of at most kBlock elements.
template <class Body>
void in_blocks(int64_t begin, int64_t end, Body&& body) {
    for (int64_t k = begin; k < end; k += kBlock) body(k, std::min(kBlock, end - k));
}
