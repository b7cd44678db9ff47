// A ring of slots that one warp fills with bulk copies and the others read: in three ways, and with one fault each.
#include "cuda/arch/bulk_copy.h"

using incline_fast::cuda::PhaseBarrier;
using incline_fast::cuda::share_barriers;

enum class Way : int {
  kEveryLaneWaits,
  kOneLaneWaits,
  kNamedBarrier,
  // Faults.
  kNoWaitForCopies,
  kWaitAtOtherStage,
  kOnlyOneLaneWaits,
  kWrongParity,
  kNoWaitForReaders,
  kNamedBarrierIsNoWait,
  kWrongParityOfReaders,
  kNoWarpBarrier,
  kNoBlockBarrier,
  kNoProxyFence,
  kLateProxyFence,
  kAnnouncesLess,
  kAnnouncesMore,
  kAnnouncesNothing,
  kArrivesTwice,
  kLeftOver,
};

constexpr unsigned kPiece = 256, kStages = 3, kBytes = kPiece * sizeof(float), kCopy = kPiece / 2;

// Lane 0 announces a piece; two lanes copy a half of it each.
__device__ void fill(float* slot, const float* piece, PhaseBarrier& full, Way way) {
  const unsigned lane = threadIdx.x % 32;
  if (lane == 0) {
    if (way == Way::kAnnouncesNothing) {
      full.arrive();
    } else {
      full.arrive_and_expect(way == Way::kAnnouncesLess   ? kBytes - 16
                             : way == Way::kAnnouncesMore ? kBytes + 16
                                                          : kBytes);
    }
    if (way == Way::kArrivesTwice) full.arrive();
  }
  __syncwarp(3);
  full.copy(&slot[lane * kCopy], &piece[lane * kCopy], kBytes / 2);
}

__device__ void produce(float* slots, const float* x, PhaseBarrier* full, PhaseBarrier* empty, int pieces, Way way) {
  for (int piece = 0; piece < pieces; piece++) {
    const unsigned stage = piece % kStages, before = (piece / kStages & 1) ^ 1;
    if (way == Way::kNoWaitForReaders || way == Way::kNamedBarrierIsNoWait) {
      full[stage].wait(before);
    } else {
      empty[stage].wait(way == Way::kWrongParityOfReaders ? before ^ 1 : before);
    }
    fill(&slots[stage * kPiece], &x[piece * kPiece], full[stage], way);
  }
  if (way == Way::kLeftOver && threadIdx.x % 32 == 0) {
    const unsigned stage = pieces % kStages;
    empty[stage].wait(pieces / kStages % 2 ^ 1);
    full[stage].arrive_and_expect(16);
    full[stage].copy(&slots[stage * kPiece], x, 16);
  }
}

__device__ void wait_for_copies(PhaseBarrier* full, unsigned stage, unsigned parity, Way way) {
  const unsigned lane = threadIdx.x % 32;
  if (way == Way::kWaitAtOtherStage) {
    full[(stage + 1) % kStages].wait(parity);
  } else if (way == Way::kOneLaneWaits || way == Way::kOnlyOneLaneWaits) {
    if (lane == 0) full[stage].wait(parity);
    if (way == Way::kOneLaneWaits) __syncwarp();
  } else if (way != Way::kNoWaitForCopies) {
    full[stage].wait(way == Way::kWrongParity ? parity ^ 1 : parity);
  }
}

// As many arrivals as there are warps of readers.
__device__ void leave(PhaseBarrier& empty, unsigned readers, Way way) {
  if (way == Way::kNamedBarrier || way == Way::kNamedBarrierIsNoWait) {
    asm volatile("bar.sync 1, %0;" ::"r"(readers) : "memory");
    if (threadIdx.x < readers / 32) empty.arrive();
  } else {
    if (way != Way::kNoWarpBarrier) __syncwarp();
    if (threadIdx.x % 32 == 0) empty.arrive();
  }
}

// Of every piece p of a block, thread t adds p[t] + 2 p[255 - t] + p[number of the piece].
extern "C" __global__ void ring(const float* x, float* y, int pieces, Way way) {
  DYNAMIC_SHARED(float, slots);
  __shared__ PhaseBarrier full[kStages], empty[kStages];
  const unsigned readers = blockDim.x - 32;
  if (threadIdx.x == 0) {
    for (unsigned stage = 0; stage < kStages; stage++) {
      full[stage].init(1);
      empty[stage].init(readers / 32);
    }
    if (way != Way::kNoProxyFence && way != Way::kLateProxyFence) share_barriers();
  }
  if (way != Way::kNoBlockBarrier) __syncthreads();
  if (way == Way::kLateProxyFence && threadIdx.x == 0) share_barriers();
  if (threadIdx.x >= readers) {
    const float* first = &x[static_cast<std::size_t>(blockIdx.x) * pieces * kPiece];
    if (threadIdx.x < readers + 2) produce(slots, first, full, empty, pieces, way);
    return;
  }
  float sum = 0;
  for (int piece = 0; piece < pieces; piece++) {
    const unsigned stage = piece % kStages;
    const float* slot = &slots[stage * kPiece];
    wait_for_copies(full, stage, piece / kStages & 1, way);
    sum += slot[threadIdx.x] + 2 * slot[kPiece - 1 - threadIdx.x] + slot[piece];
    leave(empty[stage], readers, way);
  }
  y[blockIdx.x * readers + threadIdx.x] = sum;
}
