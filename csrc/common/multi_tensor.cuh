// Many tensors in one launch: each block takes one chunk of one of them. The table of addresses and sizes is a kernel
// parameter, so it needs no memory on the device and no copy of its own, and a captured launch keeps its table. What
// doesn't fit into one table's 4 KB (every CUDA version's limit for parameters) goes into further launches.
#pragma once
#include <array>

#include "check.h"
#include "device.cuh"

constexpr int kTableBytes = 3840;     // leaves 256 bytes for a kernel's other parameters
constexpr int kChunkElements = 4096;  // with 256 threads, four packs of four floats each
constexpr int kChunkThreads = 256;

// `lists` addresses (parameter, gradient, ...) for each tensor. Copied to the device as it is.
template <int lists>
struct TensorTable {
    static constexpr int kTensors = (kTableBytes - 24) / (8 * lists + 12);
    uintptr_t addresses[lists][kTensors];
    int64_t sizes[kTensors];              // elements
    int first_chunk[kTensors];            // the number, in this launch, of the tensor's first chunk
    int tensors, chunks;                  // in this launch
    int64_t first_tensor, chunks_before;  // this table's place among all tensors and among all chunks

    // Where the block works: elements [begin, begin + size) of tensor number `tensor` of this table.
    struct Chunk {
        int tensor, size;
        int64_t begin;
    };
    __device__ __forceinline__ Chunk chunk(int number) const {
        int tensor = 0, past = tensors;  // the last tensor whose first chunk isn't after `number`
        while (past - tensor > 1) {
            const int middle = (tensor + past) / 2;
            (first_chunk[middle] <= number ? tensor : past) = middle;
        }
        const int64_t begin = int64_t{number - first_chunk[tensor]} * kChunkElements;
        const int64_t left = sizes[tensor] - begin;
        return {tensor, static_cast<int>(left < kChunkElements ? left : kChunkElements), begin};
    }
    // The first element of a chunk in one of the lists. Chunks begin at multiples of 16 bytes of their tensor.
    template <class Element>
    __device__ __forceinline__ Element* data(int list, const Chunk& chunk) const {
        return reinterpret_cast<Element*>(addresses[list][chunk.tensor]) + chunk.begin;
    }
    // Whether a chunk begins at a multiple of 16 bytes in the first `of` lists.
    template <int of = lists>
    __device__ __forceinline__ bool aligned(const Chunk& chunk) const {
        uintptr_t all = 0;
#pragma unroll
        for (int list = 0; list < of; ++list) all |= addresses[list][chunk.tensor];
        return all % 16 == 0;
    }
};

// Calls launch(table) for tables that together hold all tensors, in order. It is to LAUNCH table.chunks blocks of
// kChunkThreads.
//   addresses  of int64 tables on the host, [count] each      sizes  int64 [count] on the host: elements
template <int lists, class Launch>
void each_table(const char* op, const std::array<uintptr_t, lists>& addresses, uintptr_t sizes, int64_t count,
                Launch&& launch) {
    constexpr int64_t kMostChunks = int64_t{1} << 30;
    TensorTable<lists> table{};
    const auto flush = [&](int64_t next) {
        if (table.chunks) launch(static_cast<const TensorTable<lists>&>(table));
        table.chunks_before += table.chunks;
        table.tensors = table.chunks = 0;
        table.first_tensor = next;
    };
    require_at_least(op, "count", count, 0);
    for (int64_t i = 0; i < count; ++i) {
        const int64_t size = pointer<int64_t>(sizes)[i];
        require_at_least(op, "a tensor's size", size, 0);
        const int64_t chunks = (size + kChunkElements - 1) / kChunkElements;
        if (chunks > kMostChunks)
            throw std::invalid_argument(std::string(op) + ": tensor " + std::to_string(i) + " has " +
                                        std::to_string(size) + " elements; expected at most 2^42");
        if (table.tensors == table.kTensors || table.chunks + chunks > kMostChunks) flush(i);
        for (int list = 0; list < lists; ++list)
            table.addresses[list][table.tensors] = pointer<uintptr_t>(addresses[list])[i];
        table.sizes[table.tensors] = size;
        table.first_chunk[table.tensors++] = table.chunks;
        table.chunks += static_cast<int>(chunks);
    }
    flush(count);
}
