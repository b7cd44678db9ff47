// The ring through which the maps and rows of a call stream into a block's shared memory (arch/bulk_copy.h): slots that
// a warp of its own requests, in order, as soon as the other warps have read what was in them.
//
// A stage is kWarps steps along k of all that the block multiplies: its columns of the map, the rows of x, and those of
// the residual, each a segment of one slot. So every byte of the map is requested once, every row once per block, and
// what is in flight does not cost registers.
#pragma once

#include "../arch/bulk_copy.h"
#include "projection.h"

namespace incline_fast::cuda {

constexpr int kRingThreads = kThreads + 32;
constexpr int kMaxRingRows = 2 * kTileRows;
constexpr int kMaxStages = 8;
// Shared memory for the slots. Two blocks of launches that overlap, or of one with many columns, fit on a
// multiprocessor of sm_90 with 113 KB each.
constexpr int kRingBytes = 104 << 10;

// Where the segments of a slot lie, in bytes. Behind each is a gap, so that the lanes of a warp, which read 16 bytes of
// eight rows at four places, meet in no bank: 64 bytes where the four places are neighbours, 16 where they are 32 bytes
// apart.
struct Slot {
  int depth;          // elements of k
  int columns, rows;  // of the map; of x, and again of the residual
  int map_pitch, row_pitch;
  bool residual;

  __host__ __device__ constexpr Slot(int map_bytes, int column_tiles, int rows, bool residual)
      : depth(kWarps * 64 / map_bytes),
        columns(column_tiles * kTileColumns),
        rows(rows),
        map_pitch(kWarps * 64 + 64),
        row_pitch(2 * depth + (map_bytes == 1 ? 16 : 64)),
        residual(residual) {}

  __host__ __device__ constexpr int x() const { return columns * map_pitch; }
  __host__ __device__ constexpr int residual_rows() const { return x() + rows * row_pitch; }
  __host__ __device__ constexpr int bytes() const { return residual_rows() + (residual ? rows * row_pitch : 0); }
};

constexpr int ring_stages(const Slot& slot, int hidden) {
  const int fit = kRingBytes / slot.bytes(), needed = (hidden + slot.depth - 1) / slot.depth;
  const int wanted = needed < kMaxStages ? needed : kMaxStages;
  return fit < wanted ? fit : wanted;
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

  // By all threads; ends in a barrier.
  __device__ __forceinline__ void init(int stages) {
    if (threadIdx.x == 0) {
      for (int i = 0; i < stages; ++i) {
        filled[i].init(1);
        read[i].init(kWarps);
      }
      share_barriers();
    }
    __syncthreads();
  }
};

// The warp that requests. What it asks for before the dependency wait is of the map alone.
template <class Types, DType kMap>
struct Requester {
  const AffineCall& call;
  const Slot& slot;
  char* const ring;
  RingBarriers& barriers;
  const int column;  // the block's first

  // A segment of each of up to 32 rows, one for every lane.
  __device__ __forceinline__ void copy_rows(char* target, int pitch, const char* source, std::int64_t source_pitch,
                                            int count, unsigned bytes, PhaseBarrier& filled) const {
    const int row = lane_id();
    if (row < count) filled.copy(target + row * pitch, source + row * source_pitch, bytes);
  }

  __device__ __forceinline__ void announce_and_request_map(int turn, int begin) const {
    constexpr int size = bytes_of(kMap);
    const int depth = min(slot.depth, call.hidden - begin);
    const int of_rows = slot.rows * (Types::has_residual(call) ? 2 : 1);
    PhaseBarrier& filled = barriers.filled[turn];
    if (lane_id() == 0) filled.arrive_and_expect(static_cast<unsigned>(depth * (slot.columns * size + 2 * of_rows)));
    const std::int64_t first = static_cast<std::int64_t>(column) * call.hidden + begin, pitch = call.hidden * size;
    copy_rows(ring + turn * slot.bytes(), slot.map_pitch, call.up.data + first * size, pitch, slot.columns,
              static_cast<unsigned>(depth * size), filled);
  }

  __device__ __forceinline__ void request_rows(int turn, int begin) const {
    const auto bytes = static_cast<unsigned>(2 * min(slot.depth, call.hidden - begin));
    char* const target = ring + turn * slot.bytes();
    const auto request = [&](const RowView& view, int place) {
      const Row first = Types::of(row_at(view, Types::offset(view, call.first_row) + begin));
      copy_rows(target + place, slot.row_pitch, first.data, 2 * view.leading.strides[0], slot.rows, bytes,
                barriers.filled[turn]);
    };
    request(call.x, slot.x());
    if (Types::has_residual(call)) request(call.residual, slot.residual_rows());
  }

  // As many stages as there are slots, of the map alone.
  __device__ __forceinline__ void begin() const {
    for (int i = 0; i < call.stages; ++i) announce_and_request_map(i, i * slot.depth);
  }

  // The rest.
  __device__ __forceinline__ void finish() const {
    for (int i = 0; i < call.stages; ++i) request_rows(i, i * slot.depth);
    Turn turn;
    for (int begin = call.stages * slot.depth; begin < call.hidden; begin += slot.depth) {
      barriers.read[turn.slot].wait(turn.parity);
      announce_and_request_map(turn.slot, begin);
      request_rows(turn.slot, begin);
      turn.advance(call.stages);
    }
  }
};

// r = x (+ residual) of the rows in a slot; k counts within it.
template <class Types>
struct SlotSource {
  const AffineCall& call;
  const Slot& slot;
  const char* const data;

  template <int n>
  using Raw = RawTerms<Types, n>;

  __device__ int count() const { return slot.rows; }

  __device__ __forceinline__ Row row_at(int place, int row) const {
    return Types::of({const_cast<char*>(data) + place + row * slot.row_pitch, 1, DType::kBFloat16, true});
  }

  template <int n>
  __device__ __forceinline__ Raw<n> request(int row, int k) const {
    Raw<n> raw;
    raw.x = Types::template request<n>(call, row_at(slot.x(), row), k);
    if (Types::has_residual(call)) {
      raw.residual = Types::template request<n>(call, row_at(slot.residual_rows(), row), k);
    }
    return raw;
  }

  template <int n>
  __device__ __forceinline__ void widen_to(const Raw<n>& raw, float (&values)[n]) const {
    raw.widen_to(call, values);
  }

  template <DType, int n>
  __device__ __forceinline__ void load_words(int row, int k, unsigned (&words)[n]) const {
    cuda::load_words(row_at(slot.x(), row), k, words);
  }
};

// The lane's chunks of two rows of the map in a slot, as load_chunks() has them in global memory.
template <class Product>
__device__ __forceinline__ Chunks slot_chunks(const Slot& slot, const char* data, int tile, int k) {
  constexpr int size = 16 / Product::kChunk;
  const char* const first = data + (tile * kTileColumns + lane_id() / 4) * slot.map_pitch + k * size;
  return {{*reinterpret_cast<const uint4*>(first), *reinterpret_cast<const uint4*>(first + 8 * slot.map_pitch)}};
}

}  // namespace incline_fast::cuda
