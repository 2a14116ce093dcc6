// The CUDA module: one line a function. Contracts are in the headers; addresses and the stream arrive as integers.
#include <pybind11/pybind11.h>

#include "sgd.h"

namespace py = pybind11;

PYBIND11_MODULE(native, m) {
    using Unlocked = py::call_guard<py::gil_scoped_release>;
    m.def("sgd", &cuda::sgd, Unlocked());
}
