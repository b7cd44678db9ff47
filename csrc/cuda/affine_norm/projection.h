// Sixteen columns of a map times the rows of a group, by one block: the warps share the steps along k in turn, and
// their sums are added in the order of the warps. What a row's sums are added up from, and in which order, depends
// neither on the other rows nor on how many there are.
#pragma once

#include "group.h"
#include "products.h"

namespace incline_fast::cuda {

// r = x (+ residual) of a group's rows.
struct StreamSource {
  const AffineCall& call;
  const Group& group;

  __device__ int count() const { return group.count; }

  template <int n>
  __device__ __forceinline__ void load(int row, int k, float (&values)[n]) const {
    load_elements(row_at(call.x, group.x[row]), k, call.hidden, values);
    if (call.residual.first.data == nullptr) return;
    float residual[n];
    load_elements(row_at(call.residual, group.residual[row]), k, call.hidden, residual);
    for (int i = 0; i < n; ++i) values[i] += residual[i];
  }

  // Without a residual, from an x of type kType: its bits.
  template <DType kType, int n>
  __device__ __forceinline__ void load_words(int row, int k, unsigned (&words)[n]) const {
    const Row x = row_at(call.x, group.x[row]);
    if (x.wide && k + 2 * n <= call.hidden) {
      cuda::load_words(x, k, words);
      return;
    }
#pragma unroll
    for (int i = 0; i < 2 * n; ++i) {
      if (k + i >= call.hidden) continue;
      words[i / 2] |= static_cast<unsigned>(narrow(load_element(x, k + i), kType)) << (16 * (i % 2));
    }
  }
};

// down r of a group's rows: the pieces of the depth, added in order. Written by other blocks of this launch, so it is
// read past the L1 cache, which does not see their stores.
struct InnerSource {
  const AffineCall& call;
  const Group& group;

  __device__ int count() const { return group.count; }

  template <int n>
  __device__ __forceinline__ void load(int row, int k, float (&values)[n]) const {
    const int pitch = inner_pitch(call.rank);
    const std::int64_t piece = static_cast<std::int64_t>(call.num_rows) * pitch;
    const float* const first = call.inner + static_cast<std::int64_t>(group.rows[row]) * pitch + k;
    for (int i = 0; i < n; ++i) values[i] = 0.0f;
    if (k >= pitch) return;
#pragma unroll 2
    for (int s = 0; s < call.splits; ++s) {
#pragma unroll
      for (int i = 0; i < n; i += 4) {
        const float4 part = __ldcg(reinterpret_cast<const float4*>(first + s * piece + i));
        values[i] += part.x, values[i + 1] += part.y, values[i + 2] += part.z, values[i + 3] += part.w;
      }
    }
  }
};

struct NoWait {
  __device__ void operator()() const {}
};

// The lane's chunks at `k` of columns column + g and column + g + 8; zeros past the map's last column and past `limit`.
template <class Product>
__device__ __forceinline__ Chunks load_chunks(const MapView& map, int index, int column, int k, int limit) {
  constexpr int size = 16 / Product::kChunk;
  Chunks chunks = {};
  for (int half = 0; half < 2; ++half) {
    const std::int64_t row = column + lane_id() / 4 + 8 * half;
    if (row >= map.columns || k >= limit) continue;
    const char* const address = map.data + ((index * map.columns + row) * map.depth + k) * size;
    if (map.wide) {
      // kChunk divides the depth and the pieces it is cut into, so that no chunk crosses the limit.
      chunks.rows[half] = load_streaming(address);
      continue;
    }
    unsigned words[4] = {};
#pragma unroll
    for (int i = 0; i < Product::kChunk; ++i) {
      if (k + i >= limit) continue;
      const unsigned bits = size == 4   ? reinterpret_cast<const unsigned*>(address)[i]
                            : size == 2 ? reinterpret_cast<const unsigned short*>(address)[i]
                                        : reinterpret_cast<const unsigned char*>(address)[i];
      words[i * size / 4] |= bits << (i * size % 4 * 8);
    }
    chunks.rows[half] = make_uint4(words[0], words[1], words[2], words[3]);
  }
  return chunks;
}

// Sums over k in [begin, end) for rows first to first + 8 row tiles - 1 of the source. Weights are requested two steps
// ahead, or one where several row tiles keep a warp busy: with two blocks of eight warps on a multiprocessor that is 32
// or 16 KB in flight, and the bandwidth of an H100 times its latency asks for 18 KB (3.35 TB/s, 132 multiprocessors,
// 0.7 us). `wait` runs after the first request and before the source is read.
template <class Product, int row_tiles, class Source, class Wait>
__device__ __forceinline__ void project(const MapView& map, int index, int column, int begin, int end,
                                        const Source& source, int first, Wait wait,
                                        typename Product::Sums (&sums)[row_tiles]) {
  constexpr int ahead = row_tiles == 1 ? Product::kAhead : 1, stride = kWarps * Product::kStep;
  const int lane_k = lane_id() % 4 * Product::kChunk;
  int k = begin + warp_id() * Product::kStep;
  Chunks next[ahead];
#pragma unroll
  for (int i = 0; i < ahead; ++i) next[i] = load_chunks<Product>(map, index, column, k + i * stride + lane_k, end);
  wait();
  while (k < end) {
    Chunks now[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i) now[i] = next[i];
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      next[i] = load_chunks<Product>(map, index, column, k + (ahead + i) * stride + lane_k, end);
    }
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      if (k + i * stride >= end) break;
      const typename Product::Columns columns = Product::columns(now[i]);
#pragma unroll
      for (int row_tile = 0; row_tile < row_tiles; ++row_tile) {
        if (first + row_tile * kTileRows < source.count()) {
          Product::step(sums[row_tile], columns, source, first + row_tile * kTileRows, k + i * stride + lane_k);
        }
      }
    }
    k += ahead * stride;
  }
}

// One row tile's sums of every warp. 20 floats from row to row: the lanes of a warp write without a bank conflict and
// read with at most two to a bank.
struct WarpSums {
  static constexpr int kPitch = 20;
  float values[kWarps][kTileRows][kPitch];
};

// Adds the warps' sums and calls finish(row, column, sum) for the 16 columns and 8 rows of every tile in use, with the
// 16 columns of a row in 16 neighbouring lanes, whether or not the row is one of the source's.
template <class Product, int row_tiles, class Finish>
__device__ __forceinline__ void combine(WarpSums& shared, const typename Product::Sums (&sums)[row_tiles], int first,
                                        int count, Finish finish) {
  const int g = lane_id() / 4, t = lane_id() % 4;
  const int row = static_cast<int>(threadIdx.x) / kTileColumns, column = static_cast<int>(threadIdx.x) % kTileColumns;
#pragma unroll
  for (int row_tile = 0; row_tile < row_tiles; ++row_tile) {
    if (first + row_tile * kTileRows >= count) break;
    float d[4];
    Product::collect(sums[row_tile], d);
    for (int i = 0; i < 4; ++i) shared.values[warp_id()][2 * t + i % 2][g + 8 * (i / 2)] = d[i];
    __syncthreads();
    if (row < kTileRows) {
      float sum = shared.values[0][row][column];
      for (int warp = 1; warp < kWarps; ++warp) sum += shared.values[warp][row][column];
      finish(first + row_tile * kTileRows + row, column, sum);
    }
    __syncthreads();
  }
}

}  // namespace incline_fast::cuda
