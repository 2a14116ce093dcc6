// What kernels share: number types, loads and stores of 16 bytes, sums over a warp or a block.
#pragma once
#include <type_traits>

#include "launch.cuh"

namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Storage types are float, __half and __nv_bfloat16; arithmetic is in float.
__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

// To the nearest, ties to even.
template <class Element>
__device__ __forceinline__ Element from_float(float x) {
    if constexpr (std::is_same_v<Element, __half>) {
        return __float2half(x);
    } else if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
        return __float2bfloat16(x);
    } else {
        return x;
    }
}

// `width` neighbours that one instruction loads or stores; the address must be a multiple of their size.
template <class Element, int width>
struct alignas(sizeof(Element) * width) Pack {
    Element at[width];
};
template <int width, class Element>
__device__ __forceinline__ Pack<Element, width> load(const Element* from) {
    return *reinterpret_cast<const Pack<Element, width>*>(from);
}
template <int width, class Element>
__device__ __forceinline__ void store(Element* to, const Pack<Element, width>& pack) {
    *reinterpret_cast<Pack<Element, width>*>(to) = pack;
}

// A store that may meet others of the same place, of which any may last: a relaxed atomic one.
template <class Value>
__device__ __forceinline__ void store_relaxed(Value* to, Value value) {
#ifdef __CUDACC__
    *static_cast<volatile Value*>(to) = value;
#else
    atomicExch(to, value);
#endif
}

// The most elements that one instruction moves: 16 bytes.
template <class Element>
constexpr int kWidest = 16 / sizeof(Element);

template <class... Elements>
__device__ __forceinline__ bool aligned(const Elements*... addresses) {
    return ((reinterpret_cast<uintptr_t>(addresses) | ...) & 15) == 0;
}

// Calls body(width, k) for packs that together cover [0, count), shared out over a one-dimensional block's threads:
// `width` elements from k on, and a remainder one by one. With wide = false all come one by one. `width` is a constant
// for template arguments: body = [&](auto width, int k) { const auto x = load<width>(from + k); ... }.
template <int n>
struct Width {
    __host__ __device__ constexpr operator int() const { return n; }
};
template <int width, class Body>
__device__ __forceinline__ void each_pack(int count, bool wide, Body&& body) {
    const int whole = wide ? count / width * width : 0;
    for (int k = threadIdx.x * width; k < whole; k += blockDim.x * width) body(Width<width>(), k);
    for (int k = whole + threadIdx.x; k < count; k += blockDim.x) body(Width<1>(), k);
}

struct Sum {
    template <class Value>
    __device__ __forceinline__ Value operator()(Value a, Value b) const {
        return a + b;
    }
};
struct Max {
    template <class Value>
    __device__ __forceinline__ Value operator()(Value a, Value b) const {
        return a < b ? b : a;
    }
};

// combine(...) of the values of `width` neighbouring lanes (a power of two), the same in each of them. All 32 lanes
// must call it.
template <int width = kWarp, class Value, class Combine>
__device__ __forceinline__ Value warp_reduce(Value value, Combine combine) {
#pragma unroll
    for (int step = width / 2; step > 0; step /= 2) value = combine(value, __shfl_xor_sync(kAllLanes, value, step));
    return value;
}

// combine(...) of the values of all threads of a one-dimensional block, the same in each of them, in an order that
// doesn't change from run to run. The block is a multiple of 32 threads and all of them must call it. `identity` is
// what changes nothing: 0 for Sum.
template <class Value, class Combine>
__device__ __forceinline__ Value block_reduce(Value value, Value identity, Combine combine) {
    __shared__ Value of_warp[kWarp];
    const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    value = warp_reduce(value, combine);
    if (lane == 0) of_warp[warp] = value;
    __syncthreads();
    value = lane < warps ? of_warp[lane] : identity;
    __syncthreads();  // before a later call writes of_warp again
    return warp_reduce(value, combine);
}

}  // namespace
