// The rows of a launch, normalised by the blocks that finish it last.
//
// A block counts itself when it starts and when its columns are stored, in the two halves of one counter. It may wait
// for the others only once all have started, for a block that has not may be waiting for this one's place. The block
// that starts last notes how many had finished by then, `early`; every later one may wait. The last min(rows, blocks)
// to finish, if they may, each take a share; the very last always does, for it need not wait for columns. As long as
// all blocks of a launch are resident nobody is early. One row is the last block's, and nobody need count its start.
//
// Waiting is for blocks that run, and none of them waits before it has counted itself; so it ends. The counters go back
// to zero in the last block, which at its end waits until the others have seen what they waited for.
#pragma once

#include "row_norm.h"
#include "tickets.h"

namespace incline_fast::cuda {

using Progress = unsigned long long;
constexpr Progress kOneStarted = 1ull << 32;

__device__ __forceinline__ Progress* progress_of(const AffineCall& call) {
  return reinterpret_cast<Progress*>(call.tickets + kProgress);
}

// Called once by every block that will call normalise_share(), early, but after the dependency wait. What it returns is
// for note_early(), at any time before that.
__device__ __forceinline__ Progress count_start(const AffineCall& call) {
  Progress before = 0;
  if (call.num_rows > 1 && threadIdx.x == 0) before = atomicAdd(progress_of(call), kOneStarted);
  __syncwarp();  // the loads that follow are the warp's again
  return before;
}

__device__ __forceinline__ void note_early(const AffineCall& call, unsigned total, Progress started) {
  if (call.num_rows == 1 || threadIdx.x != 0) return;
  if (started / kOneStarted == total - 1) *call.early = static_cast<unsigned>(started);
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
    fence_acq_rel();
    const Progress before = atomicAdd(progress_of(call), Progress{1});
    const unsigned rank = total - 1 - static_cast<unsigned>(before);
    const unsigned most = min(total, static_cast<unsigned>(call.num_rows));
    share = {rank, 0};
    if (rank == 0) {
      fence_acq_rel();
      share.count = most == 1 ? 1 : min(most, total - __ldcg(call.early));
    } else if (rank < most && before / kOneStarted == total) {
      spin_until(progress_of(call), total * kOneStarted + total);
      share.count = min(most, total - __ldcg(call.early));
    }
  }
  __syncthreads();
  return share;
}

// The last thing that a block does. The columns of all blocks are in the slots when each of the `total` has called
// this.
template <class Types>
__device__ __forceinline__ void normalise_share(const AffineCall& call, unsigned total) {
  const Share share = take_share(call, total);
  if (share.count == 0) return;
  // No fence: the acquiring load that ended the wait comes before this, and all that touch these counters are atomic.
  if (threadIdx.x == 0 && share.rank != 0) atomicAdd(call.tickets + kSeen, 1u);
  for (unsigned row = share.rank; row < static_cast<unsigned>(call.num_rows); row += share.count) {
    if (row != share.rank) __syncthreads();  // the sums of the row before are read
    normalise_row<Types>(call, static_cast<int>(row));
  }
  if (share.rank != 0) return;
  if (share.count > 1) wait_for(call.tickets + kSeen, share.count - 1);
  if (threadIdx.x == 0) {
    atomicExch(progress_of(call), Progress{0});
    atomicExch(call.tickets + kSeen, 0u);
    call.tickets[kNextWork] = call.tickets[kInnerDone] = 0;
  }
}

}  // namespace incline_fast::cuda
