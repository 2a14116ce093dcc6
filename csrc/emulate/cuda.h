// CUDA's names for g++: what the .cu files use of CUDA C++, each with the meaning that NVIDIA's programming guide gives
// it. A name that is missing here is one that no kernel has used yet: add it, with its meaning.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulate.h"
#include "numbers.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))
// A block runs alone, so static storage is its own. The build puts it into a section that the emulator can fill before
// each block (GCC 12 ignores a section attribute inside of templates): a .cu file must have no other static variables.
#define __shared__ static

#define threadIdx (::emulate::thread_index())
#define blockIdx (::emulate::block_index())
#define blockDim (::emulate::block_size())
#define gridDim (::emulate::grid_size())
constexpr int warpSize = 32;

#define EMULATE_LINE emulate::Line line = {__builtin_FILE(), __builtin_LINE()}

// Barriers and fences ------------------------------------------------------------------------------------------------

inline void __syncthreads(EMULATE_LINE) { emulate::block_barrier("__syncthreads", 0, line); }
inline int __syncthreads_count(int predicate, EMULATE_LINE) {
    return emulate::block_barrier("__syncthreads_count", predicate, line);
}
inline int __syncthreads_or(int predicate, EMULATE_LINE) {
    return emulate::block_barrier("__syncthreads_or", predicate, line) > 0;
}
inline int __syncthreads_and(int predicate, EMULATE_LINE) {
    return emulate::block_barrier("__syncthreads_and", !predicate, line) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATE_LINE) {
    emulate::warp({emulate::Warp::barrier, "__syncwarp", mask, 0, 0, nullptr, line});
}
inline void __threadfence() { emulate::fence(); }
inline void __threadfence_block() {}
inline void __threadfence_system() { emulate::fence(); }

// Warp-wide functions ------------------------------------------------------------------------------------------------

namespace emulate {
template <class Value>
Value shuffle(const char* name, unsigned mask, Value value, int source, Line line) {
    static_assert(sizeof(Value) <= 8);
    return bits<Value>(warp({Warp::shuffle, name, mask, bits<uint64_t>(value), source, nullptr, line}));
}
// The lanes of a shuffle's segment: [first, first + width).
inline int first_of_segment(int width) { return lane() / width * width; }

template <class Value, class Combine>
Value reduce(const char* name, unsigned mask, Value value, Combine, Line line) {
    const auto combine = [](uint64_t a, uint64_t b) {
        return bits<uint64_t>(Combine()(bits<Value>(a), bits<Value>(b)));
    };
    return bits<Value>(warp({Warp::reduce, name, mask, bits<uint64_t>(value), 0, combine, line}));
}
}  // namespace emulate

template <class Value>
Value __shfl_sync(unsigned mask, Value value, int source, int width = 32, EMULATE_LINE) {
    const int from = emulate::first_of_segment(width) + (source & (width - 1));
    return emulate::shuffle("__shfl_sync", mask, value, from, line);
}
template <class Value>
Value __shfl_up_sync(unsigned mask, Value value, unsigned delta, int width = 32, EMULATE_LINE) {
    const int from = emulate::lane() - static_cast<int>(delta);
    return emulate::shuffle("__shfl_up_sync", mask, value,
                            from < emulate::first_of_segment(width) ? emulate::lane() : from, line);
}
template <class Value>
Value __shfl_down_sync(unsigned mask, Value value, unsigned delta, int width = 32, EMULATE_LINE) {
    const int from = emulate::lane() + static_cast<int>(delta);
    return emulate::shuffle("__shfl_down_sync", mask, value,
                            from < emulate::first_of_segment(width) + width ? from : emulate::lane(), line);
}
template <class Value>
Value __shfl_xor_sync(unsigned mask, Value value, int lanes, int width = 32, EMULATE_LINE) {
    const int from = emulate::lane() ^ lanes;  // may read from a segment before its own, not from one behind it
    return emulate::shuffle("__shfl_xor_sync", mask, value,
                            from < emulate::first_of_segment(width) + width ? from : emulate::lane(), line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATE_LINE) {
    return static_cast<unsigned>(
        emulate::warp({emulate::Warp::ballot, "__ballot_sync", mask, predicate != 0, 0, nullptr, line}));
}
inline int __any_sync(unsigned mask, int predicate, EMULATE_LINE) {
    return emulate::warp({emulate::Warp::ballot, "__any_sync", mask, predicate != 0, 0, nullptr, line}) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMULATE_LINE) {
    return emulate::warp({emulate::Warp::ballot, "__all_sync", mask, predicate == 0, 0, nullptr, line}) == 0;
}
template <class Value>
unsigned __match_any_sync(unsigned mask, Value value, EMULATE_LINE) {
    const uint64_t own = emulate::bits<uint64_t>(value);
    return static_cast<unsigned>(
        emulate::warp({emulate::Warp::match, "__match_any_sync", mask, own, 0, nullptr, line}));
}
#define EMULATE_REDUCE(name, Value, expression)                             \
    inline Value name(unsigned mask, Value value, EMULATE_LINE) {           \
        struct Combine {                                                    \
            Value operator()(Value a, Value b) const { return expression; } \
        };                                                                  \
        return emulate::reduce(#name, mask, value, Combine(), line);        \
    }
EMULATE_REDUCE(__reduce_add_sync, unsigned, a + b)
EMULATE_REDUCE(__reduce_add_sync, int, static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)))
EMULATE_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
EMULATE_REDUCE(__reduce_min_sync, int, a < b ? a : b)
EMULATE_REDUCE(__reduce_max_sync, unsigned, a < b ? b : a)
EMULATE_REDUCE(__reduce_max_sync, int, a < b ? b : a)
EMULATE_REDUCE(__reduce_and_sync, unsigned, a& b)
EMULATE_REDUCE(__reduce_or_sync, unsigned, a | b)
EMULATE_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef EMULATE_REDUCE

// Atomics: threads take turns, so a plain update is indivisible. Each returns what was there before ------------------

namespace emulate {
// Its memory is checked by AddressSanitizer; the race detector learns that the access is atomic.
template <class Value, class Change>
__attribute__((no_sanitize("thread"), noinline)) Value atomic(Value* at, Change change) {
    atomic_access(at, sizeof(Value), __builtin_return_address(0));
    const Value before = *at;
    *at = change(before);
    return before;
}
template <class Value>
using Same = std::common_type_t<Value>;  // an argument that doesn't take part in deducing Value
}  // namespace emulate

#define EMULATE_ATOMIC(name, expression)                                                       \
    template <class Value>                                                                     \
    __attribute__((always_inline)) inline Value name(Value* at, emulate::Same<Value> value) {  \
        return emulate::atomic(at, [&](Value old) { return static_cast<Value>(expression); }); \
    }
EMULATE_ATOMIC(atomicAdd, emulate::wrapping_add(old, value))
EMULATE_ATOMIC(atomicSub, emulate::wrapping_add(old, static_cast<Value>(-value)))
EMULATE_ATOMIC(atomicMax, old < value ? value : old)
EMULATE_ATOMIC(atomicMin, value < old ? value : old)
EMULATE_ATOMIC(atomicExch, ((void)old, value))
EMULATE_ATOMIC(atomicAnd, old& value)
EMULATE_ATOMIC(atomicOr, old | value)
EMULATE_ATOMIC(atomicXor, old ^ value)
EMULATE_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
#undef EMULATE_ATOMIC
template <class Value>
__attribute__((always_inline)) inline Value atomicCAS(Value* at, emulate::Same<Value> expected,
                                                      emulate::Same<Value> value) {
    return emulate::atomic(at, [&](Value old) { return old == expected ? value : old; });
}

// Loads and stores with a cache hint ----------------------------------------------------------------------------------

#define EMULATE_LOAD(name)          \
    template <class Value>          \
    Value name(const Value* from) { \
        return *from;               \
    }
EMULATE_LOAD(__ldg)
EMULATE_LOAD(__ldca)
EMULATE_LOAD(__ldcg)
EMULATE_LOAD(__ldcs)
EMULATE_LOAD(__ldcv)
#undef EMULATE_LOAD
#define EMULATE_STORE(name)                                   \
    template <class Value>                                    \
    void name(Value* to, const emulate::Same<Value>& value) { \
        *to = value;                                          \
    }
EMULATE_STORE(__stcg)
EMULATE_STORE(__stcs)
EMULATE_STORE(__stwb)
EMULATE_STORE(__stwt)
#undef EMULATE_STORE
