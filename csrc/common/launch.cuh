// Launching kernels, and the dynamic shared memory they get. nvcc compiles the .cu files for a GPU; g++ compiles the
// same files with emulate/cuda.h in CUDA's place, and their kernels then run on the host, for tests.
//
// Kernels and device functions stand in an unnamed namespace: each .cu file is a library of its own, and g++ can keep
// the __shared__ variables of templates and of plain kernels in one section.
#pragma once
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "emulate/cuda.h"
#endif

#include <cstdint>
#include <stdexcept>
#include <string>

// LAUNCH(kernel, grid, block, shared, stream, arguments...) starts `kernel` and returns: no wait, no allocation, so a
// stream under capture records it. `shared` is the dynamic shared memory in bytes, `stream` the address of the CUDA
// stream as an integer. A kernel from a template with several arguments stands in parentheses: (f<float, 4>).
// A launch that CUDA refuses raises with the kernel's name; the kernel itself may still fail later, as always.
#define LAUNCH(kernel, ...) launch(#kernel, kernel, __VA_ARGS__)

// A CUDA call's result; other than success it raises, naming what was tried.
inline void require_success(const std::string& what, cudaError_t result) {
    if (result == cudaSuccess) return;
    cudaGetLastError();  // or the next one to ask would be told of it again
    throw std::runtime_error(what + ": " + cudaGetErrorString(result));
}

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, uintptr_t stream,
            const Arguments&... arguments) {
#ifdef __CUDACC__
    const std::string what = std::string("launch of ") + name;
    constexpr size_t kWithoutAsking = 48 << 10;  // bytes of dynamic shared memory that every kernel may have
    if (shared > kWithoutAsking)
        require_success(what, cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)));
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = reinterpret_cast<cudaStream_t>(stream);
    require_success(what, cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
#else
    (void)stream;
    emulate::launch(name, grid, block, shared, [&] { kernel(static_cast<Parameters>(arguments)...); });
#endif
}

// DYNAMIC_SHARED(float, tile); declares `float* tile`, the start of the block's dynamic shared memory, aligned to 16.
#ifdef __CUDACC__
#define DYNAMIC_SHARED(Element, name)                         \
    extern __shared__ __align__(16) unsigned char dynamic_[]; \
    Element* const name = reinterpret_cast<Element*>(dynamic_)
#else
#define DYNAMIC_SHARED(Element, name) Element* const name = static_cast<Element*>(emulate::dynamic_shared())
#endif

inline unsigned blocks_for(int64_t count, int64_t each) { return static_cast<unsigned>((count + each - 1) / each); }
