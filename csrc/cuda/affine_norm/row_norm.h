// The statistics of a row from its tiles' moments, and the norm. A row is always normalised by one whole block, so that
// its sums have one order whatever kernel does it and however many rows there are.
#pragma once

#include "row_edit.h"

namespace incline_fast::cuda {

// The moments of a tile from four neighbouring elements in each of four neighbouring lanes: the same tree of sums as in
// store_tile().
__device__ __forceinline__ float sum_of_4x4(const float (&values)[4]) {
  float sum = (values[0] + values[1]) + (values[2] + values[3]);
  for (int step = 1; step < 4; step *= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  return sum;
}

__device__ __forceinline__ Moments moments_of_4x4(const AffineCall& call, int tile, int k, const float (&values)[4]) {
  const float mean = sum_of_4x4(values) * inverse_columns(call, tile);
  float squares[4];
  for (int i = 0; i < 4; ++i) squares[i] = k + i < call.hidden ? (values[i] - mean) * (values[i] - mean) : 0.0f;
  return {mean, sum_of_4x4(squares)};
}

// Sum of one number per lane, the same for all of them: a tree.
__device__ __forceinline__ float sum_of_warp(float value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// Sum of one number per thread, the same for all of them: within each warp, then warp after warp. `sums` must not be in
// use any more.
__device__ __forceinline__ float sum_of_block(float value, float (&sums)[kWarps]) {
  value = sum_of_warp(value);
  if (lane_id() == 0) sums[warp_id()] = value;
  __syncthreads();
  float sum = sums[0];
  for (int warp = 1; warp < kWarps; ++warp) sum += sums[warp];
  return sum;
}

struct Statistics {
  float mean, rstd;
};

constexpr int kHeldTiles = 2;  // a thread's tiles whose moments it requests at once: rows of up to 8192 elements

// Statistics of a row. `first` gives the mean of its first tile; `sum_over_tiles(i, term)` adds up term(moments of a
// tile, its columns), for i = 0 and then 1. First the mean, then the squares about it, so that no sum waits for a
// division as with Chan's updating formulae. The mean is taken relative to that of the first tile, and the squares
// within a tile relative to its own, so that nothing cancels: about any centre c
//
//   sum (r - c)^2 = sum over tiles of deviations + columns (mean - c)^2
//
// and the RMS norm's c is 0, for which the mean is not needed.
template <class First, class Sum>
__device__ __forceinline__ Statistics statistics_by(const AffineCall& call, First first, Sum sum_over_tiles) {
  float mean = 0.0f;
  if (call.norm == Norm::kLayer) {
    const float about = first();
    mean = about + call.inverse_hidden * sum_over_tiles(0, [&](const Moments& moments, float columns) {
                     return columns * (moments.mean - about);
                   });
  }
  const float squares = sum_over_tiles(1, [&](const Moments& moments, float columns) {
    const float gap = moments.mean - mean;
    return moments.deviations + columns * (gap * gap);
  });
  return {mean, 1.0f / sqrtf(squares * call.inverse_hidden + call.eps)};
}

// The same by all threads of a block; `moments_of(tile)` gives a tile's moments.
template <class MomentsOf>
__device__ __forceinline__ Statistics statistics(const AffineCall& call, MomentsOf moments_of) {
  __shared__ float sums[2][kWarps];
  const int thread = static_cast<int>(threadIdx.x);
  Moments held[kHeldTiles] = {};
#pragma unroll
  for (int i = 0; i < kHeldTiles; ++i) {
    if (thread + i * kThreads < call.tiles) held[i] = moments_of(thread + i * kThreads);
  }
  const auto sum_over_tiles = [&](int which, auto term) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kHeldTiles; ++i) {
      const int tile = thread + i * kThreads;
      if (tile < call.tiles) sum += term(held[i], static_cast<float>(columns_of(call, tile)));
    }
#pragma unroll 1
    for (int tile = thread + kHeldTiles * kThreads; tile < call.tiles; tile += kThreads) {
      sum += term(moments_of(tile), static_cast<float>(columns_of(call, tile)));
    }
    return sum_of_block(sum, sums[which]);
  };
  return statistics_by(call, [&] { return moments_of(0).mean; }, sum_over_tiles);
}

// The same by one warp, of at most kHeldTiles * kThreads tiles, with the block's sums in the block's order.
template <class MomentsOf>
__device__ __forceinline__ Statistics statistics_of_warp(const AffineCall& call, MomentsOf moments_of) {
  const auto tile_of = [](int warp, int i) { return warp * 32 + lane_id() + i * kThreads; };
  // Everything is loaded at once, and the eight trees grow side by side.
  Moments held[kWarps][kHeldTiles];
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) {
#pragma unroll
    for (int i = 0; i < kHeldTiles; ++i) held[warp][i] = moments_of(min(tile_of(warp, i), call.tiles - 1));
  }
  const auto sum_over_tiles = [&](int, auto term) {
    float sums[kWarps] = {};
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
#pragma unroll
      for (int i = 0; i < kHeldTiles; ++i) {
        const int tile = tile_of(warp, i);
        const float more = sums[warp] + term(held[warp][i], static_cast<float>(columns_of(call, tile)));
        sums[warp] = tile < call.tiles ? more : sums[warp];
      }
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
#pragma unroll
      for (float& sum : sums) sum += __shfl_xor_sync(kAllLanes, sum, step);
    }
    float sum = sums[0];
    for (int warp = 1; warp < kWarps; ++warp) sum += sums[warp];
    return sum;
  };
  return statistics_by(call, [&] { return moments_of(0).mean; }, sum_over_tiles);
}

// y of an element of r'.
__device__ __forceinline__ float normed(const AffineCall& call, const Statistics& stats, float edited, float scale,
                                        float shift) {
  return (edited - stats.mean) * stats.rstd * (scale + call.weight_offset) + shift;
}

// What makes y of `count` neighbouring elements of r'.
template <class Types, int count>
struct Vectors {
  typename Types::template Raw<count> weight, bias;

  static __device__ __forceinline__ Vectors request(const AffineCall& call, int k) {
    Vectors vectors;
    vectors.weight = Types::template request<count>(call, Types::of(call.weight), k);
    if (call.norm_bias.data != nullptr) {
      vectors.bias = Types::template request<count>(call, Types::of(call.norm_bias), k);
    }
    return vectors;
  }

  __device__ __forceinline__ void store_normed(const AffineCall& call, const Row& y, const Statistics& stats, int k,
                                               const float (&edited)[count]) const {
    float scale[count], shift[count], values[count];
    Types::widen_to(weight, scale);
    Types::widen_to(bias, shift);
    for (int i = 0; i < count; ++i) values[i] = normed(call, stats, edited[i], scale[i], shift[i]);
    if constexpr (count == 1) {
      store_element(y, k, values[0]);
    } else {
      store_elements(y, k, Types::limit(call), values);
    }
  }
};

// r' and y of a row of the launch from its slots, by a whole block. Slots and moments come from other blocks and are
// read past the L1 cache. All that a thread needs of kQuads x 1024 elements is requested before anything is waited for;
// between two of its elements there is no store that a load would have to wait for.
template <class Types>
__device__ __forceinline__ void normalise_row(const AffineCall& call, int row) {
  const std::int64_t whole = call.first_row + row;
  const Moments* const moments = call.moments + static_cast<std::int64_t>(row) * call.tiles;
  const float* const slots = call.slots + static_cast<std::int64_t>(row) * call.tiles * kTileColumns;
  const Row edited = Types::of(row_at(call.edited, Types::offset(call.edited, whole)));
  const Row y = Types::of(row_at(call.y, Types::offset(call.y, whole)));
  constexpr int stride = 4 * kThreads;
  Statistics stats;
#pragma unroll 1
  for (int begin = 0; begin < call.hidden; begin += Types::kQuads * stride) {
    const int first = begin + 4 * static_cast<int>(threadIdx.x);
    float4 slot[Types::kQuads];
    Vectors<Types, 4> vectors[Types::kQuads];
#pragma unroll
    for (int i = 0; i < Types::kQuads; ++i) {
      const int k = first + i * stride;
      if (k >= call.hidden) continue;
      slot[i] = __ldcg(reinterpret_cast<const float4*>(slots + k));
      vectors[i] = Vectors<Types, 4>::request(call, k);
    }
    if (begin == 0) {
      stats = statistics(call, [&](int tile) {
        const float2 pair = __ldcg(reinterpret_cast<const float2*>(moments) + tile);
        return Moments{pair.x, pair.y};
      });
    }
#pragma unroll
    for (int i = 0; i < Types::kQuads; ++i) {
      const int k = first + i * stride;
      if (k >= call.hidden) continue;
      const float values[4] = {slot[i].x, slot[i].y, slot[i].z, slot[i].w};
      store_elements(edited, k, Types::limit(call), values);
      vectors[i].store_normed(call, y, stats, k, values);
    }
  }
}

}  // namespace incline_fast::cuda
