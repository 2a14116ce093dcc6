// The CPU module: one line a function. Contracts are in the headers; addresses arrive as integers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "adam.h"
#include "attention.h"
#include "batch_norm.h"
#include "bias_gelu.h"
#include "conv3x3.h"
#include "crc32c.h"
#include "criteo.h"
#include "dot_interaction.h"
#include "ema.h"
#include "embedding_bag.h"
#include "embedding_layer_norm.h"
#include "go/cache.h"
#include "go/games.h"
#include "go/search.h"
#include "grad_norm.h"
#include "lamb.h"
#include "lars.h"
#include "layer_norm.h"
#include "memory.h"
#include "mlp.h"
#include "resample.h"
#include "roc_auc.h"
#include "sgd.h"
#include "sgd_momentum.h"
#include "softmax_cross_entropy.h"
#include "tensors.h"

namespace py = pybind11;

static std::vector<std::string> cpu_levels() {
    std::vector<std::string> levels{"generic"};
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
        levels.push_back("avx2");
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        levels.push_back("avx512");
#endif
    return levels;
}

PYBIND11_MODULE(MODULE_NAME, m) {
    m.def("cpu_levels", &cpu_levels);
    m.def("tune_malloc", &tune_malloc);
    m.def("advise_huge_pages", &advise_huge_pages);

    using Unlocked = py::call_guard<py::gil_scoped_release>;
    m.def("embedding_bag_fwd", &embedding_bag_fwd, Unlocked());
    m.def("embedding_bag_bwd_sgd", &embedding_bag_bwd_sgd, Unlocked());
    m.def("embedding_bag_bwd_rowwise_adagrad", &embedding_bag_bwd_rowwise_adagrad, Unlocked());
    m.def("embedding_layer_norm_fwd", &embedding_layer_norm_fwd, Unlocked());
    m.def("embedding_layer_norm_bwd", &embedding_layer_norm_bwd, Unlocked());
    m.def("embedding_layer_norm_tables", &embedding_layer_norm_tables, Unlocked());
    m.def("dot_interaction_fwd", &dot_interaction_fwd, Unlocked());
    m.def("dot_interaction_bwd", &dot_interaction_bwd, Unlocked());
    m.def("grad_norm", &grad_norm, Unlocked());
    m.def("adam", &adam, Unlocked());
    m.def("ema", &ema, Unlocked());
    m.def("lamb", &lamb, Unlocked());
    m.def("lamb_moments", &lamb_moments, Unlocked());
    m.def("lamb_apply", &lamb_apply, Unlocked());
    m.def("lars", &lars, Unlocked());
    m.def("attention_fwd", &attention_fwd, Unlocked());
    m.def("attention_bwd", &attention_bwd, Unlocked());
    m.def("batch_norm_moments", &batch_norm_moments, Unlocked());
    m.def("batch_norm_apply", &batch_norm_apply, Unlocked());
    m.def("batch_norm_sums", &batch_norm_sums, Unlocked());
    m.def("batch_norm_dx", &batch_norm_dx, Unlocked());
    m.def("bias_gelu_fwd", &bias_gelu_fwd, Unlocked());
    m.def("bias_gelu_bwd", &bias_gelu_bwd, Unlocked());
    m.def("conv3x3", &conv3x3, Unlocked());
    m.def("layer_norm_fwd", &layer_norm_fwd, Unlocked());
    m.def("layer_norm_bwd", &layer_norm_bwd, Unlocked());
    m.def("mlp_bias_fwd", &mlp_bias_fwd, Unlocked());
    m.def("mlp_bias_bwd", &mlp_bias_bwd, Unlocked());
    m.def("mlp_small_fwd", &mlp_small_fwd, Unlocked());
    m.def("mlp_small_bwd", &mlp_small_bwd, Unlocked());
    m.def("sgd", &sgd, Unlocked());
    m.def("sgd_momentum", &sgd_momentum, Unlocked());
    m.def("softmax_cross_entropy_fwd", &softmax_cross_entropy_fwd, Unlocked());
    m.def("softmax_cross_entropy_bwd", &softmax_cross_entropy_bwd, Unlocked());
    m.def("read_tensors", &read_tensors);
    m.def("roc_auc", &roc_auc, Unlocked());
    m.def("crc32c", &crc32c, Unlocked());
    m.def("resample", &resample, Unlocked());
    m.def("criteo_decode", &criteo_decode, Unlocked());
    m.def("criteo_parse", &criteo_parse, Unlocked());
    m.def("criteo_index", &criteo_index, Unlocked());
    m.def("criteo_audit", &criteo_audit, Unlocked());
    m.def("go_game_bytes", &go_game_bytes);
    m.def("go_new", &go_new, Unlocked());
    m.def("go_play", &go_play, Unlocked());
    m.def("go_legal", &go_legal, Unlocked());
    m.def("go_planes", &go_planes, Unlocked());
    m.def("go_stones", &go_stones, Unlocked());
    m.def("go_facts", &go_facts, Unlocked());
    m.def("go_area", &go_area, Unlocked());
    m.def("go_playouts", &go_playouts, Unlocked());
    m.def("go_transform_planes", &go_transform_planes, Unlocked());
    m.def("go_transform_policies", &go_transform_policies, Unlocked());

    using Cache = go::Cache;
    py::class_<Cache, std::shared_ptr<Cache>>(m, "GoCache", py::module_local())
        .def(py::init<int64_t, int64_t>())
        .def("clear", &Cache::clear, Unlocked())
        .def("counts", &Cache::counts, Unlocked());

    using Search = go::Search;
    py::class_<Search>(m, "GoSearch", py::module_local())
        .def(py::init([](uintptr_t games, int64_t count, int64_t stride, int64_t leaves, double value_penalty,
                         double komi, double noise_alpha, double noise_mix, int64_t soft_moves, double soft_power,
                         int64_t restrict_passes, bool own_eyes, int64_t seed, std::shared_ptr<Cache> cache) {
            const go::SearchOptions options{leaves,     value_penalty,   komi,     noise_alpha, noise_mix, soft_moves,
                                            soft_power, restrict_passes, own_eyes, seed};
            return std::make_unique<Search>(games, count, stride, options, std::move(cache));
        }))
        .def("reset", &Search::reset, Unlocked())
        .def("start", &Search::start, Unlocked())
        .def("select", &Search::select, Unlocked())
        .def("back_up", &Search::back_up, Unlocked())
        .def("done", &Search::done, Unlocked())
        .def("play_out", &Search::play_out, Unlocked())
        .def("choose", &Search::choose, Unlocked())
        .def("play", &Search::play, Unlocked())
        .def("roots", &Search::roots, Unlocked())
        .def("line", &Search::line, Unlocked())
        .def("draws", &Search::draws, Unlocked())
        .def("bytes", &Search::bytes);
}
