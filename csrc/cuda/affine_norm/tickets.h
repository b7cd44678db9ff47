// How blocks of one launch learn of each other's progress without being resident together.
//
// Publishing: all threads of a block store, meet at a barrier, and one of them fences and adds to a counter. The
// barrier orders the block's stores before the fence, the fence before the addition, so whoever reads the sum and
// fences in turn sees the stores. Readers load past the L1 cache, which other blocks' stores do not reach.
#pragma once

#include "../arch/memory.h"
#include "call.h"

// Turns of a waiting loop after which a debug build traps, so that a kernel whose counters went wrong ends with an
// error instead of holding the GPU for ever. 0, in a release, waits without counting.
#ifndef INCLINE_FAST_SPIN_LIMIT
#define INCLINE_FAST_SPIN_LIMIT 0
#endif

namespace incline_fast::cuda {

// Called by all threads after their stores.
__device__ inline void publish(unsigned* counter) {
  __syncthreads();
  if (threadIdx.x == 0) {
    fence_acq_rel();
    atomicAdd(counter, 1u);
  }
}

// The next piece of work, the same for all threads. Called once per block.
__device__ inline unsigned take_work(unsigned* counter) {
  __shared__ unsigned work;
  if (threadIdx.x == 0) work = atomicAdd(counter, 1u);
  __syncthreads();
  return work;
}

// One thread waits until `counter` is `total`. Only for what blocks that are running already will do: see share_rows.h.
template <class Counter>
__device__ __forceinline__ void spin_until(const Counter* counter, Counter total) {
  [[maybe_unused]] unsigned turns = 0;
  while (load_acquire(counter) != total) {
    if constexpr (INCLINE_FAST_SPIN_LIMIT > 0) {
      if (++turns > INCLINE_FAST_SPIN_LIMIT) __trap();
    }
    __nanosleep(64);
  }
}

// The same for all threads: see low_rank_kernel.h as well.
__device__ inline void wait_for(const unsigned* counter, unsigned total) {
  if (threadIdx.x == 0) spin_until(counter, total);
  __syncthreads();
}

}  // namespace incline_fast::cuda
