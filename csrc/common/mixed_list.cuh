// Lists of tensors that may be stored in 16 bits: packs of them are loaded and stored as float, so that a kernel is
// written once, for float. The type is the same in the whole launch, so no warp diverges over it.
#pragma once
#include "multi_tensor.cuh"
#include "stored_as.h"

namespace {

template <int width, class Element>
__device__ __forceinline__ Pack<float, width> load_converted(const Element* from) {
    const auto stored = load<width>(from);
    Pack<float, width> floats;
#pragma unroll
    for (int i = 0; i < width; ++i) floats.at[i] = to_float(stored.at[i]);
    return floats;
}

template <int width, class Element>
__device__ __forceinline__ void store_converted(Element* to, const Pack<float, width>& floats) {
    Pack<Element, width> stored;
#pragma unroll
    for (int i = 0; i < width; ++i) stored.at[i] = from_float<Element>(floats.at[i]);
    store(to, stored);
}

// Elements k .. k + width of the chunk in list number `list`, whose tensors are stored as `type`. k must be a multiple
// of width, and the chunk aligned if width isn't 1.
template <int width, int lists>
__device__ __forceinline__ Pack<float, width> load_mixed(const TensorTable<lists>& table, int list, int type,
                                                         const typename TensorTable<lists>::Chunk& chunk, int k) {
    if (type == kBFloat16) return load_converted<width>(table.template data<const __nv_bfloat16>(list, chunk) + k);
    if (type == kFloat16) return load_converted<width>(table.template data<const __half>(list, chunk) + k);
    return load<width>(table.template data<const float>(list, chunk) + k);
}

template <int width, int lists>
__device__ __forceinline__ void store_mixed(const TensorTable<lists>& table, int list, int type,
                                            const typename TensorTable<lists>::Chunk& chunk, int k,
                                            const Pack<float, width>& floats) {
    if (type == kBFloat16)
        store_converted(table.template data<__nv_bfloat16>(list, chunk) + k, floats);
    else if (type == kFloat16)
        store_converted(table.template data<__half>(list, chunk) + k, floats);
    else
        store(table.template data<float>(list, chunk) + k, floats);
}

}  // namespace
