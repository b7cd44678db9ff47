// Runs CUDA C++ kernels on the CPU, so that they can be tested where there is no GPU. Put this folder and CUDA's
// headers on the include path, compile the .cu file with g++ -std=c++20 -x c++, and link the .cpp files of this folder.
//
// The model: every CUDA thread is a fiber; every block that is in flight has an operating-system thread of its own, and
// exactly one of them runs at a time, in an order drawn from a seed. A fiber gives way at barriers, warp operations,
// atomics and fences only. One source serves nvcc and g++ as long as it launches with LAUNCH((kernel<T>), grid, block,
// dynamic_bytes, stream, arguments...), names dynamic shared memory with DYNAMIC_SHARED(T, name), and keeps inline PTX
// beside a portable twin; warp.h, async_copy.h, phase_barrier.h, cluster.h and matrix.h have what twins need. README.md
// says what is detected.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>

// NVIDIA's headers define these for nvcc's own front end; to g++ a kernel is an ordinary function.
#undef __constant__
#undef __device__
#undef __forceinline__
#undef __global__
#undef __grid_constant__
#undef __host__
#undef __launch_bounds__
#undef __noinline__
#undef __restrict__
#undef __shared__
#define __constant__ static
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __global__
#define __grid_constant__
#define __host__
#define __launch_bounds__(...)
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
// A block never leaves its operating-system thread, so what its threads share is thread-local to that one.
#define __shared__ static thread_local

#include "async_copy.h"
#include "atomics.h"
#include "cluster.h"
#include "intrinsics.h"
#include "launch_grid.h"
#include "matrix.h"
#include "phase_barrier.h"
#include "runtime.h"
#include "warp.h"

// No macros: a cudaLaunchConfig_t has members of these names.
inline constexpr const uint3& threadIdx = cuda_on_cpu::here.thread;
inline constexpr const uint3& blockIdx = cuda_on_cpu::here.block;
inline constexpr const dim3& blockDim = cuda_on_cpu::here.block_shape;
inline constexpr const dim3& gridDim = cuda_on_cpu::here.grid_shape;
#define warpSize 32

#define DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(cuda_on_cpu::here.dynamic_shared)
#define LAUNCH(kernel, grid, block, dynamic_bytes, stream, ...)                             \
  cuda_on_cpu::launch(cuda_on_cpu::Where::current(), 1, kernel, grid, block, dynamic_bytes, \
                      stream __VA_OPT__(, ) __VA_ARGS__)

// A launch returns when it is done, so none can overlap with the next.
#define LAUNCH_PROGRAMMATIC LAUNCH
#define LAUNCH_CLUSTER(cluster, programmatic, kernel, grid, block, dynamic_bytes, stream, ...)                       \
  (static_cast<void>(programmatic), cuda_on_cpu::launch(cuda_on_cpu::Where::current(), cluster, kernel, grid, block, \
                                                        dynamic_bytes, stream __VA_OPT__(, ) __VA_ARGS__))

using std::max;
using std::min;
