// A ring of slots that one warp fills with bulk copies and the others read, right and with one fault each.
#include "cuda/arch/bulk_copy.h"

using incline_fast::cuda::PhaseBarrier;
using incline_fast::cuda::share_barriers;

enum class Fault : int {
  kNone,
  kNoWaitForCopies,
  kWaitAtOtherStage,
  kOnlyOneLaneWaits,
  kWrongParity,
  kNoWaitForReaders,
  kWrongParityOfReaders,
  kNoWarpBarrier,
  kNamedBarrier,
  kNoBlockBarrier,
  kNoProxyFence,
  kLateProxyFence,
  kAnnouncesLess,
  kAnnouncesMore,
  kAnnouncesNothing,
  kArrivesTwice,
  kLeftOver,
};

constexpr unsigned kPiece = 256, kStages = 3;

// Of every piece p of a block, thread t adds p[t] + 2 p[255 - t] + p[number of the piece].
extern "C" __global__ void ring(const float* x, float* y, int pieces, Fault fault) {
  DYNAMIC_SHARED(float, slots);
  __shared__ PhaseBarrier full[kStages], empty[kStages];
  const unsigned readers = blockDim.x - 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  x += static_cast<std::size_t>(blockIdx.x) * pieces * kPiece;
  if (threadIdx.x == 0) {
    for (unsigned stage = 0; stage < kStages; stage++) {
      full[stage].init(1);
      empty[stage].init(readers / 32);
    }
    if (fault != Fault::kNoProxyFence && fault != Fault::kLateProxyFence) share_barriers();
  }
  if (fault != Fault::kNoBlockBarrier) __syncthreads();
  if (threadIdx.x == 0 && fault == Fault::kLateProxyFence) share_barriers();
  if (warp == readers / 32) {
    if (lane >= 2) return;
    const unsigned bytes = kPiece * sizeof(float) / 2;
    for (int piece = 0; piece < pieces; piece++) {
      const unsigned stage = piece % kStages, round = piece / kStages;
      PhaseBarrier& barrier = full[stage];
      if (fault != Fault::kNoWaitForReaders) {
        empty[stage].wait(fault == Fault::kWrongParityOfReaders ? round & 1 : (round & 1) ^ 1);
      }
      if (lane == 0) {
        if (fault == Fault::kAnnouncesNothing) {
          barrier.arrive();
        } else {
          const unsigned less = fault == Fault::kAnnouncesLess ? 16 : fault == Fault::kAnnouncesMore ? -16 : 0;
          barrier.arrive_and_expect(2 * bytes - less);
        }
        if (fault == Fault::kArrivesTwice) barrier.arrive();
      }
      __syncwarp(3);
      barrier.copy(&slots[stage * kPiece + lane * kPiece / 2], &x[piece * kPiece + lane * kPiece / 2], bytes);
    }
    if (fault == Fault::kLeftOver && lane == 0) {
      const unsigned stage = pieces % kStages;
      empty[stage].wait(pieces / kStages % 2 ^ 1);
      full[stage].arrive_and_expect(16);
      full[stage].copy(&slots[stage * kPiece], x, 16);
    }
    return;
  }
  float sum = 0;
  for (int piece = 0; piece < pieces; piece++) {
    const unsigned stage = piece % kStages, parity = piece / kStages & 1;
    const float* slot = &slots[stage * kPiece];
    if (fault == Fault::kWaitAtOtherStage) {
      full[(stage + 1) % kStages].wait(parity);
    } else if (fault != Fault::kNoWaitForCopies && (fault != Fault::kOnlyOneLaneWaits || lane == 0)) {
      full[stage].wait(fault == Fault::kWrongParity ? parity ^ 1 : parity);
    }
    sum += slot[threadIdx.x] + 2 * slot[kPiece - 1 - threadIdx.x] + slot[piece];
    if (fault == Fault::kNamedBarrier) {
      asm volatile("bar.sync 1, %0;" ::"r"(readers) : "memory");
    } else if (fault != Fault::kNoWarpBarrier) {
      __syncwarp();
    }
    if (fault == Fault::kNamedBarrier ? threadIdx.x < readers / 32 : lane == 0) empty[stage].arrive();
  }
  y[blockIdx.x * readers + threadIdx.x] = sum;
}
