// The emulator's own interface: what emulate/cuda.h (CUDA's names) and common/launch.cuh call. One launch runs on the
// calling thread: its blocks one after another in shuffled order, a block's threads as fibers that take turns at
// barriers and warp-wide functions, in shuffled order too.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

namespace emulate {

// A line of a kernel, for messages.
struct Line {
    const char* file;
    int number;
};

// Runs body() once for each thread of the grid. Throws std::runtime_error, naming kernel, block and thread, for a
// launch that no GPU takes, a barrier that not all threads reach, and a warp function that not all named lanes reach.
void launch(const char* kernel, dim3 grid, dim3 block, size_t shared, const std::function<void()>& body);

// What the running thread is. Constant while a kernel's body runs, so the compiler may ask once.
[[gnu::const]] uint3 thread_index();
[[gnu::const]] uint3 block_index();
[[gnu::const]] dim3 block_size();
[[gnu::const]] dim3 grid_size();
[[gnu::const]] void* dynamic_shared();

// __syncthreads; returns how many threads gave a predicate other than 0.
int block_barrier(const char* name, int predicate, Line line);

// What a lane brings to a warp-wide function and what it gets: all lanes that `mask` names must come to the same one.
enum class Warp { barrier, shuffle, ballot, match, reduce };
struct Request {
    Warp kind;
    const char* name;
    unsigned mask;
    uint64_t value;                           // the lane's own
    int source;                               // shuffle: the lane to read from
    uint64_t (*combine)(uint64_t, uint64_t);  // reduce
    Line line;
};
uint64_t warp(const Request& request);
int lane();

// Told to the race detector (races.cpp), which is idle unless the kernels are compiled to report their accesses.
void atomic_access(const void* address, size_t bytes, const void* pc);
void fence();

// An error that ends the launch; called by a running thread only.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

template <class To, class From>
To bits(From from) {
    static_assert(sizeof(From) <= sizeof(To) || sizeof(To) <= sizeof(From));
    To to{};
    std::memcpy(&to, &from, sizeof(From) < sizeof(To) ? sizeof(From) : sizeof(To));
    return to;
}

}  // namespace emulate
