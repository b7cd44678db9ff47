// r' of one tile of columns, the statistics of a row from its tiles, and the norm.
#pragma once

#include "group.h"

namespace incline_fast::cuda {

// Sum over 16 neighbouring lanes, the same tree for every lane.
__device__ __forceinline__ float sum_of_16(float value) {
  for (int step = 1; step < kTileColumns; step *= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

__device__ __forceinline__ int columns_of(const AffineCall& call, int tile) {
  return min(kTileColumns, call.hidden - tile * kTileColumns);
}

// beta r + alpha (scale z + bias), rounded to the type of r'. `row` counts within the call.
__device__ __forceinline__ float edit(const AffineCall& call, int map, std::int64_t row, int column, float r, float z) {
  if (call.up.scale != nullptr) z *= call.up.scale[map * call.up.columns + column];
  if (call.bias.data != nullptr) z += load_element(call.bias, map * call.bias_stride + column);
  float alpha = call.alpha, beta = call.beta;
  if (call.row_alpha.data != nullptr) alpha *= load_element(call.row_alpha, row);
  if (call.row_beta.data != nullptr) beta *= load_element(call.row_beta, row);
  return beta * r + alpha * z;
}

__device__ __forceinline__ float stream_at(const AffineCall& call, std::int64_t row, int column) {
  float r = load_element(row_of(call.x, row), column);
  if (call.residual.first.data != nullptr) r += load_element(row_of(call.residual, row), column);
  return r;
}

// Writes one element of r' per lane, and per 16 lanes the moments of a row's tile. `row` counts within the launch;
// lanes that have no row or no column bring valid = false.
__device__ __forceinline__ void store_tile(const AffineCall& call, int row, int tile, int column, bool valid,
                                           float value) {
  const float n = static_cast<float>(columns_of(call, tile));
  value = valid ? round_to(call.edited.first.dtype, value) : 0.0f;
  const float mean = sum_of_16(value) / n;
  const float deviation = valid ? value - mean : 0.0f;
  const float deviations = sum_of_16(deviation * deviation);
  if (!valid) return;
  call.slots[(static_cast<std::int64_t>(row) * call.tiles + tile) * kTileColumns + column] = value;
  if (column == 0) call.moments[static_cast<std::int64_t>(row) * call.tiles + tile] = {mean, deviations};
}

// r' of a row without a map is r. A row_map entry past the last map cannot be refused without waiting for the device;
// its row becomes NaN rather than something that looks right.
__device__ __forceinline__ float unedited(int map, float r) { return map < 0 ? r : __uint_as_float(0x7fffffffu); }

// The rows that no map edits, for one tile.
__device__ inline void store_unedited(const AffineCall& call, int tile) {
  if (call.row_map == nullptr) return;
  const int column = static_cast<int>(threadIdx.x) % kTileColumns, place = tile * kTileColumns + column;
  constexpr int rows_at_once = kThreads / kTileColumns;
  for (int first = 0; first < call.num_rows; first += rows_at_once) {
    const int row = first + static_cast<int>(threadIdx.x) / kTileColumns;
    const int map = row < call.num_rows ? map_of(call, row) : 0;
    const bool valid = row < call.num_rows && !is_map(call, map) && column < columns_of(call, tile);
    const float value = valid ? unedited(map, stream_at(call, call.first_row + row, place)) : 0.0f;
    store_tile(call, row, tile, column, valid, value);
  }
}

// The same moments from four neighbouring elements in each of four neighbouring lanes: the same tree of sums.
__device__ __forceinline__ float sum_of_4x4(const float (&values)[4]) {
  float sum = (values[0] + values[1]) + (values[2] + values[3]);
  for (int step = 1; step < 4; step *= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  return sum;
}

__device__ __forceinline__ Moments moments_of_4x4(const AffineCall& call, int tile, int k, const float (&values)[4]) {
  const float mean = sum_of_4x4(values) / static_cast<float>(columns_of(call, tile));
  float squares[4];
  for (int i = 0; i < 4; ++i) squares[i] = k + i < call.hidden ? (values[i] - mean) * (values[i] - mean) : 0.0f;
  return {mean, sum_of_4x4(squares)};
}

// Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances (1979), equation 1.5.
struct Running {
  float n, mean, deviations;

  __device__ void add(float other_n, float other_mean, float other_deviations) {
    if (other_n == 0.0f) return;
    const float total = n + other_n, delta = other_mean - mean;
    mean += delta * (other_n / total);
    deviations += other_deviations + delta * delta * (n * other_n / total);
    n = total;
  }
};

struct Statistics {
  float mean, rstd;
};

// Statistics of a row from its tiles' moments: every lane adds every 32nd tile, then the lanes pair up. Any warp
// computes the same bits. `moments_of(tile)` gives a tile's moments.
template <class MomentsOf>
__device__ inline Statistics statistics(const AffineCall& call, MomentsOf moments_of) {
  Running sum = {0.0f, 0.0f, 0.0f};
  for (int tile = lane_id(); tile < call.tiles; tile += 32) {
    const Moments moments = moments_of(tile);
    sum.add(static_cast<float>(columns_of(call, tile)), moments.mean, moments.deviations);
  }
  for (int step = 16; step > 0; step /= 2) {
    const float n = __shfl_down_sync(kAllLanes, sum.n, step), mean = __shfl_down_sync(kAllLanes, sum.mean, step);
    const float deviations = __shfl_down_sync(kAllLanes, sum.deviations, step);
    if (lane_id() < step) sum.add(n, mean, deviations);
  }
  const float mean = __shfl_sync(kAllLanes, sum.mean, 0);
  float variance = __shfl_sync(kAllLanes, sum.deviations, 0) / static_cast<float>(call.hidden);
  if (call.norm == Norm::kRms) variance += mean * mean;  // two squares: nothing cancels
  return {call.norm == Norm::kRms ? 0.0f : mean, 1.0f / sqrtf(variance + call.eps)};
}

// y of four neighbouring elements of r'.
__device__ __forceinline__ void store_normalised(const AffineCall& call, const Row& y, const Statistics& stats, int k,
                                                 const float (&values)[4]) {
  float weight[4], bias[4] = {}, normed[4];
  load_elements(call.weight, k, call.hidden, weight);
  if (call.norm_bias.data != nullptr) load_elements(call.norm_bias, k, call.hidden, bias);
  for (int i = 0; i < 4; ++i) {
    normed[i] = (values[i] - stats.mean) * stats.rstd * (weight[i] + call.weight_offset) + bias[i];
  }
  store_elements(y, k, call.hidden, normed);
}

// r' and y of a row of the launch from its slots, by the threads of the warps that share it: `thread` of `threads`.
// Slots come from other blocks and are read past the L1 cache.
__device__ inline void normalise_row(const AffineCall& call, int row, int thread, int threads) {
  const Moments* const moments = call.moments + static_cast<std::int64_t>(row) * call.tiles;
  const Statistics stats = statistics(call, [&](int tile) {
    const float2 pair = __ldcg(reinterpret_cast<const float2*>(moments) + tile);
    return Moments{pair.x, pair.y};
  });
  const Row edited = row_of(call.edited, call.first_row + row), y = row_of(call.y, call.first_row + row);
  const float* const slots = call.slots + static_cast<std::int64_t>(row) * call.tiles * kTileColumns;
  for (int k = 4 * thread; k < call.hidden; k += 4 * threads) {
    const float4 part = __ldcg(reinterpret_cast<const float4*>(slots + k));
    const float values[4] = {part.x, part.y, part.z, part.w};
    store_elements(edited, k, call.hidden, values);
    store_normalised(call, y, stats, k, values);
  }
}

}  // namespace incline_fast::cuda
