// Clusters: blocks of one launch, 16 at most, that are resident together, wait for each other at a barrier of their own
// and store into each other's shared memory. Sources: PTX ISA, "Cluster of Cooperative Thread Arrays", "mapa",
// "barrier.cluster"; CUDA C++ Programming Guide, "Distributed Shared Memory".
//
// A block's shared memory may be stored to from the time when the block has started, which the first barrier shows, to
// its end: nobody may end before all that is stored to him has been.
//
// Code for GPUs before sm_90 has none of these instructions, and must not be launched. The launch is LAUNCH_CLUSTER.
#pragma once

#include "../launch.h"

namespace incline_fast::cuda {

// The block's number within its cluster; clusters are of neighbouring blocks.
__device__ __forceinline__ unsigned cluster_rank() {
#ifdef INCLINE_FAST_EMULATED
  return cuda_on_cpu::cluster_rank();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}

// The barrier of a cluster, in two halves, for every thread of every block: what a thread stores before it arrives is
// seen by all that have waited. Between the two it may do what concerns nobody else. All lanes of a warp come to the
// same call.
__device__ __forceinline__ void cluster_arrive CALLED_WITH() {
#ifdef INCLINE_FAST_EMULATED
  cuda_on_cpu::cluster_arrive(at);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait CALLED_WITH() {
#ifdef INCLINE_FAST_EMULATED
  cuda_on_cpu::cluster_wait(at);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  __syncwarp();
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Stores to the place that in the shared memory of the cluster's block `rank` is what `shared` is in the own. A T has
// 4, 8 or 16 bytes.
template <class T>
__device__ __forceinline__ void store_to_block CALLED_WITH([[maybe_unused]] T* shared, [[maybe_unused]] unsigned rank,
                                                           [[maybe_unused]] const T& value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
#ifdef INCLINE_FAST_EMULATED
  cuda_on_cpu::store_to_block(shared, rank, &value, sizeof(T), at);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  unsigned words[sizeof(T) / 4], address;
  memcpy(words, &value, sizeof(T));
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(address)
      : "r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))), "r"(rank));
  if constexpr (sizeof(T) == 4) {
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(words[0]) : "memory");
  } else if constexpr (sizeof(T) == 8) {
    asm volatile("st.shared::cluster.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(words[0]), "r"(words[1]) : "memory");
  } else {
    asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(words[0]), "r"(words[1]),
                 "r"(words[2]), "r"(words[3])
                 : "memory");
  }
#endif
}

}  // namespace incline_fast::cuda
