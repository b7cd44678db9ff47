// One source for nvcc and for the emulator of the test suite: a kernel is launched with LAUNCH and nothing else.
//
//   LAUNCH((kernel<T, 256>), grid, block, dynamic_bytes, cuda_stream, arguments...)
//   LAUNCH_PROGRAMMATIC(...) likewise, and it may begin before the launch ahead of it has ended: arch/dependency.h
//   LAUNCH_CLUSTER(cluster, programmatic, ...) likewise, in clusters of so many blocks: arch/cluster.h; `programmatic`
//     says whether it may begin early as well
//   DYNAMIC_SHARED(float, name);   in a kernel: its dynamic shared memory
//
// Under INCLINE_FAST_EMULATED, kernels are ordinary functions that g++ compiles and fibers execute.
#pragma once

#ifdef INCLINE_FAST_EMULATED
#include "cuda_on_cpu.h"
// The parameters of a function of arch/: the emulator's errors name the line that calls it.
#define CALLED_WITH(...) (__VA_ARGS__ __VA_OPT__(, ) cuda_on_cpu::Where at = cuda_on_cpu::Where::current())
#else
#define CALLED_WITH(...) (__VA_ARGS__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define LAUNCH(kernel, grid, block, dynamic_bytes, cuda_stream, ...) \
  kernel<<<(grid), (block), (dynamic_bytes), (cuda_stream)>>>(__VA_ARGS__)

#define LAUNCH_PROGRAMMATIC(kernel, grid, block, dynamic_bytes, cuda_stream, ...) \
  incline_fast::cuda::launch_with(1, true, kernel, grid, block, dynamic_bytes, cuda_stream, __VA_ARGS__)

#define LAUNCH_CLUSTER(cluster, programmatic, kernel, grid, block, dynamic_bytes, cuda_stream, ...) \
  incline_fast::cuda::launch_with(cluster, programmatic, kernel, grid, block, dynamic_bytes, cuda_stream, __VA_ARGS__)

#define DYNAMIC_SHARED(T, name)                                         \
  extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[]; \
  T* const name = reinterpret_cast<T*>(dynamic_shared_bytes)
#endif

#include <stdexcept>
#include <string>
#include <utility>

namespace incline_fast::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

#ifndef INCLINE_FAST_EMULATED
// Blocks of a cluster lie side by side along x.
template <class... Parameters, class... Arguments>
void launch_with(unsigned cluster, bool programmatic, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                 std::size_t dynamic_bytes, cudaStream_t cuda_stream, Arguments&&... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {cluster, 1, 1};
  }
  if (programmatic) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = dynamic_bytes;
  config.stream = cuda_stream;
  config.attrs = attributes;
  config.numAttrs = count;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), "launch of a kernel");
}
#endif

}  // namespace incline_fast::cuda
