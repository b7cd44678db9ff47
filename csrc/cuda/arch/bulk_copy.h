// Bulk copies into shared memory, and the barriers at which they arrive.
//
// A barrier counts phases, from 0. A phase ends when `arrivals` threads have arrived and, of the bytes that were
// announced, all have been copied; the barrier is then in its next phase and expects as many arrivals again. What is
// waited for is a phase's parity: the waiting must never lag two phases behind. A copy may land at any time between its
// start and the end of the phase in which its bytes are awaited. Sources: PTX ISA, "mbarrier", "cp.async.bulk",
// "Async proxy"; CUDA C++ Programming Guide, "Asynchronous Data Copies using the Tensor Memory Accelerator".
//
// Code for GPUs before sm_90 has none of these instructions, and must not be launched.
#pragma once

#include <cstdint>

#include "../launch.h"

namespace incline_fast::cuda {

#if defined(INCLINE_FAST_EMULATED) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
constexpr bool kHasBulkCopies = true;
#else
constexpr bool kHasBulkCopies = false;
#endif

// In shared memory.
struct PhaseBarrier {
  std::uint64_t state;

  // By one thread; everybody else, and every copy, comes after share_barriers() in that thread and a __syncthreads().
  __device__ __forceinline__ void init CALLED_WITH([[maybe_unused]] unsigned arrivals) {
#ifdef INCLINE_FAST_EMULATED
    cuda_on_cpu::phase_barrier_init(&state, arrivals, at);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address()), "r"(arrivals) : "memory");
#endif
  }

  // One arrival, which releases what the thread did before to those that wait for the phase.
  __device__ __forceinline__ void arrive CALLED_WITH() {
#ifdef INCLINE_FAST_EMULATED
    cuda_on_cpu::phase_barrier_arrive(&state, 0, at);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address()) : "memory");
#endif
  }

  // The same, and the phase does not end before `bytes` more have been copied.
  __device__ __forceinline__ void arrive_and_expect CALLED_WITH([[maybe_unused]] unsigned bytes) {
#ifdef INCLINE_FAST_EMULATED
    cuda_on_cpu::phase_barrier_arrive(&state, bytes, at);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address()), "r"(bytes) : "memory");
#endif
  }

  // Returns when a phase of this parity has ended and no later one has. The phase before the first counts as ended.
  __device__ __forceinline__ void wait CALLED_WITH([[maybe_unused]] unsigned parity) {
#ifdef INCLINE_FAST_EMULATED
    cuda_on_cpu::phase_barrier_wait(&state, parity, at);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    unsigned ended = 0;
    while (ended == 0) {
      asm volatile(
          "{\n.reg .pred ended;\nmbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\nselp.u32 %0, 1, 0, "
          "ended;\n}"
          : "=r"(ended)
          : "r"(address()), "r"(parity)
          : "memory");
    }
#endif
  }

  // Starts a copy of bytes that somebody has announced, or will before the phase can end. Addresses and bytes are
  // multiples of 16.
  __device__ __forceinline__ void copy CALLED_WITH([[maybe_unused]] void* shared, [[maybe_unused]] const void* global,
                                                   [[maybe_unused]] unsigned bytes) {
#ifdef INCLINE_FAST_EMULATED
    cuda_on_cpu::bulk_copy(shared, global, bytes, &state, at);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     static_cast<unsigned>(__cvta_generic_to_shared(shared))),
                 "l"(global), "r"(bytes), "r"(address())
                 : "memory");
#endif
  }

#ifndef INCLINE_FAST_EMULATED
  __device__ __forceinline__ unsigned address() { return static_cast<unsigned>(__cvta_generic_to_shared(&state)); }
#endif
};

// Shows barriers that this thread has initialised to the copies.
__device__ __forceinline__ void share_barriers CALLED_WITH() {
#ifdef INCLINE_FAST_EMULATED
  cuda_on_cpu::fence_async_proxy(at);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

}  // namespace incline_fast::cuda
