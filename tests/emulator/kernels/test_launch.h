// What the test kernels need from nvcc or from the fiber emulator.
#pragma once

#if defined(INCLINE_FAST_EMULATED)
#include "cuda_on_cpu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define DYNAMIC_SHARED(T, name)                               \
  extern __shared__ __align__(16) unsigned char name##_raw[]; \
  T* name = reinterpret_cast<T*>(name##_raw)
#endif

__device__ __forceinline__ void copy_async(void* shared, const void* global) {
#if defined(INCLINE_FAST_EMULATED)
  cuda_on_cpu::async_copy(shared, global, 16, 16);
#else
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global));
#endif
}

__device__ __forceinline__ void commit_async() {
#if defined(INCLINE_FAST_EMULATED)
  cuda_on_cpu::async_commit();
#else
  asm volatile("cp.async.commit_group;");
#endif
}

__device__ __forceinline__ void wait_async() {
#if defined(INCLINE_FAST_EMULATED)
  cuda_on_cpu::async_wait<0>();
#else
  asm volatile("cp.async.wait_group 0;" ::: "memory");
#endif
}
