// The CUDA module: one line a function. Contracts are in the headers; addresses and the stream arrive as integers.
#include <pybind11/pybind11.h>

#include "adam.h"
#include "dot_interaction.h"
#include "ema.h"
#include "embedding_bag.h"
#include "grad_norm.h"
#include "lamb.h"
#include "lars.h"
#include "sgd.h"
#include "sgd_momentum.h"

namespace py = pybind11;

PYBIND11_MODULE(native, m) {
    using Unlocked = py::call_guard<py::gil_scoped_release>;
    m.def("embedding_bag_fwd", &cuda::embedding_bag_fwd, Unlocked());
    m.def("embedding_bag_bwd_sgd", &cuda::embedding_bag_bwd_sgd, Unlocked());
    m.def("embedding_bag_keys", &cuda::embedding_bag_keys, Unlocked());
    m.def("embedding_bag_parts", &cuda::embedding_bag_parts, Unlocked());
    m.def("embedding_bag_bwd_sorted", &cuda::embedding_bag_bwd_sorted, Unlocked());
    m.def("dot_interaction_fwd", &cuda::dot_interaction_fwd, Unlocked());
    m.def("dot_interaction_bwd", &cuda::dot_interaction_bwd, Unlocked());
    m.def("adam", &cuda::adam, Unlocked());
    m.def("ema", &cuda::ema, Unlocked());
    m.def("grad_norm", &cuda::grad_norm, Unlocked());
    m.def("grad_norm_scratch", &cuda::grad_norm_scratch);
    m.def("lamb", &cuda::lamb, Unlocked());
    m.def("lamb_scratch", &cuda::lamb_scratch);
    m.def("lamb_moments", &cuda::lamb_moments, Unlocked());
    m.def("lamb_moments_scratch", &cuda::lamb_moments_scratch);
    m.def("lamb_apply", &cuda::lamb_apply, Unlocked());
    m.def("lars", &cuda::lars, Unlocked());
    m.def("lars_scratch", &cuda::lars_scratch);
    m.def("sgd", &cuda::sgd, Unlocked());
    m.def("sgd_momentum", &cuda::sgd_momentum, Unlocked());
}
