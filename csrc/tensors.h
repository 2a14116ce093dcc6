// Reads many tensors at once through DLPack's C exchange interface, which the framework hands out as a capsule: 0.07 us
// a tensor that is in the caches, 0.12 us one that isn't, where asking each in Python for its address, size, dtype,
// device and layout takes 1 us. No libtorch.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>

// (device type, device number, dtype code, dtype bits, odd): DLPack's numbers for the first tensor, and the place of
// the first tensor that isn't like it, has gaps or no memory, -1 if there is none. Fills addresses, sizes and layouts,
// int64 [n] each, up to there; a layout is 0 for row-major order, and another number for each other order of
// dimensions. `tensors` must not be empty. inside: which word of a tensor's Python object holds the address of its C++
// object; counter: which word of that holds the address of its version counter. 0 where that isn't known: they only
// make reading, and counting a version up afterwards, faster. Raises what the framework raises for an object that is no
// tensor.
std::tuple<int, int, int, int, int64_t> read_tensors(const pybind11::capsule& exchange, const pybind11::list& tensors,
                                                     int64_t inside, int64_t counter, uintptr_t addresses,
                                                     uintptr_t sizes, uintptr_t layouts);
