// r' and its norm for a dense map: one launch that reads the map once.
//
// Block (tile, number) computes 16 columns of r' for the rows of the number-th map in use. r' goes to slots in the
// workspace and not to its place, because that may be the memory of x or of the residual, of which other blocks still
// read whole rows. The blocks that finish last have everybody's slots: they copy them and normalise, each a share of
// the rows. A second launch would take longer by benchmarks/decode_model.py: 1.9 us to 1.4.
#pragma once

#include "projection.h"
#include "share_rows.h"

namespace incline_fast::cuda {

// Columns tile * 16 to + 15 of r' for a group's rows, as far as the map's product goes: into the slots. `begin` runs
// once, when the first weights are requested and the group is filled, before the source is read.
template <class Types, class Product, int row_tiles, int together, class Source, class Begin>
__device__ __forceinline__ void edit_tile(const AffineCall& call, const MapView& up, const Members& members,
                                          Group& group, const Source& source, int tile, WarpSums& shared, Begin begin) {
  // One row tile leaves registers for what the product will be joined with, which is requested before it.
  constexpr bool early = Types::kUniform && row_tiles == 1;
  const int column = static_cast<int>(threadIdx.x) % kTileColumns, row = static_cast<int>(threadIdx.x) / kTileColumns;
  for (int first = 0; first < members.count; first += row_tiles * kTileRows) {
    typename Product::Sums sums[row_tiles];
    Pending<Types> ready;
    const auto prepare = [&] {
      if (first == 0) fill<Types>(call, group);
      if constexpr (early) ready = Pending<Types>::request(call, group, first + row, tile, column);
      if (first == 0) begin();
    };
    project<Product, row_tiles, together>(up, members.map, tile * kTileColumns, 0, static_cast<int>(up.depth), source,
                                          first, prepare, sums);
    combine<Product, row_tiles>(shared, sums, first, members.count, [&](int index, int, float sum) {
      const Pending<Types> pending = early ? ready : Pending<Types>::request(call, group, index, tile, column);
      store_tile<Types>(call, pending.row, tile, column, pending.valid, pending.edited(call, sum));
    });
  }
}

// Two blocks to a multiprocessor: 16 warps, at most 128 registers a thread.
template <class Types, class Product, int row_tiles>
__global__ void __launch_bounds__(kThreads, 2) dense_kernel(const __grid_constant__ AffineCall call) {
  __shared__ Group group;
  __shared__ WarpSums shared;
  if (call.programmatic) allow_next_launch();
  const int tile = static_cast<int>(blockIdx.x);
  const Members members = find_members<Types>(call, static_cast<int>(blockIdx.y), group);
  const RowSource<Types> source{call, group};
  constexpr int together = Types::kUniform && row_tiles > 1 ? Product::kTogether : 1;
  const unsigned blocks = gridDim.x * gridDim.y;
  const auto begin = [&] { note_early(call, blocks, count_start(call)); };
  edit_tile<Types, Product, row_tiles, together>(call, Types::of(call.up), members, group, source, tile, shared, begin);
  if (members.count == 0) begin();
  if (blockIdx.y == 0) store_unedited<Types>(call, tile);
  normalise_share<Types>(call, blocks);
}

}  // namespace incline_fast::cuda
