// Blocks of a cluster that give each other what they have read: y[block][from][thread] = x[from][thread] + from.
#include "cuda/arch/cluster.h"

using incline_fast::cuda::cluster_arrive;
using incline_fast::cuda::cluster_rank;
using incline_fast::cuda::cluster_wait;
using incline_fast::cuda::store_to_block;

constexpr unsigned kThreads = 64;

extern "C" __global__ void exchange(const unsigned* x, unsigned* y, unsigned blocks) {
  __shared__ __align__(16) unsigned slots[16 * kThreads];
  const unsigned rank = cluster_rank(), thread = threadIdx.x;
  cluster_arrive();
  const unsigned value = x[blockIdx.x * kThreads + thread] + rank;
  cluster_wait();
  for (unsigned to = 0; to < blocks; to++) store_to_block(&slots[rank * kThreads + thread], to, value);
  cluster_arrive();
  cluster_wait();
  for (unsigned from = 0; from < blocks; from++) {
    y[(blockIdx.x * blocks + from) * kThreads + thread] = slots[from * kThreads + thread];
  }
}
