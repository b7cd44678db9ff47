// The rows of a launch, normalised by the blocks that finish it last.
//
// A block counts itself when it starts and when its columns are stored, in the two halves of one counter. It may wait
// for the others only once all have started, for a block that has not may be waiting for this one's place. The block
// that starts last notes how many had finished by then, `early`; every later one may wait. The last min(rows, blocks)
// to finish, if they may, each take a share: the last one, which waits for nobody, always does. As long as all blocks
// of a launch are resident nobody is early, and with one row it is the last block that normalises it.
//
// Waiting is for blocks that run, which wait for nobody before they have counted themselves; so it ends. The counters
// go back to zero in the last block, when those that wait have seen what they waited for.
#pragma once

#include "row_norm.h"
#include "tickets.h"

namespace incline_fast::cuda {

constexpr unsigned kOneStarted = 1u << 16;
constexpr std::int64_t kMaxSharingBlocks = kOneStarted - 1;

// Called once by every block that will call normalise_share(), after the dependency wait.
__device__ __forceinline__ void count_start(const AffineCall& call, unsigned total) {
  if (threadIdx.x != 0) return;
  const unsigned before = atomicAdd(call.tickets + kProgress, kOneStarted);
  if (before / kOneStarted == total - 1) *call.early = before % kOneStarted;
}

struct Share {
  unsigned rank;   // 0: the block that finished last
  unsigned count;  // of shares; 0 if this block has none
};

// Called by all threads after their stores: publishes them, and returns when all blocks' are visible, or at once if
// this block has no share.
__device__ __forceinline__ Share take_share(const AffineCall& call, unsigned total) {
  __shared__ Share share;
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned* const progress = call.tickets + kProgress;
    fence_acq_rel();
    const unsigned before = atomicAdd(progress, 1u);
    const unsigned most = min(total, static_cast<unsigned>(call.num_rows));
    share = {total - 1 - before % kOneStarted, 0};
    if (before / kOneStarted == total && share.rank < most) {
      if (share.rank != 0) {
        spin_until(progress, total * kOneStarted + total);
      } else {
        fence_acq_rel();
      }
      share.count = min(most, total - __ldcg(call.early));
    }
  }
  __syncthreads();
  return share;
}

// Columns of all blocks are in the slots when each of the `total` has called this.
template <class Types>
__device__ __forceinline__ void normalise_share(const AffineCall& call, unsigned total) {
  const Share share = take_share(call, total);
  if (share.count == 0) return;
  if (threadIdx.x == 0 && share.rank != 0) {
    fence_acq_rel();
    atomicAdd(call.tickets + kSeen, 1u);
  }
  for (unsigned row = share.rank; row < static_cast<unsigned>(call.num_rows); row += share.count) {
    if (row != share.rank) __syncthreads();  // the sums of the row before are read
    normalise_row<Types>(call, static_cast<int>(row));
  }
  if (threadIdx.x == 0 && share.rank == 0) {
    spin_until(call.tickets + kSeen, share.count - 1);
    call.tickets[kProgress] = 0;
    call.tickets[kSeen] = 0;
  }
}

}  // namespace incline_fast::cuda
