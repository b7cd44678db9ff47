// Programmatic dependent launch: a kernel may begin while the launch before it on the CUDA stream still runs. Until
// wait_for_previous_launch() returns, that launch may not have ended, and nothing that it writes may be read, nor
// anything written that it reads. Source: PTX ISA, "griddepcontrol"; CUDA C++ Programming Guide, "Programmatic
// Dependent Launch and Synchronization".
//
// Code for GPUs before sm_90 has none of these instructions, and must not be launched with LAUNCH_PROGRAMMATIC.
#pragma once

#include "../launch.h"

namespace incline_fast::cuda {

// Returns when the launch before this one has ended and what it wrote is visible; at once where this one did not begin
// early. A thread of every block has to call it: the launch after this one takes the end of this one for the end of all
// before.
__device__ __forceinline__ void wait_for_previous_launch() {
#if !defined(INCLINE_FAST_EMULATED) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next launch may begin as soon as every block of this one has called it and there is room. It changes nothing of
// what that launch may read before it waits.
__device__ __forceinline__ void allow_next_launch() {
#if !defined(INCLINE_FAST_EMULATED) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Asks for memory to be brought into the L2 cache; address and bytes are multiples of 16.
__device__ __forceinline__ void prefetch_into_l2([[maybe_unused]] const void* address,
                                                 [[maybe_unused]] unsigned bytes) {
#if !defined(INCLINE_FAST_EMULATED) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address), "r"(bytes));
#endif
}

}  // namespace incline_fast::cuda
