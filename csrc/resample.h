// A part of an image resized to what a network takes: bilinear, flipped, normalised, in one pass.
#pragma once
#include <cstdint>

enum ResampleType : int64_t { kResampleUint8 = 0, kResampleFloat32 = 1 };

// out[y][x][c] = the colour at the point (top + (y + 1/2) * box_height / out_height, likewise x) of the image, whose
// pixel i covers [i, i + 1): the neighbours' average by distance, with the weights of a triangle that is one pixel
// wide to each side, or with `antialias` as wide as an output pixel where that is wider. Neighbours outside of the
// image don't count. The average is rounded to a whole number, halves to even.
//   image      uint8 [height, width, pixel_bytes], 3: RGB, or 4: RGB and a byte that isn't used (as Pillow has it);
//              rows `row_bytes` apart, columns contiguous
//   box        top, left, box_height, box_width in pixels, fractions allowed; within the image, sides above 0
//   mirror     left and right change places
//   type, out  uint8 or float32 [out_height, out_width, 3]; float32 holds (value - mean[c]) * scale[c]
// Reads the box's rows (without antialias at most two an output row), writes `out` once. About
// 2 * out_height * taps * (3 * box_width + 4 * out_width) flops, taps = 2, or 2 * scale with antialias.
// Starts no threads and runs beside a training step.
void resample(uintptr_t image, int64_t height, int64_t width, int64_t pixel_bytes, int64_t row_bytes, double top,
              double left, double box_height, double box_width, bool antialias, bool mirror, int64_t type, float mean_r,
              float mean_g, float mean_b, float scale_r, float scale_g, float scale_b, int64_t out_height,
              int64_t out_width, uintptr_t out);
