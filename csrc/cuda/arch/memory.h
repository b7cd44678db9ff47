// Loads and a fence that CUDA C++ has no name for.
#pragma once

#include "../launch.h"

namespace incline_fast::cuda {

// Loads 16 bytes of read-only data that the kernel reads once, without keeping them in the L1 cache: the activations
// need it.
__device__ __forceinline__ uint4 load_streaming(const void* address) {
#ifdef INCLINE_FAST_EMULATED
  return *static_cast<const uint4*>(address);
#else
  uint4 words;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(address));
  return words;
#endif
}

// What is read after it has seen a value that another block released is at least as new as that value.
template <class T>
__device__ __forceinline__ T load_acquire(const T* address) {
#ifdef INCLINE_FAST_EMULATED
  return cuda_on_cpu::load_acquire(address);
#else
  T value;
  if constexpr (sizeof(T) == 8) {
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
  } else {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  }
  return value;
#endif
}

// Releases what the thread knows of before an atomic, and acquires after one. __threadfence() would be fence.sc, which
// also waits for a place in one order of all fences and is of no use to counters.
__device__ __forceinline__ void fence_acq_rel() {
#ifdef INCLINE_FAST_EMULATED
  __threadfence();
#else
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
#endif
}

}  // namespace incline_fast::cuda
