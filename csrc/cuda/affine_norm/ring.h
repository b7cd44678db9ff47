// The ring through which a map streams into a block's shared memory (arch/bulk_copy.h): slots that a warp of its own
// requests, in order, as soon as the other warps have read what was in them.
//
// A slot holds a stage: of each of the block's columns a segment of 1 KB, kRounds steps along k of every warp. A bulk
// copy brings a segment. A warp issues them one lane after the other, some 40 clocks each (nvdisasm: a loop, for their
// operands are uniform registers), so that they must not be short: 1 KB in 40 clocks is twice what an H200 can bring.
// What is in flight costs no registers.
#pragma once

#include <algorithm>

#include "../arch/bulk_copy.h"
#include "projection.h"

namespace incline_fast::cuda {

constexpr int kRingThreads = kThreads + 32;
constexpr int kMaxRingRows = 2 * kTileRows;
constexpr int kRounds = 2;
constexpr int kSegmentBytes = kRounds * kWarps * 64;
// Between segments there is a gap, so that the lanes of a warp, which read 64 bytes of each of eight segments, meet in
// no bank.
constexpr int kSegmentPitch = kSegmentBytes + 64;
// Shared memory for the slots. Two blocks of launches that overlap, or of one with many columns, fit on a
// multiprocessor of sm_90 with 113 KB each.
constexpr int kRingBytes = 104 << 10;

__host__ __device__ constexpr int slot_bytes(int column_tiles) { return column_tiles * kTileColumns * kSegmentPitch; }

constexpr int kMaxStages = 8;  // barriers of as many; fewer slots fit

constexpr int ring_stages(int column_tiles, std::int64_t row_bytes) {
  const std::int64_t needed = (row_bytes + kSegmentBytes - 1) / kSegmentBytes;
  return static_cast<int>(std::min<std::int64_t>(needed, kRingBytes / slot_bytes(column_tiles)));
}

// Which slot is next, and the parity of the phases of its barriers.
struct Turn {
  int slot = 0;
  unsigned parity = 0;

  __device__ __forceinline__ void advance(int stages) {
    if (++slot < stages) return;
    slot = 0;
    parity ^= 1;
  }
};

struct RingBarriers {
  PhaseBarrier filled[kMaxStages];  // one arrival and the bytes of a stage
  PhaseBarrier read[kMaxStages];    // an arrival of every warp that reads

  // By one thread; a __syncthreads() has to follow.
  __device__ __forceinline__ void init(int stages) {
    for (int i = 0; i < stages; ++i) {
      filled[i].init(1);
      read[i].init(kWarps);
    }
    share_barriers();
  }
};

// What the ninth warp does: requests all stages of the block's columns, of the map alone, so that it need not wait for
// the launch ahead.
template <DType kMap, int column_tiles>
__device__ __forceinline__ void request_stages(const AffineCall& call, char* ring, RingBarriers& barriers) {
  constexpr int size = bytes_of(kMap), columns = column_tiles * kTileColumns, depth = kSegmentBytes / size;
  static_assert(columns <= 32);  // a segment for every lane
  const int lane = lane_id();
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * columns + lane;
  const char* const row = call.up.data + column * call.hidden * size;
  Turn turn;
  for (int begin = 0; begin < call.hidden; begin += depth) {
    const auto bytes = static_cast<unsigned>(min(depth, call.hidden - begin) * size);
    barriers.read[turn.slot].wait(turn.parity ^ 1);  // at first nothing is in the slot, and the wait over
    __syncwarp();                                    // so that no lane waits for a phase when the next has ended
    PhaseBarrier& filled = barriers.filled[turn.slot];
    if (lane == 0) filled.arrive_and_expect(columns * bytes);
    if (lane < columns) {
      filled.copy(ring + turn.slot * slot_bytes(column_tiles) + lane * kSegmentPitch, row + begin * size, bytes);
    }
    turn.advance(call.stages);
  }
}

// The lane's chunks of two columns in a slot, as load_chunks() has them in global memory; k counts within the slot.
template <class Product>
__device__ __forceinline__ Chunks slot_chunks(const char* slot, int tile, int k) {
  constexpr int size = 16 / Product::kChunk;
  const char* const first = slot + (tile * kTileColumns + lane_id() / 4) * kSegmentPitch + k * size;
  return {{*reinterpret_cast<const uint4*>(first), *reinterpret_cast<const uint4*>(first + 8 * kSegmentPitch)}};
}

}  // namespace incline_fast::cuda
