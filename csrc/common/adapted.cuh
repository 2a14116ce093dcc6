// What a layer-wise optimizer's tensors have of their own: they travel in the table, as a list behind the addresses.
#pragma once
#include <cstring>
#include <vector>

#include "multi_tensor.cuh"

struct OfTensor {
    float weight_decay, adapted;  // adapted other than 0: with a trust ratio
};
static_assert(sizeof(OfTensor) == sizeof(uintptr_t));

// For each_table, as its last list. weight_decays, adapted: float32 [count] on the host; absent: 0.
inline std::vector<OfTensor> of_tensors(uintptr_t weight_decays, uintptr_t adapted, int64_t count) {
    std::vector<OfTensor> numbers(count);
    for (int64_t i = 0; i < count; ++i)
        numbers[i] = {pointer<float>(weight_decays)[i], adapted ? pointer<float>(adapted)[i] : 0.0f};
    return numbers;
}

namespace {

// What the table's last list holds of one tensor.
template <int lists>
__device__ __forceinline__ OfTensor of_tensor(const TensorTable<lists>& table, int tensor) {
    OfTensor numbers;
    memcpy(&numbers, &table.addresses[lists - 1][tensor], sizeof(numbers));
    return numbers;
}

}  // namespace
