// r' and its norm for a dense map: one launch that reads the map once.
//
// Block (tile, number) computes 16 columns of r' for the rows of the number-th map in use. r' goes to slots in the
// workspace and not to its place, because that may be the memory of x or of the residual, of which other blocks still
// read whole rows. The block that arrives last has everybody's slots: it copies them and normalises.
//
// The tail costs the last block one pass over [num_rows, d]: at d = 4096 about 1.5 us for one row, and it grows by 0.3
// us a row (32 KB moved by one multiprocessor at some 110 GB/s) until at 16 rows a second launch, about 3 us with its
// gap, is cheaper. So up to kOneLaunchRows rows are normalised here and more by normalise_kernel. These are estimates.
#pragma once

#include "projection.h"
#include "row_norm.h"
#include "tickets.h"

namespace incline_fast::cuda {

constexpr int kOneLaunchRows = 16;

// Columns tile * 16 to + 15 of r' for a group's rows, as far as the map's product goes: into the slots.
template <class Product, int row_tiles, class Source, class Wait>
__device__ __forceinline__ void edit_tile(const AffineCall& call, const Group& group, const Source& source, int tile,
                                          WarpSums& shared, Wait wait) {
  for (int first = 0; first < group.count; first += row_tiles * kTileRows) {
    typename Product::Sums sums[row_tiles];
    project<Product, row_tiles>(call.up, group.map, tile * kTileColumns, 0, static_cast<int>(call.up.depth), source,
                                first, wait, sums);
    combine<Product, row_tiles>(shared, sums, first, group.count, [&](int index, int column, float sum) {
      const bool valid = index < group.count && column < columns_of(call, tile);
      const int row = index < group.count ? group.rows[index] : 0, place = tile * kTileColumns + column;
      float value = 0.0f;
      if (valid) {
        const std::int64_t whole = call.first_row + row;
        value = edit(call, group.map, whole, place, stream_at(call, whole, place), sum);
      }
      store_tile(call, row, tile, column, valid, value);
    });
  }
}

// What the last block of a launch does with the others' slots.
__device__ inline void finish_launch(const AffineCall& call) {
  if (threadIdx.x < kTicketCount) call.tickets[threadIdx.x] = 0;
  if (!call.normalise) return;
  int sharing = kWarps;  // warps to a row
  while (sharing > 1 && sharing * call.num_rows > kWarps) sharing /= 2;
  const int team = warp_id() / sharing, thread = static_cast<int>(threadIdx.x) % (32 * sharing);
  for (int row = team; row < call.num_rows; row += kWarps / sharing) normalise_row(call, row, thread, 32 * sharing);
}

// Two blocks to a multiprocessor: 16 warps, at most 128 registers a thread.
template <class Product, int row_tiles>
__global__ void __launch_bounds__(kThreads, 2) dense_kernel(const __grid_constant__ AffineCall call) {
  __shared__ Group group;
  __shared__ WarpSums shared;
  const int tile = static_cast<int>(blockIdx.x);
  find_group(call, static_cast<int>(blockIdx.y), group);
  edit_tile<Product, row_tiles>(call, group, StreamSource{call, group}, tile, shared, NoWait{});
  if (blockIdx.y == 0) store_unedited(call, tile);
  if (publish_is_last(call.tickets + kFinished, gridDim.x * gridDim.y)) finish_launch(call);
}

}  // namespace incline_fast::cuda
