// r' and its norm for a dense map and up to 16 rows on sm_90 and later: one launch that reads the map once, by bulk
// copies.
//
// A block computes one or two tiles of 16 columns of r' for all rows. Eight warps multiply, each the steps along k that
// are its own in dense_kernel.h, and add up as there: the bits are the same. A ninth requests the map (ring.h): up to
// 96 KB a block, where dense_kernel has 48 KB a multiprocessor in registers, and all of it before the launch ahead has
// ended. Rows are read from L2, once for both tiles; what a warp needs of them it has requested when it waits for a
// stage.
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
      const int index = unit(i);
      if (index < kUnits) pending[i] = Pending<Types>::request(call, group, row_of(index), tile_of(index), column);
    }
  }

  // The warp's steps of the stage that begins at `begin`, once it has arrived in `slot`.
  __device__ __forceinline__ void add_stage(const AffineCall& call, const RowSource<Types>& source, const char* slot,
                                            int begin, PhaseBarrier& filled, unsigned parity) {
    // Operands are requested before the stage is waited for, as far as registers go.
    constexpr int words = Product::kPieces * row_tiles * (Product::kSplits ? 8 : 4);
    constexpr int held = words > 16 || (Product::kSplits && row_tiles > 1) ? 1 : kRounds;
    constexpr int stride = kWarps * Product::kStep;
    const int warp_k = warp_id() * Product::kStep, lane_k = lane_id() % 4 * Product::kChunk;
    if constexpr (held == 1) filled.wait(parity);
#pragma unroll
    for (int first = 0; first < kRounds; first += held) {
      typename Product::template Operand<RowSource<Types>> operands[held][Product::kPieces][row_tiles];
#pragma unroll
      for (int i = 0; i < held; ++i) {
        const int k = warp_k + (first + i) * stride;
        if (begin + k >= call.hidden) continue;
#pragma unroll
        for (int piece = 0; piece < Product::kPieces; ++piece) {
          Product::request(source, 0, begin + k + lane_k + piece * Product::kPiece, operands[i][piece]);
        }
      }
      if constexpr (held > 1) filled.wait(parity);
#pragma unroll
      for (int i = 0; i < held; ++i) {
        const int k = warp_k + (first + i) * stride;
        if (begin + k < call.hidden) add_step(source, slot, k + lane_k, operands[i]);
      }
    }
  }

  // One of them; k counts within the slot.
  template <class Operands>
  __device__ __forceinline__ void add_step(const RowSource<Types>& source, const char* slot, int k,
                                           const Operands (&operands)[Product::kPieces][row_tiles]) {
#pragma unroll
    for (int tile = 0; tile < column_tiles; ++tile) {
      const auto columns = Product::columns(slot_chunks<Product>(slot, tile, k));
#pragma unroll
      for (int piece = 0; piece < Product::kPieces; ++piece) {
        Product::add(sums[tile], columns, piece, source, operands[piece]);
      }
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
  list_all_rows<Types>(call, group);
  if (threadIdx.x == kThreads) barriers.init(call.stages);
  __syncthreads();
  if (warp_id() == kWarps) {
    request_stages<kMap, column_tiles>(call, ring, barriers);
    return;
  }
  wait_for_previous_launch();
  const Progress started = count_start(call);
  RingSums<Types, Product, column_tiles, row_tiles> sums;
  sums.request(call, group);
  const RowSource<Types> source{call, group};
  Turn turn;
  for (int begin = 0; begin < call.hidden; begin += kSegmentBytes / bytes_of(kMap)) {
    const char* const slot = ring + turn.slot * slot_bytes(column_tiles);
    sums.add_stage(call, source, slot, begin, barriers.filled[turn.slot], turn.parity);
    __syncwarp();
    if (lane_id() == 0) barriers.read[turn.slot].arrive();
    turn.advance(call.stages);
  }
  sums.store(call, reinterpret_cast<WarpSums*>(ring));
  note_early(call, gridDim.x, started);
  normalise_share<Types>(call, gridDim.x);
}

// Two blocks to a multiprocessor: 18 warps, at most 96 registers a thread.
template <class Types, class Product, DType kMap, int column_tiles, int row_tiles>
__global__ void __launch_bounds__(kRingThreads, 2) ring_kernel(const __grid_constant__ AffineCall call) {
  if constexpr (kHasBulkCopies) {
    stream_and_normalise<Types, Product, kMap, column_tiles, row_tiles>(call);
  } else {
    __trap();
  }
}

}  // namespace incline_fast::cuda
