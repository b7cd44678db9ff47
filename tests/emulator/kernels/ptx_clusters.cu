// Blocks of a cluster that exchange what they have read, in static shared memory, and that hand it on in steps, in
// dynamic shared memory: right, and with one fault each.
#include "cuda/arch/cluster.h"

using incline_fast::cuda::cluster_arrive;
using incline_fast::cuda::cluster_rank;
using incline_fast::cuda::cluster_wait;
using incline_fast::cuda::store_to_block;

enum class Way : int {
  kRight,
  // Faults.
  kOneBuffer,
  kReadsBeforeTheWait,
  kReadsBeforeTheBarrier,
  kStoresBeforeTheFirstWait,
  kStoresBetween,
  kStoresAtTheEnd,
  kLeavesBeforeTheEnd,
  kStoresToItsOwnSlotToo,
  kStoresToOneBlock,
  kRankBeyondTheCluster,
  kBeyondSharedMemory,
  kArrivesTwice,
  kWaitsTwice,
  kOneBlockLeaves,
};

constexpr unsigned kThreads = 64;

// y[block][from][thread] = x[from][thread] + from, of the blocks of one cluster.
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

// Each step every block hands what it has to the next of its cluster, which adds its own x of the step; threads take
// what the thread at the other end of the block has stored.
extern "C" __global__ void hand_on(const uint4* x, uint4* y, unsigned blocks, unsigned steps, Way way) {
  DYNAMIC_SHARED(uint4, slots);
  const unsigned rank = cluster_rank(), thread = threadIdx.x, other = kThreads - 1 - thread;
  const unsigned next = way == Way::kStoresToOneBlock ? 0 : (rank + 1) % blocks;
  const bool last = rank == blocks - 1;
  const uint4* own = &x[blockIdx.x * steps * kThreads + thread];
  uint4 value = {thread, rank, 0, 1};
  if (way == Way::kStoresBeforeTheFirstWait) store_to_block(&slots[thread], next, value);
  cluster_arrive();
  if (way == Way::kArrivesTwice) cluster_arrive();
  cluster_wait();
  if (way == Way::kWaitsTwice) cluster_wait();
  for (unsigned step = 0; step < steps; step++) {
    uint4* slot = &slots[way == Way::kOneBuffer ? 0 : step % 2 * kThreads];
    const unsigned to = way == Way::kRankBeyondTheCluster && last ? blocks : next;
    const unsigned beyond = way == Way::kBeyondSharedMemory && last && thread == 5 ? 2 * kThreads : 0;
    if (way == Way::kReadsBeforeTheBarrier && thread < 32) value.x += slot[other].x;
    if (way != Way::kStoresBetween) store_to_block(&slot[thread + beyond], to, value);
    if (way == Way::kStoresToItsOwnSlotToo && thread == 0) slot[0] = value;
    cluster_arrive();
    if (way == Way::kStoresBetween) store_to_block(&slot[thread], to, value);
    const uint4 add = own[step * kThreads];
    uint4 got;
    if (way == Way::kReadsBeforeTheWait && thread >= 32) got = slot[other];
    if (way == Way::kOneBlockLeaves && last) return;
    cluster_wait();
    if (way != Way::kReadsBeforeTheWait || thread < 32) got = slot[other];
    value = {got.x + add.x, got.y + add.y, got.z + add.z, got.w + add.w};
    if (way == Way::kLeavesBeforeTheEnd && last && step == 0) return;
  }
  y[blockIdx.x * kThreads + thread] = value;
  if (way == Way::kStoresAtTheEnd && !last) store_to_block(&slots[steps % 2 * kThreads + thread], next, value);
}
