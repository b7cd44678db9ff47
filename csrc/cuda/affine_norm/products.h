// How 16 columns of a map meet rows of the residual stream. Lane l = 4 g + t of a warp reads 16 bytes of each of the
// rows g and g + 8 of the map (its output columns), at k = t kChunk of a step of kStep, so that four lanes read 64
// bytes in a row. These chunks serve as fragments as they are: the tensor cores do not care which k a fragment calls
// its first, as long as both operands agree.
//
// A tensor core multiplies 16-bit numbers exactly and adds in fp32. Operands that 16 bits do not hold are written as
// sums of parts that they do: a float is the sum of three bf16 numbers, an fp16 number of two; int8 fits into one.
#pragma once

#include <type_traits>

#include "../arch/memory.h"
#include "../arch/mma.h"
#include "call.h"

namespace incline_fast::cuda {

// 16 bytes of each of two rows of a map.
struct Chunks {
  uint4 rows[2];
};

__device__ __forceinline__ unsigned word_of(const uint4& words, int i) {
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

// The upper halves of two floats: bf16 by truncation, so that what is cut off is again an exact float.
__device__ __forceinline__ unsigned upper_halves(float first, float second) {
  return __byte_perm(__float_as_uint(first), __float_as_uint(second), 0x7632);
}

__device__ __forceinline__ float upper_half(float value) {
  return __uint_as_float(__float_as_uint(value) & 0xffff0000u);
}

// The next 16-bit part of every value, two neighbours to a word; the values keep what is left of them.
template <int count>
__device__ __forceinline__ void take_part(float (&values)[count], unsigned (&words)[count / 2]) {
#pragma unroll
  for (int i = 0; i < count; i += 2) {
    words[i / 2] = upper_halves(values[i], values[i + 1]);
    values[i] -= upper_half(values[i]);
    values[i + 1] -= upper_half(values[i + 1]);
  }
}

// Four int8 numbers as floats. 0x4b0000uu is 2^23 + u, and u = q + 128 after the sign bit is flipped.
__device__ __forceinline__ void widen_int8(unsigned word, float (&values)[4]) {
  const unsigned biased = word ^ 0x80808080u;
  for (unsigned i = 0; i < 4; ++i) {
    values[i] = __uint_as_float(__byte_perm(biased, 0x4b000000u, 0x7440u + i)) - 8388736.0f;
  }
}

// kExact: rows come in the map's 16-bit type (bf16 for int8 maps) and nothing is added to them.
template <DType kMap, bool kExact>
struct TensorCoreProduct {
  static constexpr int kChunk = 16 / bytes_of(kMap);
  static constexpr int kStep = 4 * kChunk;
  static constexpr int kPiece = 8;                  // elements of a row that are loaded at once
  static constexpr int kRowTiles = kExact ? 8 : 4;  // that one pass over the map serves; more would spill registers
  static constexpr bool kHalf = kMap == DType::kFloat16 && kExact;
  static constexpr int kMapParts = kMap == DType::kFloat16 && !kExact ? 2 : 1;
  // See project(): steps requested with one row tile and with several. What splits or converts leaves fewer registers.
  static constexpr bool kConverts = !kExact && kMap != DType::kBFloat16;
  static constexpr int kRequested[2] = {kConverts ? 2 : 3, kExact ? 2 : 1};

  struct Sums {
    float d[4] = {};
  };

  struct Columns {
    unsigned words[kMapParts][2][kChunk / 2];
  };

  static __device__ __forceinline__ Columns columns(const Chunks& chunks) {
    Columns columns;
    for (int row = 0; row < 2; ++row) {
      if constexpr (kMap == DType::kInt8) {
        for (int i = 0; i < 4; ++i) {
          float values[4];
          widen_int8(word_of(chunks.rows[row], i), values);
          columns.words[0][row][2 * i] = upper_halves(values[0], values[1]);
          columns.words[0][row][2 * i + 1] = upper_halves(values[2], values[3]);
        }
      } else if constexpr (kMapParts == 2) {
        float values[kChunk];
        for (int i = 0; i < kChunk; ++i) {
          const unsigned word = word_of(chunks.rows[row], i / 2);
          values[i] = widen(static_cast<unsigned short>(word >> (16 * (i % 2))), kMap);
        }
        take_part(values, columns.words[0][row]);
        take_part(values, columns.words[1][row]);
      } else {
        for (int i = 0; i < 4; ++i) columns.words[0][row][i] = word_of(chunks.rows[row], i);
      }
    }
    return columns;
  }

  // What a lane brings of one row: bits that the tensor cores take as they are, or numbers that are still to be split.
  struct Words {
    unsigned words[kPiece / 2] = {};
  };
  template <class Source>
  using Operand = std::conditional_t<kExact, Words, typename Source::template Raw<kPiece>>;

  // Row tiles whose operands are requested together, so that one trip to the L2 cache serves them all.
  static constexpr int kTogether = kExact && kMap != DType::kInt8 ? 4 : 2;

  static constexpr int kPieces = kChunk / kPiece;  // of a chunk
  static constexpr bool kSplits = !kExact;

  // The lane brings row first + g of each of `tiles` row tiles, at k; zeros past the last row.
  template <int tiles, class Source>
  static __device__ __forceinline__ void request(const Source& source, int first, int k,
                                                 Operand<Source> (&operands)[tiles]) {
    const int row = first + lane_id() / 4;
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
      if (row + tile * kTileRows >= source.count()) continue;
      if constexpr (kExact) {
        constexpr DType type = kHalf ? DType::kFloat16 : DType::kBFloat16;
        source.template load_words<type>(row + tile * kTileRows, k, operands[tile].words);
      } else {
        operands[tile] = source.template request<kPiece>(row + tile * kTileRows, k);
      }
    }
  }

  // Adds the products of a piece of the chunks and the operands that were requested for it.
  template <int tiles, class Source>
  static __device__ __forceinline__ void add(Sums* sums, const Columns& columns, int piece, const Source& source,
                                             const Operand<Source> (&operands)[tiles]) {
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
      if constexpr (kExact) {
        multiply(sums[tile], columns, piece, operands[tile].words);
      } else {
        float values[kPiece];
        source.widen_to(operands[tile], values);
#pragma unroll
        for (int part = 0; part < 3; ++part) {
          unsigned words[kPiece / 2];
          take_part(values, words);
          multiply(sums[tile], columns, piece, words);
        }
      }
    }
  }

  // Adds the products of a step for `tiles` row tiles.
  template <int tiles, class Source>
  static __device__ __forceinline__ void step(Sums* sums, const Columns& columns, const Source& source, int first,
                                              int k) {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      Operand<Source> operands[tiles];
      request(source, first, k + piece * kPiece, operands);
      add(sums, columns, piece, source, operands);
    }
  }

  static __device__ __forceinline__ void multiply(Sums& sums, const Columns& columns, int piece,
                                                  const unsigned (&words)[kPiece / 2]) {
#pragma unroll
    for (int part = 0; part < kMapParts; ++part) {
      const auto& w = columns.words[part];
#pragma unroll
      for (int i = 0; i < kPiece / 2; i += 2) {
        const int j = piece * kPiece / 2 + i;
        const unsigned a[4] = {w[0][j], w[1][j], w[0][j + 1], w[1][j + 1]}, b[2] = {words[i], words[i + 1]};
        if constexpr (kHalf) {
          mma_fp16(sums.d, a, b);
        } else {
          mma_bf16(sums.d, a, b);
        }
      }
    }
  }

  static __device__ __forceinline__ void collect(const Sums& sums, float (&d)[4]) {
    for (int i = 0; i < 4; ++i) d[i] = sums.d[i];
  }
};

// fp32 maps: every lane multiplies its chunks with all eight rows.
struct Fp32Product {
  static constexpr int kChunk = 4;
  static constexpr int kStep = 4 * kChunk;
  static constexpr int kRowTiles = 1;
  static constexpr bool kConverts = false;
  static constexpr int kRequested[2] = {3, 1};
  static constexpr int kTogether = 1;

  struct Sums {
    float rows[2][kTileRows] = {};
  };

  using Columns = Chunks;

  static __device__ __forceinline__ Columns columns(const Chunks& chunks) { return chunks; }

  template <int tiles, class Source>
  static __device__ __forceinline__ void step(Sums* sums, const Columns& columns, const Source& source, int first,
                                              int k) {
    static_assert(tiles == 1);
#pragma unroll
    for (int i = 0; i < kTileRows; ++i) {
      if (first + i >= source.count()) continue;
      float values[kChunk];
      source.widen_to(source.template request<kChunk>(first + i, k), values);
      for (int row = 0; row < 2; ++row) {
        for (int j = 0; j < kChunk; ++j) {
          const float weight = __uint_as_float(word_of(columns.rows[row], j));
          sums->rows[row][i] = __fmaf_rn(weight, values[j], sums->rows[row][i]);
        }
      }
    }
  }

  // The four lanes of a row of the map add up; each keeps the elements that a tensor core would have given it.
  static __device__ __forceinline__ void collect(const Sums& sums, float (&d)[4]) {
    const int t = lane_id() % 4;
    for (int row = 0; row < 2; ++row) {
      for (int i = 0; i < kTileRows; ++i) {
        float sum = sums.rows[row][i];
        sum += __shfl_xor_sync(kAllLanes, sum, 1);
        sum += __shfl_xor_sync(kAllLanes, sum, 2);
        if (i / 2 == t) d[2 * row + i % 2] = sum;
      }
    }
  }
};

}  // namespace incline_fast::cuda
