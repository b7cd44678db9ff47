// r' and its norm for a map up (down r) of low rank: one launch.
//
// The grid's work is a list: first the pieces of down r (16 rows of `down`, a part of its depth, one map), then the
// tiles of r' as in dense_kernel.h. A tile needs all of down r, so it has to wait for other blocks, and no block may
// assume that those are resident. Therefore a block does not take the work that its index names but the next of the
// list, by a counter. Whoever draws a tile knows that every piece before it has been drawn by a block that runs
// already, and a block with a piece waits for nobody; so all pieces get done however few blocks are resident, and the
// waiting ends. Before it waits, a block has requested its part of `up`, so both factors stream from memory without a
// pause in between.
//
// The counters go back to zero in the last block to finish a tile. By then all work has been drawn and, because every
// block with a tile waits for the pieces, even one without rows, all pieces are done.
#pragma once

#include "dense_kernel.h"

namespace incline_fast::cuda {

// Depth of a piece. It may depend on the map but not on the rows, for it decides the order of the sums. Of a map of low
// rank few blocks read `down`, and each should have requested all of its piece at once; but every piece is read by
// every tile later.
__host__ __device__ constexpr int piece_depth(std::int64_t rank) { return rank <= 128 ? 512 : 1024; }

struct Work {
  int tile, group, split;
  bool inner;
};

__host__ __device__ inline unsigned count_inner(const AffineCall& call) {
  return static_cast<unsigned>(inner_pitch(call.rank) / kTileColumns * call.splits * call.groups);
}

__host__ __device__ inline unsigned count_outer(const AffineCall& call) {
  return static_cast<unsigned>(call.tiles * call.groups);
}

__device__ inline Work work_of(const AffineCall& call, unsigned number) {
  const unsigned pieces = count_inner(call);
  const bool inner = number < pieces;
  const int tiles = inner ? inner_pitch(call.rank) / kTileColumns : call.tiles;
  const int rest = static_cast<int>(inner ? number : number - pieces);
  return {rest % tiles, rest / tiles % call.groups, rest / tiles / call.groups, inner};
}

// What a block will read of the map, or of another block's part: which work it will get it does not know before the
// launch ahead of this one has ended, for that may be one with the same counters. Together the blocks ask for the map.
template <class Types, class Inner, class Outer>
__device__ __forceinline__ void prefetch_map(const AffineCall& call) {
  const Work work = work_of(call, blockIdx.x);
  const MapView map = work.inner ? Types::of(call.down) : call.up;
  const int size = 16 / (work.inner ? Inner::kChunk : Outer::kChunk);
  const std::int64_t row = work.tile * kTileColumns + static_cast<int>(threadIdx.x);
  const int begin = work.inner ? work.split * piece_depth(call.rank) : 0;
  const int end = work.inner ? min(call.hidden, begin + piece_depth(call.rank)) : static_cast<int>(map.depth);
  if (call.row_map != nullptr || !map.wide || threadIdx.x >= kTileColumns || row >= map.columns) return;
  prefetch_into_l2(map.data + (row * map.depth + begin) * size, static_cast<unsigned>((end - begin) * size));
}

template <class Types, class Product, int row_tiles>
__device__ __forceinline__ void inner_piece(const AffineCall& call, const Members& members, Group& group,
                                            const Work& work, WarpSums& shared) {
  const int depth = piece_depth(call.rank), begin = work.split * depth, end = min(call.hidden, begin + depth);
  const int column = work.tile * kTileColumns, pitch = inner_pitch(call.rank);
  for (int first = 0; first < members.count; first += row_tiles * kTileRows) {
    typename Product::Sums sums[row_tiles];
    const auto prepare = [&] {
      if (first == 0) fill<Types>(call, group);
    };
    project<Product, row_tiles, 1>(Types::of(call.down), members.map, column, begin, end, RowSource<Types>{call, group},
                                   first, prepare, sums);
    combine<Product, row_tiles>(shared, sums, first, members.count, [&](int index, int place, float sum) {
      if (index >= members.count) return;
      if (call.down.scale != nullptr && column + place < call.rank) {
        sum *= call.down.scale[members.map * call.rank + column + place];
      }
      const std::int64_t row = static_cast<std::int64_t>(work.split) * call.num_rows + group.rows[index];
      call.inner[row * pitch + column + place] = sum;
    });
  }
}

// Inner multiplies the rows with `down`, Outer the result with `up`. Two blocks to a multiprocessor, as dense_kernel.
template <class Types, class Inner, class Outer, int row_tiles>
__global__ void __launch_bounds__(kThreads, 2) low_rank_kernel(const __grid_constant__ AffineCall call) {
  __shared__ Group group;
  __shared__ WarpSums shared;
  if (call.programmatic) {
    allow_next_launch();
    prefetch_map<Types, Inner, Outer>(call);
  }
  wait_for_previous_launch();
  const Work work = work_of(call, take_work(call.tickets + kNextWork));
  const Members members = find_members<Types>(call, work.group, group);
  if (work.inner) {
    inner_piece<Types, Inner, row_tiles>(call, members, group, work, shared);
    publish(call.tickets + kInnerDone);
    return;
  }
  const unsigned tiles = count_outer(call);
  const auto wait = [&] {
    note_early(call, tiles, count_start(call));
    wait_for(call.tickets + kInnerDone, count_inner(call));
  };
  edit_tile<Types, Outer, row_tiles, 1>(call, call.up, members, group, InnerSource{call, group}, work.tile, shared,
                                        wait);
  if (members.count == 0) wait();
  if (work.group == 0) store_unedited<Types>(call, work.tile);
  normalise_share<Types>(call, tiles);
}

}  // namespace incline_fast::cuda
