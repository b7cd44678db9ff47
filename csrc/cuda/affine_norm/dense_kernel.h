// r' and its norm for a dense map: one launch that reads the map once.
//
// Block (tile, number) computes 16 columns of r' for the rows of the number-th map in use. r' goes to slots in the
// workspace and not to its place, because that may be the memory of x or of the residual, of which other blocks still
// read whole rows. The block that arrives last has everybody's slots: it copies them and normalises.
//
// One row is normalised by the block that arrives last: it has to wait for its counter, the slots and the sums,
// some 1.3 us, where a second launch costs 1.9. Each further row would add 0.3 us to a tail that one multiprocessor
// works off alone, so from kOneLaunchRows + 1 on normalise_rows shares them out, and nothing is counted here. These
// times are predictions of benchmarks/roofline.py.
#pragma once

#include "projection.h"
#include "row_norm.h"
#include "tickets.h"

namespace incline_fast::cuda {

constexpr int kOneLaunchRows = 1;

// Columns tile * 16 to + 15 of r' for a group's rows, as far as the map's product goes: into the slots.
template <class Types, class Product, int row_tiles, int together, class Source, class Wait>
__device__ __forceinline__ void edit_tile(const AffineCall& call, const MapView& up, const Members& members,
                                          Group& group, const Source& source, int tile, WarpSums& shared, Wait wait) {
  // One row tile leaves registers for what the product will be joined with, which is requested before it.
  constexpr bool early = Types::kUniform && row_tiles == 1;
  const int column = static_cast<int>(threadIdx.x) % kTileColumns, row = static_cast<int>(threadIdx.x) / kTileColumns;
  for (int first = 0; first < members.count; first += row_tiles * kTileRows) {
    typename Product::Sums sums[row_tiles];
    Pending<Types> ready;
    const auto prepare = [&] {
      if (first == 0) fill<Types>(call, group);
      if constexpr (early) ready = Pending<Types>::request(call, group, first + row, tile, column);
      wait();
    };
    project<Product, row_tiles, together>(up, members.map, tile * kTileColumns, 0, static_cast<int>(up.depth), source,
                                          first, prepare, sums);
    combine<Product, row_tiles>(shared, sums, first, members.count, [&](int index, int, float sum) {
      const Pending<Types> pending = early ? ready : Pending<Types>::request(call, group, index, tile, column);
      store_tile<Types>(call, pending.row, tile, column, pending.valid, pending.edited(call, sum));
    });
  }
}

// The last thing that a block does: of one row, the last block of `total` makes r' and y.
template <class Types>
__device__ __forceinline__ void finish_launch(const AffineCall& call, unsigned total) {
  if (!call.normalise || !publish_is_last(call.tickets + kFinished, total)) return;
  if (threadIdx.x < kTicketCount) call.tickets[threadIdx.x] = 0;
  normalise_row<Types>(call, 0);
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
  edit_tile<Types, Product, row_tiles, together>(call, Types::of(call.up), members, group, source, tile, shared, [] {});
  if (blockIdx.y == 0) store_unedited<Types>(call, tile);
  // More than a row tile are never normalised here.
  if constexpr (row_tiles == 1) finish_launch<Types>(call, gridDim.x * gridDim.y);
}

}  // namespace incline_fast::cuda
