#include "tensors.h"

#include <algorithm>

#include "common/check.h"

namespace py = pybind11;

namespace {

constexpr int64_t kGroup = 16;  // tensors that are asked for at once

// The parts of DLPack's interface that are used here, as its version 1 lays them out (dmlc/dlpack, dlpack.h).
struct Device {
    int32_t type, number;
};
struct DataType {
    uint8_t code, bits;
    uint16_t lanes;
};
struct TensorView {
    void* data;
    Device device;
    int32_t dimensions;
    DataType dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};
struct Exchange {
    uint32_t major, minor;
    void *previous, *allocate, *managed_from_object, *managed_to_object;
    int (*view_of_object)(void* object, TensorView* view);
    void* current_stream;
};

int64_t count(const TensorView& x) {
    int64_t elements = 1;
    for (int i = 0; i < x.dimensions; ++i) elements *= x.shape[i];
    return elements;
}

bool contiguous(const TensorView& x, int64_t elements) {
    if (!x.strides || elements == 0) return true;
    int64_t expected = 1;
    for (int i = x.dimensions - 1; i >= 0; expected *= x.shape[i], --i)
        if (x.shape[i] != 1 && x.strides[i] != expected) return false;
    return true;
}

// 0 for row-major order, a number of its own for each other order of dimensions (channels last), -1 where the elements
// don't fill one stretch of memory. From the innermost dimension on, four bits name the next one.
int64_t layout(const TensorView& x, int64_t elements) {
    if (contiguous(x, elements)) return 0;
    if (x.dimensions > 15) return -1;
    int64_t code = 0, expected = 1;
    unsigned left = 0;
    for (int i = 0; i < x.dimensions; ++i) left |= (x.shape[i] != 1) << i;  // of size 1, it may have any stride
    while (left) {
        int next = 0;
        while (next < x.dimensions && !(left >> next & 1 && x.strides[next] == expected)) ++next;
        if (next == x.dimensions) return -1;
        expected *= x.shape[next];
        code = code << 4 | (next + 1);
        left &= ~(1u << next);
    }
    return code;
}

// A tensor's Python object, its C++ object, its storage and its version counter lie anywhere in memory, each known only
// from the one before, and a step's data has driven them out of the caches. Asking for those of the next tensors lets
// the waits overlap; in groups, because what waits for a page's translation holds up what comes after it, unless that
// waits for one as well. Counters are for who increments them afterwards.
// Only objects of the type of the first, which is known to be a tensor, are looked into. inside: the word of a Python
// object that holds the C++ object's address; the storage's is the third word of that, the counter's the one named so.
// Inlined by order: GCC takes a function that only asks for cache lines to have no effect, and drops its calls.
[[gnu::always_inline]] inline void ask_ahead(PyObject* const* objects, int64_t i, int64_t count, int64_t inside,
                                             int64_t counter) {
    const auto word = [](const void* object, int64_t n) { return static_cast<const char* const*>(object)[n]; };
    const auto alike = [&](int64_t k) { return Py_TYPE(objects[k]) == Py_TYPE(objects[0]); };
    const int64_t next = std::min(count, i + kGroup), second = std::min(count, next + kGroup),
                  third = std::min(count, second + kGroup), last = std::min(count, third + kGroup);
    for (int64_t k = third; k < last; ++k) __builtin_prefetch(objects[k]);
    for (int64_t k = second; k < third; ++k)
        if (alike(k))
            for (int line = 0; line < 4; ++line) __builtin_prefetch(word(objects[k], inside) + line * 64);
    for (int64_t k = next; k < second; ++k)
        if (alike(k)) {
            const char* tensor = word(objects[k], inside);
            for (int line = 0; line < 2; ++line) __builtin_prefetch(word(tensor, 2) + line * 64);
            if (counter) __builtin_prefetch(word(tensor, counter));
        }
}

bool alike(const TensorView& x, const TensorView& y) {
    return x.device.type == y.device.type && x.device.number == y.device.number && x.dtype.code == y.dtype.code &&
           x.dtype.bits == y.dtype.bits && x.dtype.lanes == y.dtype.lanes;
}

}  // namespace

std::tuple<int, int, int, int, int64_t> read_tensors(const py::capsule& exchange, const py::list& tensors,
                                                     int64_t inside, int64_t counter, uintptr_t addresses,
                                                     uintptr_t sizes, uintptr_t layouts) {
    const auto* api = static_cast<Exchange*>(PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api"));
    if (!api) throw py::error_already_set();
    if (api->major != 1) throw py::value_error("read_tensors knows DLPack's version 1 only");
    require_at_least("read_tensors", "the number of tensors", static_cast<int64_t>(tensors.size()), 1);
    TensorView first{}, x{};
    int64_t n = 0;
    PyObject* const* objects = PySequence_Fast_ITEMS(tensors.ptr());
    const int64_t all = static_cast<int64_t>(tensors.size());
    for (const py::handle tensor : tensors) {
        if (api->view_of_object(tensor.ptr(), &x)) throw py::error_already_set();
        if (inside && n % kGroup == 0) ask_ahead(objects, n, all, inside, counter);
        if (n == 0) first = x;
        const int64_t elements = count(x);
        const int64_t order = layout(x, elements);
        if (!alike(x, first) || order < 0 || (elements && !x.data)) break;
        pointer<int64_t>(addresses)[n] = reinterpret_cast<int64_t>(x.data) + static_cast<int64_t>(x.byte_offset);
        pointer<int64_t>(sizes)[n] = elements;
        pointer<int64_t>(layouts)[n] = order;
        ++n;
    }
    const int64_t odd = n == all ? -1 : n;
    return {first.device.type, first.device.number, first.dtype.code, first.dtype.bits, odd};
}
