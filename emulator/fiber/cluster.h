// The portable twins of barrier.cluster and of stores to shared::cluster.
//
// A store to another block is delivered when the barrier that orders it is waited for, as late as can be: when a thread
// of the target waits and no other one of its block gets further without. Until then the target holds garbage, so a
// kernel that does not wait computes wrong numbers under every schedule. Nothing else delivers a store, though a GPU
// would take a fence and an atomic as well.
#pragma once

#include "runtime.h"

namespace cuda_on_cpu {

// %cluster_ctarank; 0 without clusters.
unsigned cluster_rank();

// barrier.cluster.arrive.release.aligned and barrier.cluster.wait.acquire.aligned. Threads that have returned are not
// waited for.
void cluster_arrive(Where at = Where::current());
void cluster_wait(Where at = Where::current());

// mapa and st.shared::cluster: to the place of `shared` in the shared memory of the cluster's block `rank`. The thread
// must have waited at the cluster's barrier before, and the target must wait afterwards, before it ends.
void store_to_block(void* shared, unsigned rank, const void* value, std::size_t bytes, Where at = Where::current());

}  // namespace cuda_on_cpu
