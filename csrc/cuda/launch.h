// One source for nvcc and for the emulator of the test suite: a kernel is launched with LAUNCH and nothing else.
//
//   LAUNCH((kernel<T, 256>), grid, block, dynamic_bytes, cuda_stream, arguments...)
//   DYNAMIC_SHARED(float, name);   in a kernel: its dynamic shared memory
//
// Under INCLINE_FAST_EMULATED, kernels are ordinary functions that g++ compiles and fibers execute.
#pragma once

#ifdef INCLINE_FAST_EMULATED
#include "cuda_on_cpu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define LAUNCH(kernel, grid, block, dynamic_bytes, cuda_stream, ...) \
  kernel<<<(grid), (block), (dynamic_bytes), (cuda_stream)>>>(__VA_ARGS__)

#define DYNAMIC_SHARED(T, name)                                         \
  extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[]; \
  T* const name = reinterpret_cast<T*>(dynamic_shared_bytes)
#endif

#include <stdexcept>
#include <string>

namespace incline_fast::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

}  // namespace incline_fast::cuda
