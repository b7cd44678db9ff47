// Sixteen columns of a map times the rows of a group, by one block: the warps share the steps along k in turn, and
// their sums are added in the order of the warps. What a row's sums are added up from, and in which order, depends
// neither on the other rows nor on how many there are.
#pragma once

#include "products.h"
#include "row_edit.h"

namespace incline_fast::cuda {

// r = x (+ residual) of a group's rows.
template <class Types>
struct RowSource {
  static constexpr bool kFewRegisters = !Types::kUniform;
  const AffineCall& call;
  const Group& group;

  template <int n>
  using Raw = RawTerms<Types, n>;

  __device__ int count() const { return group.count; }

  template <int n>
  __device__ __forceinline__ Raw<n> request(int row, int k) const {
    return Raw<n>::request(call, group.x[row], group.residual[row], k);
  }

  template <int n>
  __device__ __forceinline__ void widen_to(const Raw<n>& raw, float (&values)[n]) const {
    raw.widen_to(call, values);
  }

  // Without a residual, from an x of type kType: its bits.
  template <DType kType, int n>
  __device__ __forceinline__ void load_words(int row, int k, unsigned (&words)[n]) const {
    const Row x = Types::of(row_at(call.x, group.x[row]));
    if (x.wide && k + 2 * n <= Types::limit(call)) {
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

// Pieces of down r that are requested before the first of them is waited for. With more, sm_80 spills registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kPiecesAtOnce = 2;
#else
constexpr int kPiecesAtOnce = 4;
#endif

// down r of a group's rows: the pieces of the depth, added in order. Written by other blocks of this launch, so it is
// read past the L1 cache, which does not see their stores.
struct InnerSource {
  static constexpr bool kFewRegisters = true;
  const AffineCall& call;
  const Group& group;

  template <int n>
  using Raw = AnyRows::Raw<n>;

  __device__ int count() const { return group.count; }

  template <int n>
  __device__ __forceinline__ Raw<n> request(int row, int k) const {
    Raw<n> sum;
    const int pitch = inner_pitch(call.rank);
    const std::int64_t piece = static_cast<std::int64_t>(call.num_rows) * pitch;
    const float* const first = call.inner + static_cast<std::int64_t>(group.rows[row]) * pitch + k;
    if (k >= pitch) return sum;
#pragma unroll 1
    for (int begin = 0; begin < call.splits; begin += kPiecesAtOnce) {
      float4 parts[kPiecesAtOnce][n / 4];
#pragma unroll
      for (int s = 0; s < kPiecesAtOnce; ++s) {
        if (begin + s >= call.splits) break;
        for (int i = 0; i < n / 4; ++i) {
          parts[s][i] = __ldcg(reinterpret_cast<const float4*>(first + (begin + s) * piece + 4 * i));
        }
      }
#pragma unroll
      for (int s = 0; s < kPiecesAtOnce; ++s) {
        if (begin + s >= call.splits) break;
        for (int i = 0; i < n / 4; ++i) {
          const float4& part = parts[s][i];
          float* const values = sum.values + 4 * i;
          values[0] += part.x, values[1] += part.y, values[2] += part.z, values[3] += part.w;
        }
      }
    }
    return sum;
  }

  template <int n>
  __device__ __forceinline__ void widen_to(const Raw<n>& raw, float (&values)[n]) const {
    AnyRows::widen_to(raw, values);
  }
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

// Sums over k in [begin, end) for rows first to first + 8 row tiles - 1 of the source. A warp that waits for weights
// has requested `requested` steps of 1 KB: with two blocks of eight warps on a multiprocessor 48 or 32 KB, and the
// bandwidth of an H200 times its latency under load asks for 28 KB (91% of 4.8 TB/s, 132 multiprocessors, 0.85 us).
// `wait` runs after the first request and before the source is read.
// `together` row tiles' operands are requested at once.
template <class Product, int row_tiles, int together, class Source, class Wait>
__device__ __forceinline__ void project(const MapView& map, int index, int column, int begin, int end,
                                        const Source& source, int first, Wait wait,
                                        typename Product::Sums (&sums)[row_tiles]) {
  constexpr int most = Product::kRequested[row_tiles > 1];
  constexpr int few = Product::kConverts ? 1 : 2;
  constexpr int requested = Source::kFewRegisters && most > few ? few : most;
  constexpr int stride = kWarps * Product::kStep;
  static_assert(row_tiles % together == 0);
  const int lane_k = lane_id() % 4 * Product::kChunk;
  int k = begin + warp_id() * Product::kStep;
  Chunks ring[requested];
#pragma unroll
  for (int i = 0; i < requested; ++i) ring[i] = load_chunks<Product>(map, index, column, k + i * stride + lane_k, end);
  wait();
  while (k < end) {
#pragma unroll
    for (int i = 0; i < requested; ++i) {
      if (k >= end) break;
      const typename Product::Columns columns = Product::columns(ring[i]);
      ring[i] = load_chunks<Product>(map, index, column, k + requested * stride + lane_k, end);
#pragma unroll
      for (int row_tile = 0; row_tile < row_tiles; row_tile += together) {
        const int row = first + row_tile * kTileRows;
        if (row < source.count()) Product::template step<together>(sums + row_tile, columns, source, row, k + lane_k);
      }
      k += stride;
    }
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
