// Blocks of a cluster that store into each other's shared memory, right and wrong in one respect each.
#include "cuda/arch/cluster.h"

using incline_fast::cuda::cluster_arrive;
using incline_fast::cuda::cluster_rank;
using incline_fast::cuda::cluster_wait;
using incline_fast::cuda::store_to_block;

namespace {

constexpr int kMost = 16;  // blocks of a cluster
constexpr int kThreads = 48;

enum class Variant : int {
  // Right.
  kUsual,
  kDynamic,
  kSplit,
  kOneThreadOfEach,
  // The barriers.
  kNoFirstBarrier,
  kNoWait,
  kNoBarrierBetween,
};

struct Inbox {
  float4 rows[kMost][kThreads];
};

__device__ float weight(unsigned rank, int round) { return static_cast<float>(rank + 1) + static_cast<float>(round); }

__device__ void cluster_barrier() {
  cluster_arrive();
  cluster_wait();
}

// To all blocks, the own one included.
__device__ void send(Inbox& inbox, unsigned blocks, float x) {
  const unsigned me = cluster_rank();
  for (unsigned i = 0; i < blocks; i++) {
    const unsigned rank = (me + i) % blocks;
    float4* place = &inbox.rows[me][threadIdx.x];
    store_to_block(&place->x, rank, x);
    store_to_block(reinterpret_cast<float2*>(&place->z), rank, make_float2(x, x));
  }
}

__device__ float receive(const Inbox& inbox, unsigned blocks, int round) {
  float sum = 0;
  for (unsigned rank = 0; rank < blocks; rank++) {
    const float4 got = inbox.rows[rank][threadIdx.x];
    sum += weight(rank, round) * (got.x + got.z - got.w);
  }
  return sum;
}

}  // namespace

extern "C" {

// y: for each thread, the sum over the blocks of its cluster of x with weights, and of all rounds.
__global__ void exchange(const float* x, float* y, unsigned blocks, int rounds, Variant variant) {
  __shared__ __align__(16) Inbox fixed;
  DYNAMIC_SHARED(Inbox, dynamic);
  Inbox& inbox = variant == Variant::kDynamic ? *dynamic : fixed;
  const std::size_t me = blockIdx.x * blockDim.x + threadIdx.x;
  float sum = 0;
  if (variant != Variant::kNoFirstBarrier) cluster_barrier();
  for (int round = 0; round < rounds; round++) {
    send(inbox, blocks, x[me] + static_cast<float>(round));
    cluster_arrive();
    if (variant == Variant::kSplit) sum += x[me] - x[me];
    if (variant == Variant::kNoWait) sum += receive(inbox, blocks, round);
    cluster_wait();
    if (variant != Variant::kNoWait) sum += receive(inbox, blocks, round);
    if (variant != Variant::kNoBarrierBetween && round != rounds - 1) cluster_barrier();
  }
  y[me] = sum;
}

#if defined(INCLINE_FAST_EMULATED)
void run_exchange(const float* x, float* y, int clusters, int blocks, int rounds, int variant) {
  const void* kernel = reinterpret_cast<const void*>(exchange);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, blocks > 8);
  const auto size = static_cast<unsigned>(blocks);
  LAUNCH_CLUSTER(size, false, exchange, static_cast<unsigned>(clusters) * size, kThreads, sizeof(Inbox), nullptr, x, y,
                 size, rounds, static_cast<Variant>(variant));
}
#endif
}
