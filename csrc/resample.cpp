#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace {

typedef float Four __attribute__((vector_size(16)));  // a pixel, and one value that isn't used

// Which pixels of a line make each output pixel, and their weights: `most` places each, the rest 0.
struct Taps {
    int64_t most;
    std::vector<int64_t> first;
    std::vector<int64_t> count;
    std::vector<float> weights;
};

Taps taps_of(int64_t size, double begin, double length, int64_t out, bool antialias) {
    const double step = length / static_cast<double>(out);
    const double reach = antialias ? std::max(step, 1.0) : 1.0;
    Taps taps{static_cast<int64_t>(std::ceil(reach)) * 2 + 1, {}, {}, {}};
    taps.first.resize(out);
    taps.count.resize(out);
    taps.weights.assign(out * taps.most, 0.0f);
    for (int64_t i = 0; i < out; ++i) {
        const double centre = begin + (static_cast<double>(i) + 0.5) * step;
        const int64_t first = std::clamp<int64_t>(static_cast<int64_t>(std::floor(centre - reach + 0.5)), 0, size - 1);
        const int64_t end =
            std::clamp<int64_t>(static_cast<int64_t>(std::floor(centre + reach + 0.5)), first + 1, size);
        const int64_t count = std::min(end - first, taps.most);
        double sum = 0;
        for (int64_t k = 0; k < count; ++k) {
            const double distance = (static_cast<double>(first + k) + 0.5 - centre) / reach;
            const double weight = std::max(0.0, 1.0 - std::fabs(distance));
            taps.weights[i * taps.most + k] = static_cast<float>(weight);
            sum += weight;
        }
        if (sum == 0) taps.weights[i * taps.most] = 1.0f, sum = 1.0;  // the centre lies on the image's very edge
        for (int64_t k = 0; k < count; ++k)
            taps.weights[i * taps.most + k] = static_cast<float>(taps.weights[i * taps.most + k] / sum);
        taps.first[i] = first;
        taps.count[i] = count;
    }
    return taps;
}

// sums[j] = the weighted rows at column bytes j of `n`.
void add_rows(const uint8_t* rows, int64_t row_bytes, const float* weights, int64_t count, int64_t n,
              float* __restrict sums) {
    const uint8_t* a = rows;
    const uint8_t* b = rows + (count > 1 ? row_bytes : 0);
    const float wa = weights[0], wb = count > 1 ? weights[1] : 0.0f;
    for (int64_t j = 0; j < n; ++j) sums[j] = wa * static_cast<float>(a[j]) + wb * static_cast<float>(b[j]);
    for (int64_t k = 2; k < count; ++k) {
        const uint8_t* row = rows + k * row_bytes;
        const float w = weights[k];
        for (int64_t j = 0; j < n; ++j) sums[j] += w * static_cast<float>(row[j]);
    }
}

// values[3 i ..] = output pixel i of a line of sums; reads and writes one value more than the last pixel has.
void across(const float* sums, const Taps& taps, int64_t offset, int64_t pixel_bytes, bool mirror, int64_t out,
            float* values) {
    for (int64_t i = 0; i < out; ++i) {
        const int64_t from = mirror ? out - 1 - i : i;
        const float* pixel = sums + pixel_bytes * (taps.first[from] - offset);
        const float* weights = taps.weights.data() + from * taps.most;
        Four sum{};
        for (int64_t k = 0; k < taps.count[from]; ++k) {
            Four value;
            std::memcpy(&value, pixel + pixel_bytes * k, sizeof value);
            sum += value * weights[k];
        }
        std::memcpy(values + 3 * i, &sum, sizeof sum);
    }
}

// To the nearest whole number, halves to even, for 0 <= x < 2^22: adding 1.5 * 2^23 leaves no room for fractions.
inline float rounded(float x) {
    constexpr float kNoFraction = 12582912.0f;
    return (x + kNoFraction) - kNoFraction;
}

}  // namespace

void resample(uintptr_t image, int64_t height, int64_t width, int64_t pixel_bytes, int64_t row_bytes, double top,
              double left, double box_height, double box_width, bool antialias, bool mirror, int64_t type, float mean_r,
              float mean_g, float mean_b, float scale_r, float scale_g, float scale_b, int64_t out_height,
              int64_t out_width, uintptr_t out) {
    constexpr double kSlack = 1e-6;  // a box computed in floating point may end so much behind the image
    if (height < 1 || width < 1 || out_height < 1 || out_width < 1 || (pixel_bytes != 3 && pixel_bytes != 4) ||
        row_bytes < pixel_bytes * width)
        throw std::invalid_argument("resample: an image without pixels");
    if (!(top >= 0 && left >= 0 && box_height > 0 && box_width > 0 &&
          top + box_height <= static_cast<double>(height) + kSlack &&
          left + box_width <= static_cast<double>(width) + kSlack))
        throw std::invalid_argument("resample: the box isn't within the image");
    if (type != kResampleUint8 && type != kResampleFloat32) throw std::invalid_argument("resample: unknown type");
    const Taps rows = taps_of(height, top, box_height, out_height, antialias);
    const Taps columns = taps_of(width, left, box_width, out_width, antialias);
    // Taps ascend, so these are the columns that are needed.
    const int64_t begin = columns.first.front(), end = columns.first.back() + columns.count.back();
    const int64_t n = pixel_bytes * (end - begin), values = 3 * out_width;
    std::vector<float> sums(n + 1), line(values + 1), mean(values), scale(values);
    const float means[3] = {mean_r, mean_g, mean_b}, scales[3] = {scale_r, scale_g, scale_b};
    for (int64_t j = 0; j < values; ++j) mean[j] = means[j % 3], scale[j] = scales[j % 3];
    const auto* pixels = reinterpret_cast<const uint8_t*>(image) + pixel_bytes * begin;
    for (int64_t y = 0; y < out_height; ++y) {
        add_rows(pixels + rows.first[y] * row_bytes, row_bytes, rows.weights.data() + y * rows.most, rows.count[y], n,
                 sums.data());
        across(sums.data(), columns, begin, pixel_bytes, mirror, out_width, line.data());
        const float* from = line.data();
        if (type == kResampleUint8) {
            uint8_t* to = reinterpret_cast<uint8_t*>(out) + y * values;
            for (int64_t j = 0; j < values; ++j) to[j] = static_cast<uint8_t>(static_cast<int32_t>(rounded(from[j])));
        } else {
            float* to = reinterpret_cast<float*>(out) + y * values;
            const float *m = mean.data(), *s = scale.data();
            for (int64_t j = 0; j < values; ++j) to[j] = (rounded(from[j]) - m[j]) * s[j];
        }
    }
}
