#include "tensors.h"

#include "common/check.h"

namespace py = pybind11;

namespace {

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

bool alike(const TensorView& x, const TensorView& y) {
    return x.device.type == y.device.type && x.device.number == y.device.number && x.dtype.code == y.dtype.code &&
           x.dtype.bits == y.dtype.bits && x.dtype.lanes == y.dtype.lanes;
}

}  // namespace

std::tuple<int, int, int, int, int64_t> read_tensors(const py::capsule& exchange, const py::list& tensors,
                                                     uintptr_t addresses, uintptr_t sizes, uintptr_t layouts) {
    const auto* api = static_cast<Exchange*>(PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api"));
    if (!api) throw py::error_already_set();
    if (api->major != 1) throw py::value_error("read_tensors knows DLPack's version 1 only");
    require_at_least("read_tensors", "the number of tensors", static_cast<int64_t>(tensors.size()), 1);
    TensorView first{}, x{};
    int64_t n = 0;
    for (const py::handle tensor : tensors) {
        if (api->view_of_object(tensor.ptr(), &x)) throw py::error_already_set();
        if (n == 0) first = x;
        const int64_t elements = count(x);
        const int64_t order = layout(x, elements);
        if (!alike(x, first) || order < 0 || (elements && !x.data)) break;
        pointer<int64_t>(addresses)[n] = reinterpret_cast<int64_t>(x.data) + static_cast<int64_t>(x.byte_offset);
        pointer<int64_t>(sizes)[n] = elements;
        pointer<int64_t>(layouts)[n] = order;
        ++n;
    }
    const int64_t odd = n == static_cast<int64_t>(tensors.size()) ? -1 : n;
    return {first.device.type, first.device.number, first.dtype.code, first.dtype.bits, odd};
}
