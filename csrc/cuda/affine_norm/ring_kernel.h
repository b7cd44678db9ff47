// r' and its norm for a dense map and up to 16 rows on sm_90 and later: one launch that reads the map once, by bulk
// copies.
//
// A block computes one or two tiles of 16 columns of r' for all rows. Eight warps multiply, each the steps along k that
// are its own in dense_kernel.h, and add up as there: the bits are the same. A ninth requests (ring.h). Of the weights
// some 64 KB a multiprocessor are then in flight, where dense_kernel has 48 in registers and can request them no
// earlier than its rows' place in the registers is known; and a block reads its rows once for all of its columns, from
// shared memory, instead of once per 16.
//
// The blocks that arrive last share out the rows (share_rows.h), so there is no second launch.
#pragma once

#include "ring.h"
#include "share_rows.h"

namespace incline_fast::cuda {

// Every warp's sums for the columns and rows of the block, in the memory of the ring; then one element of r' after the
// other by 16 neighbouring lanes for each row of a tile.
template <class Types, class Product, int column_tiles, int row_tiles>
struct RingSums {
  static constexpr int kUnits = column_tiles * row_tiles * kTileRows;  // rows of tiles
  static constexpr int kOfThread = (kUnits + kThreads / kTileColumns - 1) / (kThreads / kTileColumns);
  static_assert(kUnits % 2 == 0);  // a warp has two, or none

  typename Product::Sums sums[column_tiles][row_tiles];
  Pending<Types> pending[kOfThread];

  static __device__ __forceinline__ int unit(int i) {
    return static_cast<int>(threadIdx.x) / kTileColumns + i * (kThreads / kTileColumns);
  }

  static __device__ __forceinline__ int row_of(int unit) { return unit % (row_tiles * kTileRows); }

  static __device__ __forceinline__ int tile_of(int unit) {
    return static_cast<int>(blockIdx.x) * column_tiles + unit / (row_tiles * kTileRows);
  }

  // What the sums will be joined with.
  __device__ __forceinline__ void request(const AffineCall& call, const Group& group) {
    const int column = static_cast<int>(threadIdx.x) % kTileColumns;
#pragma unroll
    for (int i = 0; i < kOfThread; ++i) {
      if (unit(i) < kUnits)
        pending[i] = Pending<Types>::request(call, group, row_of(unit(i)), tile_of(unit(i)), column);
    }
  }

  __device__ __forceinline__ void add_stage(const AffineCall& call, const Slot& slot, const char* data, int k) {
    const int lane_k = k + lane_id() % 4 * Product::kChunk;
    const SlotSource<Types> source{call, slot, data};
#pragma unroll
    for (int tile = 0; tile < column_tiles; ++tile) {
      const typename Product::Columns columns = Product::columns(slot_chunks<Product>(slot, data, tile, lane_k));
      Product::template step<row_tiles>(sums[tile], columns, source, 0, lane_k);
    }
  }

  // After the last stage. `shared` has room for column_tiles * row_tiles.
  __device__ __forceinline__ void store(const AffineCall& call, WarpSums* shared) const {
    const int g = lane_id() / 4, t = lane_id() % 4, column = static_cast<int>(threadIdx.x) % kTileColumns;
    __syncthreads();  // nothing in the ring is read any more
#pragma unroll
    for (int tile = 0; tile < column_tiles * row_tiles; ++tile) {
      float d[4];
      Product::collect(sums[tile / row_tiles][tile % row_tiles], d);
      for (int i = 0; i < 4; ++i) shared[tile].values[warp_id()][2 * t + i % 2][g + 8 * (i / 2)] = d[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kOfThread; ++i) {
      if (unit(i) >= kUnits) continue;
      const WarpSums& tile = shared[unit(i) / kTileRows];
      const int row = unit(i) % kTileRows;
      float sum = tile.values[0][row][column];
      for (int warp = 1; warp < kWarps; ++warp) sum += tile.values[warp][row][column];
      store_tile<Types>(call, pending[i].row, tile_of(unit(i)), column, pending[i].valid, pending[i].edited(call, sum));
    }
  }
};

template <class Types, class Product, DType kMap, int column_tiles, int row_tiles>
__device__ __forceinline__ void stream_and_normalise(const AffineCall& call) {
  __shared__ RingBarriers barriers;
  __shared__ Group group;
  DYNAMIC_SHARED(char, ring);
  if (call.programmatic) allow_next_launch();
  const Slot slot(bytes_of(kMap), column_tiles, call.num_rows, Types::has_residual(call));
  const int column = static_cast<int>(blockIdx.x) * column_tiles * kTileColumns;
  barriers.init(call.stages);
  const Requester<Types, kMap> requester{call, slot, ring, barriers, column};
  const bool requests = warp_id() == kWarps;
  if (requests) requester.begin();
  fill<Types>(call, group);
  if (requests) {
    requester.finish();
    return;
  }
  count_start(call, gridDim.x);
  RingSums<Types, Product, column_tiles, row_tiles> sums;
  sums.request(call, group);
  Turn turn;
  for (int begin = 0; begin < call.hidden; begin += slot.depth) {
    const int k = warp_id() * Product::kStep;
    barriers.filled[turn.slot].wait(turn.parity);
    if (begin + k < call.hidden) sums.add_stage(call, slot, ring + turn.slot * slot.bytes(), k);
    __syncwarp();
    if (lane_id() == 0) barriers.read[turn.slot].arrive();
    turn.advance(call.stages);
  }
  sums.store(call, reinterpret_cast<WarpSums*>(ring));
  normalise_share<Types>(call, gridDim.x);
}

// Two blocks to a multiprocessor: 18 warps, at most 112 registers a thread.
template <class Types, class Product, DType kMap, int column_tiles, int row_tiles>
__global__ void __launch_bounds__(kRingThreads, 2) ring_kernel(const __grid_constant__ AffineCall call) {
  if constexpr (kHasBulkCopies) {
    stream_and_normalise<Types, Product, kMap, column_tiles, row_tiles>(call);
  } else {
    __trap();
  }
}

}  // namespace incline_fast::cuda
