// Reads floats from standard input; writes each one's bits as __half and as __nv_bfloat16, and what these are as
// floats.
#include <cstdio>
#include <vector>

#include "common/device.cuh"

struct Answer {
    uint16_t half, bfloat16;
    float from_half, from_bfloat16;
};

namespace {

__global__ void convert_kernel(const float* x, Answer* y, int count) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count) return;
    const auto half = from_float<__half>(x[i]);
    const auto bfloat16 = from_float<__nv_bfloat16>(x[i]);
    y[i] = {half.bits, bfloat16.bits, to_float(half), to_float(bfloat16)};
}

}  // namespace

void convert() {
    std::vector<float> x(1 << 20);
    x.resize(std::fread(x.data(), sizeof(float), x.size(), stdin));
    std::vector<Answer> y(x.size());
    const int count = static_cast<int>(x.size());
    LAUNCH(convert_kernel, blocks_for(count, 256), 256, 0, 0, x.data(), y.data(), count);
    std::fwrite(y.data(), sizeof(Answer), y.size(), stdout);
}
