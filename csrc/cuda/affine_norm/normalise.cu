// The norm in a launch of its own, one block per row.
#include "plan.h"
#include "row_norm.h"

namespace incline_fast::cuda {

// After dense_kernel or low_rank_kernel with more rows than their last block should normalise; at most kMaxRows blocks,
// so each has a multiprocessor to itself. The counters of low_rank_kernel are done with.
template <class Types>
__global__ void __launch_bounds__(kThreads, 2) normalise_rows(const __grid_constant__ AffineCall call) {
  if (call.programmatic) allow_next_launch();
  wait_for_previous_launch();
  if (blockIdx.x == 0 && threadIdx.x < kTicketCount) call.tickets[threadIdx.x] = 0;
  normalise_row<Types>(call, static_cast<int>(blockIdx.x));
}

// After a GEMM that left M r in call.mapped: bias, strengths, residual, rounding and norm of a row, edited or not.
// Every thread reads back the elements of r' that it wrote itself. For equal r' the bits are those of the decode
// kernels.
__global__ void __launch_bounds__(kThreads, 2) edit_and_normalise_rows(const __grid_constant__ AffineCall call) {
  DYNAMIC_SHARED(Moments, moments);
  if (call.programmatic) allow_next_launch();
  wait_for_previous_launch();
  const std::int64_t row = call.first_row + blockIdx.x;
  const int map = map_of(call, blockIdx.x);
  const Row edited = row_of(call.edited, row), y = row_of(call.y, row), x = row_of(call.x, row);
  const Row residual = call.residual.first.data == nullptr ? Row{} : row_of(call.residual, row);
  const Row mapped = row_of(call.mapped, row);
  const int first = 4 * static_cast<int>(threadIdx.x);
  for (int begin = 0; begin < call.hidden; begin += 4 * kThreads) {  // all lanes: they share the sums of a tile
    const int k = begin + first, tile = k / kTileColumns;
    float r[4], z[4], values[4] = {};
    load_elements(x, k, call.hidden, r);
    load_elements(mapped, k, call.hidden, z);
    if (residual.data != nullptr) {
      float more[4];
      load_elements(residual, k, call.hidden, more);
      for (int i = 0; i < 4; ++i) r[i] += more[i];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (k + i >= call.hidden) continue;
      const float value = is_map(call, map) ? edit_of(call, map, row, k + i)(r[i], z[i]) : unedited(map, r[i]);
      values[i] = round_to(edited.dtype, value);
    }
    if (k < call.hidden) store_elements(edited, k, call.hidden, values);
    const Moments part = moments_of_4x4(call, tile, k, values);
    if (k % kTileColumns == 0 && tile < call.tiles) moments[tile] = part;
  }
  __syncthreads();
  const Statistics stats = statistics(call, [&](int tile) { return moments[tile]; });
  for (int k = first; k < call.hidden; k += 4 * kThreads) {
    float values[4];
    load_elements(edited, k, call.hidden, values);
    Vectors<AnyRows>::request(call, k).store_normed(call, y, stats, k, values);
  }
}

Kernel normalise_kernel_for(const AffineCall& call) {
  if (is_uniform(call, DType::kBFloat16)) return &normalise_rows<UniformRows<DType::kBFloat16, false>>;
  if (is_uniform(call, DType::kFloat16)) return &normalise_rows<UniformRows<DType::kFloat16, false>>;
  return &normalise_rows<AnyRows>;
}

Kernel epilogue_kernel() { return &edit_and_normalise_rows; }

}  // namespace incline_fast::cuda
