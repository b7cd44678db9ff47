// When clusters start, and which are allowed.
#include "cuda/arch/bulk_copy.h"
#include "cuda/arch/cluster.h"

using incline_fast::cuda::cluster_arrive;
using incline_fast::cuda::cluster_rank;
using incline_fast::cuda::cluster_wait;
using incline_fast::cuda::PhaseBarrier;

extern "C" {

// Every block waits in a loop until `count` of the grid have started; of each cluster, block 0 does not.
__global__ void wait_for_blocks(unsigned* started, unsigned count) {
  if (threadIdx.x != 0) return;
  atomicAdd(started, 1u);
  while (cluster_rank() != 0 && atomicAdd(started, 0u) < count) {
  }
}

// A cluster's barrier with all that is known behind it, again and again.
__global__ void many_barriers(int rounds) {
  __shared__ PhaseBarrier phases;
  if (threadIdx.x == 0) phases.init(blockDim.x);
  __syncthreads();
  for (int round = 0; round < rounds; round++) {
    phases.arrive();
    phases.wait(static_cast<unsigned>(round) % 2);
    cluster_arrive();
    cluster_wait();
  }
}

__global__ void nothing() {}

#if defined(INCLINE_FAST_EMULATED)
void allow_large_clusters(const void* kernel, int allowed) {
  incline_fast::cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, allowed),
                            "cudaFuncSetAttribute");
}
void run_wait_for_blocks(unsigned* started, int clusters, int blocks, int count) {
  const auto size = static_cast<unsigned>(blocks);
  LAUNCH_CLUSTER(size, false, wait_for_blocks, static_cast<unsigned>(clusters) * size, 32, 0, nullptr, started,
                 static_cast<unsigned>(count));
}
void run_many_barriers(int blocks, int threads, int rounds) {
  allow_large_clusters(reinterpret_cast<const void*>(many_barriers), 1);
  LAUNCH_CLUSTER(static_cast<unsigned>(blocks), false, many_barriers, static_cast<unsigned>(blocks),
                 static_cast<unsigned>(threads), 0, nullptr, rounds);
}
void run_nothing(int cluster, int blocks, int allowed) {
  allow_large_clusters(reinterpret_cast<const void*>(nothing), allowed);
  LAUNCH_CLUSTER(static_cast<unsigned>(cluster), false, nothing, dim3(static_cast<unsigned>(blocks), 2), 32, 0,
                 nullptr);
}
// The clusters that fit, or less than 0.
int count_clusters(int cluster, int blocks, int allowed) {
  const void* kernel = reinterpret_cast<const void*>(nothing);
  allow_large_clusters(kernel, allowed);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(32);
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = -1;
  const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
  return error == cudaSuccess ? clusters : -1;
}
#endif
}
