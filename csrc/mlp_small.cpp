#include <omp.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "common/check.h"
#include "common/multi_tensor.h"
#include "common/parallel.h"
#include "common/product.h"
#include "mlp.h"

// A thread takes its samples in blocks and each block through all layers, so that what a layer writes is still in the
// thread's own cache when the next one reads it, and threads meet once a direction instead of at each product. Every
// product runs over a packed right side: panels of kPanel columns, each [inner, width], padded with zeros to whole
// registers. A thread packs all weights for itself: they are small, and a barrier would take longer.

namespace {

constexpr int64_t kBlock = 8 * kTall;  // samples

struct Layer {
    int64_t K, N;  // inputs, outputs
    const float *weight, *bias;
    float* out;
    bool relu;
};

// `rows` rows times a packed right side of `columns` columns, column names the first of them to `finish`.
template <class Finish>
void product(const Left& left, int64_t rows, const float* packed, int64_t inner, int64_t columns, Finish&& finish,
             int64_t column = 0) {
    for (int64_t n = 0; n < columns; n += kPanel, packed += kPanel * inner)
        if (columns - n > kLanes)
            product_panel<kWide>(left, rows, packed, kPanel, inner, column + n, finish);
        else
            product_panel<1>(left, rows, packed, kLanes, inner, column + n, finish);
}

// One panel of a right side that lies in rows: to[i, j] = from[i * stride + j] for j < columns.
void pack_panel(const float* from, int64_t stride, int64_t inner, int64_t columns, float* to) {
    const int64_t width = whole_registers(columns);
    for (int64_t i = 0; i < inner; ++i, from += stride, to += width)
        for (int64_t j = 0; j < columns; j += kLanes) store(to + j, load_some(from + j, columns - j));
}

// All panels of weight [N, K] as it is, the right side of dx = g W.
void pack(const Layer& layer, float* to) {
    for (int64_t k = 0; k < layer.K; k += kPanel, to += kPanel * layer.N)
        pack_panel(layer.weight + k, layer.K, layer.N, std::min(kPanel, layer.K - k), to);
}

// All panels of weight's transpose, the right side of y = x W^T: in squares of registers.
void pack_transposed(const Layer& layer, float* to) {
    const int64_t K = layer.K, N = layer.N;
    for (int64_t n0 = 0; n0 < N; n0 += kPanel, to += kPanel * K) {
        const int64_t width = whole_registers(std::min(kPanel, N - n0));
        for (int64_t j = 0; j < width; j += kLanes)
            for (int64_t k = 0; k < K; k += kLanes) {
                Vec square[kLanes];
                for (int i = 0; i < kLanes; ++i) {
                    const int64_t n = n0 + j + i;
                    square[i] = n < N ? load_some(layer.weight + n * K + k, K - k) : Vec{};
                }
                transpose(square);
                for (int64_t i = 0; i < std::min<int64_t>(kLanes, K - k); ++i)
                    store(to + (k + i) * width + j, square[i]);
            }
    }
}

std::vector<Layer> read_layers(uintptr_t widths, int64_t count, uintptr_t weights, uintptr_t biases, uintptr_t outs,
                               bool relu_last) {
    require_at_least("mlp", "the number of layers", count, 1);
    std::vector<Layer> layers;
    for (int64_t l = 0; l < count; ++l) {
        const int64_t K = pointer<int64_t>(widths)[l], N = pointer<int64_t>(widths)[l + 1];
        require_at_least("mlp", "a width", std::min(K, N), 1);
        layers.push_back({K, N, tensor<const float>(weights, l), biases ? tensor<const float>(biases, l) : 0,
                          tensor<float>(outs, l), relu_last || l + 1 < count});
    }
    return layers;
}

Vec where_positive(Vec y, Vec v) { return y <= 0 ? Vec{} : v; }  // NaN counts as positive

// What one thread sums over its samples: of each layer dW [N, K], then dbias [N], rows in whole registers.
int64_t sums_size(const Layer& layer) { return layer.N * whole_registers(layer.K) + whole_registers(layer.N); }

// dW += g^T x and dbias += g's column sums, over `rows` samples. g [rows, stride]; panel: room for kBlock rows.
void add_weight_gradients(const Layer& layer, const float* x, const float* g, int64_t stride, int64_t rows,
                          float* panel, float* sums) {
    const int64_t K = layer.K, N = layer.N, width = whole_registers(K);
    for (int64_t k = 0; k < K; k += kPanel) {
        const int64_t columns = std::min(kPanel, K - k);
        pack_panel(x + k, K, rows, columns, panel);
        product(
            {g, 1, stride}, N, panel, rows, columns,
            [=](int64_t n, int64_t column, Vec sum) {
                float* to = sums + n * width + column;
                store(to, load(to) + sum);
            },
            k);
    }
    float* dbias = sums + N * width;
    for (int64_t r = 0; r < rows; ++r)
#pragma omp simd
        for (int64_t n = 0; n < N; ++n) dbias[n] += g[r * stride + n];
}

}  // namespace

void mlp_small_fwd(uintptr_t x, uintptr_t weights, uintptr_t biases, uintptr_t outs, uintptr_t widths, int64_t count,
                   int64_t B, bool relu_last) {
    require_at_least("mlp", "B", B, 0);
    const std::vector<Layer> layers = read_layers(widths, count, weights, biases, outs, relu_last);
    int64_t size = 0;
    for (const Layer& layer : layers) size += (layer.K + 1) * whole_registers(layer.N);
    parallel_shares(B, kTall, [&](int64_t first, int64_t last) {
        const std::unique_ptr<float[]> packed(new float[size]);
        float* to = packed.get();
        for (const Layer& layer : layers) {
            std::copy(layer.bias, layer.bias + layer.N, to);
            pack_transposed(layer, to + whole_registers(layer.N));
            to += (layer.K + 1) * whole_registers(layer.N);
        }
        for (int64_t b = first; b < last; b += kBlock) {
            const float *in = pointer<const float>(x), *bias = packed.get();
            for (const Layer& layer : layers) {
                const int64_t N = layer.N;
                const bool relu = layer.relu;
                float* out = layer.out + b * N;
                product({in + b * layer.K, layer.K, 1}, std::min(kBlock, last - b), bias + whole_registers(N), layer.K,
                        N, [=](int64_t r, int64_t n, Vec sum) {
                            sum += load(bias + n);
                            store_some(out + r * N + n, relu ? where_positive(sum, sum) : sum, N - n);
                        });
                in = layer.out;
                bias += (layer.K + 1) * whole_registers(N);
            }
        }
    });
}

void mlp_small_bwd(uintptr_t x, uintptr_t weights, uintptr_t outs, uintptr_t dout, uintptr_t dweights,
                   uintptr_t dbiases, uintptr_t dx, uintptr_t widths, int64_t count, int64_t B, bool relu_last) {
    require_at_least("mlp", "B", B, 0);
    const std::vector<Layer> layers = read_layers(widths, count, weights, 0, outs, relu_last);
    int64_t size = 0, packed_size = 0, widest = 0;
    for (const Layer& layer : layers) {
        size += sums_size(layer);
        packed_size += layer.N * whole_registers(layer.K);
        widest = std::max(widest, whole_registers(layer.N));
    }
    const int64_t stride = widest + kLanes;  // no power of two, whose rows would share cache sets
    std::vector<std::vector<float>> sums(omp_get_max_threads());
    parallel_shares(B, kTall, [&](int64_t first, int64_t last) {
        auto& own = sums[omp_get_thread_num()];
        own.assign(size, 0);
        const std::unique_ptr<float[]> packed(new float[packed_size]);
        std::vector<float> here(kBlock * stride), below(kBlock * stride), panel(kBlock * kPanel);
        float* to = packed.get();
        for (int64_t l = 0; l < count; to += layers[l].N * whole_registers(layers[l].K), ++l)
            if (l || dx) pack(layers[l], to);
        for (int64_t b = first; b < last; b += kBlock) {
            const int64_t rows = std::min(kBlock, last - b);
            const Layer& top = layers.back();
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t n = 0; n < top.N; n += kLanes) {
                    const int64_t at = (b + r) * top.N + n, some = top.N - n;
                    const Vec v = load_some(pointer<const float>(dout) + at, some);
                    store(&here[r * stride + n], top.relu ? where_positive(load_some(top.out + at, some), v) : v);
                }
            const float* weight = packed.get() + packed_size;
            float* layer_sums = own.data() + size;
            for (int64_t l = count - 1; l >= 0; --l) {
                const Layer& layer = layers[l];
                const int64_t K = layer.K, N = layer.N;
                const float* in = (l ? layers[l - 1].out : pointer<const float>(x)) + b * K;
                weight -= N * whole_registers(K), layer_sums -= sums_size(layer);
                add_weight_gradients(layer, in, here.data(), stride, rows, panel.data(), layer_sums);
                const Left g{here.data(), stride, 1};
                if (l)
                    product(g, rows, weight, N, K, [=, out = below.data()](int64_t r, int64_t k, Vec sum) {
                        store(out + r * stride + k, where_positive(load_some(in + r * K + k, K - k), sum));
                    });
                else if (dx)
                    product(g, rows, weight, N, K,
                            [=, out = pointer<float>(dx) + b * K](int64_t r, int64_t k, Vec sum) {
                                store_some(out + r * K + k, sum, K - k);
                            });
                std::swap(here, below);
            }
        }
    });
    // The threads' sums, added up in their order.
    int64_t at = 0;
    for (int64_t l = 0; l < count; at += sums_size(layers[l++])) {
        const int64_t K = layers[l].K, N = layers[l].N, width = whole_registers(K);
        const auto add_up = [&](float* to, int64_t from, int64_t n) {
            std::fill(to, to + n, 0.0f);
            for (const auto& part : sums)
                if (!part.empty())
#pragma omp simd
                    for (int64_t i = 0; i < n; ++i) to[i] += part[from + i];
        };
        parallel_shares(N, std::max<int64_t>(1, 16384 / K), [&](int64_t first, int64_t last) {
            for (int64_t n = first; n < last; ++n) add_up(tensor<float>(dweights, l) + n * K, at + n * width, K);
        });
        add_up(tensor<float>(dbiases, l), at + N * width, N);
    }
}
