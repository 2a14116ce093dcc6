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

bool alike(const TensorView& x, const TensorView& y) {
    return x.device.type == y.device.type && x.device.number == y.device.number && x.dtype.code == y.dtype.code &&
           x.dtype.bits == y.dtype.bits && x.dtype.lanes == y.dtype.lanes;
}

}  // namespace

std::tuple<int, int, int, int, int64_t> read_tensors(const py::capsule& exchange, const py::list& tensors,
                                                     uintptr_t addresses, uintptr_t sizes) {
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
        if (!alike(x, first) || !contiguous(x, elements) || (elements && !x.data)) break;
        pointer<int64_t>(addresses)[n] = reinterpret_cast<int64_t>(x.data) + static_cast<int64_t>(x.byte_offset);
        pointer<int64_t>(sizes)[n] = elements;
        ++n;
    }
    const int64_t odd = n == static_cast<int64_t>(tensors.size()) ? -1 : n;
    return {first.device.type, first.device.number, first.dtype.code, first.dtype.bits, odd};
}
