// Blocks of a cluster that store into each other's shared memory, right and wrong in one respect each.
#include "cuda/arch/bulk_copy.h"
#include "cuda/arch/cluster.h"

using incline_fast::cuda::cluster_arrive;
using incline_fast::cuda::cluster_rank;
using incline_fast::cuda::cluster_wait;
using incline_fast::cuda::PhaseBarrier;
using incline_fast::cuda::store_to_block;

namespace {

constexpr int kMost = 16;     // blocks of a cluster
constexpr int kThreads = 48;  // one warp and a half

enum class Variant : int {
  // Right.
  kUsual,
  kDynamic,
  kSplit,
  kOneThreadStores,
  kOneWarpWaits,
  // Wrong.
  kNoFirstBarrier,
  kNoBarrier,
  kNoWait,
  kOneWaits,
  kNoBarrierBetween,
  kBlockBarrierBetween,
  kStoreAfterArrival,
  kSameRow,
  kTargetWrites,
  kTargetReads,
  kSourceWritten,
};

struct Inbox {
  float4 rows[kMost][kThreads];
};

__device__ void cluster_barrier() {
  cluster_arrive();
  cluster_wait();
}

// To all blocks, the own one included. A float4 is stored in two parts.
__device__ void send(Inbox& inbox, unsigned blocks, int thread, const float& x, Variant variant) {
  const unsigned me = cluster_rank();
  for (unsigned i = 0; i < blocks; i++) {
    const unsigned rank = (me + i) % blocks;
    float4* place = &inbox.rows[variant == Variant::kSameRow ? 0 : me][thread];
    store_to_block(&place->x, rank, x);
    if (variant == Variant::kSourceWritten) continue;
    store_to_block(reinterpret_cast<float2*>(&place->z), rank, make_float2(2 * x, x));
  }
}

__device__ float receive(const Inbox& inbox, unsigned blocks) {
  float sum = 0;
  for (unsigned rank = 0; rank < blocks; rank++) {
    const float4 got = inbox.rows[rank][threadIdx.x];
    sum += static_cast<float>(rank + 1) * (got.x + got.z - got.w);
  }
  return sum;
}

__device__ void send_all(Inbox& inbox, unsigned blocks, float x, Variant variant) {
  __shared__ float outbox[kThreads];
  if (variant == Variant::kOneThreadStores || variant == Variant::kSourceWritten) {
    outbox[threadIdx.x] = x;
    if (variant == Variant::kOneThreadStores) __syncthreads();
    for (int i = 0; i < kThreads && threadIdx.x == 0; i++) send(inbox, blocks, i, outbox[i], variant);
  } else {
    send(inbox, blocks, static_cast<int>(threadIdx.x), x, variant);
  }
}

// Between the stores and the reads.
__device__ float receive_all(const Inbox& inbox, unsigned blocks, Variant variant) {
  if (variant == Variant::kNoBarrier) return receive(inbox, blocks);
  cluster_arrive();
  const bool one_warp = variant == Variant::kOneWarpWaits || variant == Variant::kOneWaits;
  const bool early = variant == Variant::kNoWait || (one_warp && threadIdx.x >= 32);
  if (!early) cluster_wait();
  if (variant == Variant::kOneWarpWaits) __syncthreads();
  const float sum = receive(inbox, blocks);
  if (early) cluster_wait();
  return sum;
}

// Between the reads and the stores of the next round.
__device__ void end_round(Variant variant) {
  if (variant == Variant::kSplit) {
    cluster_arrive();
    __syncthreads();
    cluster_wait();
  } else if (variant == Variant::kBlockBarrierBetween) {
    __syncthreads();
  } else if (variant == Variant::kStoreAfterArrival) {
    cluster_arrive();
  } else if (variant != Variant::kNoBarrierBetween) {
    cluster_barrier();
  }
}

}  // namespace

extern "C" {

// y: for each thread, the sum of x over the blocks of its cluster, with weights, and over the rounds.
__global__ void exchange(const float* x, float* y, unsigned blocks, int rounds, Variant variant) {
  __shared__ __align__(16) Inbox fixed;
  DYNAMIC_SHARED(Inbox, dynamic);
  Inbox& inbox = variant == Variant::kDynamic ? *dynamic : fixed;
  const std::size_t me = blockIdx.x * blockDim.x + threadIdx.x;
  float sum = 0;
  if (variant == Variant::kTargetReads) sum = 0 * inbox.rows[0][threadIdx.x].x;
  if (variant == Variant::kTargetReads) cluster_arrive();
  if (variant == Variant::kTargetReads) sum = 0 * inbox.rows[1][threadIdx.x].x;
  if (variant == Variant::kTargetReads) cluster_wait();
  if (variant != Variant::kNoFirstBarrier && variant != Variant::kTargetReads) cluster_barrier();
  for (int round = 0; round < rounds; round++) {
    send_all(inbox, blocks, x[me] + static_cast<float>(round), variant);
    if (variant == Variant::kStoreAfterArrival && round != 0) cluster_wait();
    if (variant == Variant::kTargetWrites && cluster_rank() != 1) inbox.rows[1][threadIdx.x].x = 0;
    sum += receive_all(inbox, blocks, variant);
    if (round != rounds - 1) end_round(variant);
  }
  y[me] = sum;
}

// Who waits, in a cluster of blocks of two warps, and who leaves early. Block 1 stores to block 0.
enum class Ending : int {
  // Right.
  kNobodyLeaves,
  kStorerLeavesAfterwards,
  kOtherBlockLeaves,
  kHalfOfTargetLeaves,
  kLanesLeave,
  // Wrong.
  kTargetLeaves,
  kTargetArrives,
  kStorerLeaves,
  kStorerArrives,
};

// `late`: 0 nobody, 1 the storer, 2 the target does something else first.
__global__ void leave_early(const float* x, float* y, Ending ending, int late) {
  __shared__ float row[64];
  const unsigned me = threadIdx.x, rank = cluster_rank();
  if (ending == Ending::kLanesLeave && me % 32 >= 20) return;
  cluster_barrier();
  if (ending == Ending::kOtherBlockLeaves && rank >= 2) return;
  if (ending == Ending::kHalfOfTargetLeaves && rank == 0 && me < 32) return;
  for (int i = 0; i < 50 && (rank == 1 ? late == 1 : late == 2); i++) __nanosleep(1);
  if (ending == Ending::kTargetLeaves && rank == 0) return;
  if (rank == 1) store_to_block(&row[me], 0, x[me]);
  if (ending == Ending::kStorerLeaves && rank == 1) return;
  cluster_arrive();
  if (ending == Ending::kTargetArrives && rank == 0) return;
  if (ending == Ending::kStorerArrives && rank == 1) return;
  cluster_wait();
  if (rank == 0) y[me] = row[me];
  if (ending == Ending::kStorerLeavesAfterwards && rank == 1) return;
  cluster_barrier();
}

// What block 0 knows goes by way of block 1 to block 2, and from there to block 3: clusters are of two blocks.
enum class Path : int {
  // Right.
  kUsual,
  kBetweenArrivalAndWait,
  kAcquiredBeforeWait,
  kEndsAfterBlockBarrier,
  kEndsAfterWarpBarrier,
  // Wrong.
  kWriteAfterArrival,
  kNoBarrier,
  kReadBeforeWait,
  kWriterHasEnded,
};

__device__ void publish(unsigned* flag) {
  __threadfence();
  atomicExch(flag, 1u);
}

__device__ void await(unsigned* flag) {
  while (atomicAdd(flag, 0u) == 0) {
  }
  __threadfence();
}

__global__ void pass_on(float* data, unsigned* flags, float* y, Path path) {
  const bool between = path == Path::kBetweenArrivalAndWait;
  if (blockIdx.x == 0) {
    const bool ends = path == Path::kEndsAfterBlockBarrier || path == Path::kEndsAfterWarpBarrier;
    if (ends || path == Path::kWriterHasEnded) {
      if (threadIdx.x == 0) data[0] = 1;
      if (path == Path::kEndsAfterBlockBarrier) __syncthreads();
      if (path == Path::kEndsAfterWarpBarrier) __syncwarp();
      if (threadIdx.x == 0) return;
      cluster_barrier();
      return;
    }
    if (between || path == Path::kWriteAfterArrival) cluster_arrive();
    if (threadIdx.x == 0) data[0] = 1;
    if (between && threadIdx.x == 0) publish(&flags[0]);
    if (!between && path != Path::kWriteAfterArrival) cluster_arrive();
    cluster_wait();
    if (between) cluster_barrier();
  } else if (blockIdx.x == 1) {
    if (between && threadIdx.x == 5) await(&flags[0]);
    if (path != Path::kNoBarrier) cluster_barrier();
    if (threadIdx.x == 7) publish(&flags[1]);
    if (path == Path::kNoBarrier || between) cluster_barrier();
  } else if (blockIdx.x == 2) {
    if (path == Path::kAcquiredBeforeWait) cluster_arrive();
    if (threadIdx.x == 9) await(&flags[1]);
    if (path != Path::kAcquiredBeforeWait) cluster_arrive();
    cluster_wait();
    if (path == Path::kAcquiredBeforeWait && threadIdx.x == 9) y[0] = data[0];
  } else if (path == Path::kAcquiredBeforeWait) {
    cluster_barrier();
  } else {
    cluster_arrive();
    if (path == Path::kReadBeforeWait && threadIdx.x == 3) y[0] = data[0];
    cluster_wait();
    if (path != Path::kReadBeforeWait && threadIdx.x == 3) y[0] = data[0];
  }
}

// Block 1 stores x to the first row of block 0, whose first warp reads it before its wait and afterwards, and then to
// the second one, likewise. Where the other warp waits meanwhile, the first one goes on; otherwise it looks when all
// has been stored.
__global__ void read_early(const float* x, float (*seen)[32], unsigned* flag, bool other_waits) {
  __shared__ float rows[2][32];
  const unsigned me = threadIdx.x;
  if (me < 32) rows[0][me] = rows[1][me] = 0;
  cluster_barrier();
  if (cluster_rank() == 1 && me < 32) store_to_block(&rows[0][me], 0, x[me]);
  cluster_arrive();
  if (cluster_rank() == 0 && me < 32) {
    if (other_waits) {
      for (int i = 0; i < 200; i++) __syncwarp();
    } else {
      while (atomicAdd(flag, 0u) != 32) {
      }
    }
    seen[0][me] = rows[0][me];
  }
  if (cluster_rank() == 0 && !other_waits) __syncthreads();
  cluster_wait();
  if (cluster_rank() == 1 && me < 32) {
    store_to_block(&rows[1][me], 0, x[me]);
    atomicAdd(flag, 1u);
  }
  if (cluster_rank() == 0 && me < 32) {
    seen[1][me] = rows[0][me];
    seen[2][me] = rows[1][me];
  }
  cluster_barrier();
  if (cluster_rank() == 0 && me < 32) seen[3][me] = rows[1][me];
}

enum class Misuse : int {
  kNone,
  kRank,
  kMisaligned,
  kMisalignedPair,
  kGlobal,
  kBeyond,
  kAcrossTheEnd,
  kBarrier,
  kSecondHalfOfBarrier,
  kArriveTwice,
  kWaitFirst,
  kWaitTwice,
  kDivergedArrival,
  kDivergedWait,
  kLaneElsewhere,
  kBlockElsewhere,
  kWarpElsewhere,
  kLoop,
};

__global__ void misuse(float* x, unsigned* flag, Misuse fault) {
  struct Memory {
    float row[8];
    PhaseBarrier never;
    float4 end;
  };
  DYNAMIC_SHARED(Memory, memory);
  const unsigned me = threadIdx.x, rank = cluster_rank(), other = fault == Misuse::kRank ? 2 : 1 - rank;
  if (me == 0) memory->never.init(1);
  if (fault != Misuse::kWaitFirst) cluster_arrive();
  if (fault == Misuse::kArriveTwice) cluster_arrive();
  cluster_wait();
  if (fault == Misuse::kWaitTwice) cluster_wait();
  float* target = &memory->row[2];
  char* raw = reinterpret_cast<char*>(memory);
  if (fault == Misuse::kMisaligned) target = reinterpret_cast<float*>(raw + 2);
  if (fault == Misuse::kGlobal) target = x;
  if (fault == Misuse::kBarrier) target = reinterpret_cast<float*>(&memory->never);
  if (fault == Misuse::kSecondHalfOfBarrier) target = reinterpret_cast<float*>(&memory->never) + 1;
  if (me == 0) store_to_block(target, other, static_cast<float>(rank + 1));
  if (me == 1 && fault == Misuse::kMisalignedPair) {
    store_to_block(reinterpret_cast<float2*>(&memory->row[1]), other, make_float2(1, 2));
  }
  if (me == 1 && (fault == Misuse::kBeyond || fault == Misuse::kAcrossTheEnd)) {
    const std::size_t offset = sizeof *memory + (fault == Misuse::kBeyond ? 16 : 0);
    store_to_block(reinterpret_cast<float4*>(raw + offset), other, make_float4(1, 2, 3, 4));
  }
  if (me == 1 && fault == Misuse::kLaneElsewhere) memory->never.wait(0);
  if (rank == 1 && fault == Misuse::kBlockElsewhere) memory->never.wait(0);
  if (me >= 32 && fault == Misuse::kWarpElsewhere) __syncthreads();
  if (rank == 1 && me >= 32 && fault == Misuse::kLoop) {
    while (atomicAdd(flag, 0u) == 0) {
    }
  }
  if (fault == Misuse::kDivergedArrival && me % 2 == 1) {
    cluster_arrive();
  } else {
    cluster_arrive();
  }
  if (fault == Misuse::kDivergedWait && me % 2 == 1) {
    cluster_wait();
  } else {
    cluster_wait();
  }
  if (fault == Misuse::kLoop) atomicExch(flag, 1u);
  if (me == 0) x[rank] = *target;
}

#if defined(INCLINE_FAST_EMULATED)
void allow_large_clusters(const void* kernel, int allowed) {
  incline_fast::cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, allowed),
                            "cudaFuncSetAttribute");
}
void run_exchange(const float* x, float* y, int clusters, int blocks, int rounds, int variant) {
  allow_large_clusters(reinterpret_cast<const void*>(exchange), blocks > 8);
  const auto size = static_cast<unsigned>(blocks);
  LAUNCH_CLUSTER(size, false, exchange, static_cast<unsigned>(clusters) * size, kThreads, sizeof(Inbox), nullptr, x, y,
                 size, rounds, static_cast<Variant>(variant));
}
void run_leave_early(const float* x, float* y, int ending, int late) {
  LAUNCH_CLUSTER(3, true, leave_early, 3, 64, 0, nullptr, x, y, static_cast<Ending>(ending), late);
}
void run_read_early(const float* x, float* seen, unsigned* flag, bool other_waits) {
  LAUNCH_CLUSTER(2, false, read_early, 2, 64, 0, nullptr, x, reinterpret_cast<float (*)[32]>(seen), flag, other_waits);
}
void run_pass_on(float* data, unsigned* flags, float* y, int path) {
  LAUNCH_CLUSTER(2, false, pass_on, 4, 32, 0, nullptr, data, flags, y, static_cast<Path>(path));
}
void run_misuse(float* x, unsigned* flag, int fault) {
  LAUNCH_CLUSTER(2, false, misuse, 2, 64, sizeof(float4) * 4 + 8, nullptr, x, flag, static_cast<Misuse>(fault));
}
#endif
}
