// Activations as tiles, and the products of one chunk: on AMX's matrix unit, or with the same bits on vector units.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "buffer.h"
#include "panel_gemm.h"
#include "parallel_for.h"
#include "vec_avx512.h"

namespace incline_fast::cpu {

// AVX-512 with a matrix unit for bf16.
struct AmxFloat : Avx512Float {};

namespace {

constexpr int kTileRows = 16;
constexpr int kTileDepth = 32;  // rows of a panel, or activations of a row, in one tile
constexpr std::int64_t kTileSize = kTileRows * kTileDepth;
// Depth of a chunk of weights that several passes use. The bf16 chunks of two panels fill a third of the L1 cache and
// stay there while activations are read through the rest.
constexpr std::int64_t kTileChunk = 256;

// Tile registers 0 to 3 hold sums, 4 and 5 activations, 6 and 7 weights; `rows` of activations and sums are in use.
class TileConfiguration {
 public:
  explicit TileConfiguration(int rows) {
    struct alignas(64) {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {};
    } configuration;
    for (int i = 0; i < 8; ++i) configuration.rows[i] = static_cast<std::uint8_t>(i < 6 ? rows : kTileRows);
    // The intrinsics do not tell the compiler which memory they read.
    asm volatile("" : : "r"(&configuration) : "memory");
    _tile_loadconfig(&configuration);
  }
  ~TileConfiguration() { _tile_release(); }
  TileConfiguration(const TileConfiguration&) = delete;
  TileConfiguration& operator=(const TileConfiguration&) = delete;
};

// The matrix unit takes subnormal numbers as zero; within this scope vector instructions do so too.
class FlushSubnormals {
 public:
  FlushSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | kFlushToZero | kDenormalsAreZero); }
  ~FlushSubnormals() { _mm_setcsr(saved_); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  static constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
  unsigned saved_;
};

// What is prefetched while a chunk is multiplied: `lines` cache lines per step, from `from` on. `once`: the chunk is
// used once, and its own weights are still being read from memory.
struct TilePrefetch {
  const char* from;
  int lines;
  bool once;

  void step(std::int64_t index) const {
    const char* address = from + index * lines * 64;
    for (int i = 0; i < lines; ++i) __builtin_prefetch(address + i * 64, 0, 2);
  }
};

// Rows k and k + 1 of a panel; load_pair takes the address of row k.
struct RowPair {
  __m512 even;
  __m512 odd;
};

inline RowPair load_pair(const BFloat16* rows) {
  const __m512i pairs = _mm512_loadu_si512(rows);
  return {Avx512Float::even(pairs), Avx512Float::odd(pairs)};
}

inline RowPair load_pair(const std::int8_t* rows) {
  return {Avx512Float::load(rows), Avx512Float::load(rows + kPanel)};
}

// int8 weights as tiles of bf16, which holds them exactly.
inline void widen_step(const std::int8_t* rows, BFloat16* tile) {
#pragma GCC unroll 4
  for (int k = 0; k < kTileDepth; k += 2) {
    const RowPair pair = load_pair(rows + k * kPanel);
    const __m512i even = _mm512_srli_epi32(_mm512_castps_si512(pair.even), 16);
    _mm512_store_si512(tile + k * kPanel, _mm512_or_si512(even, _mm512_castps_si512(pair.odd)));
  }
}

// Brings a step of bf16 weights into the L1 cache by plain loads: waiting for memory costs a tile load more.
inline void touch(const BFloat16* step) {
#pragma GCC unroll 16
  for (int row = 0; row < kTileRows; ++row) {
    std::int64_t unused;
    asm volatile("movq %1, %0" : "=r"(unused) : "m"(*reinterpret_cast<const std::int64_t*>(step + row * kTileDepth)));
  }
}

// The sums of one pass: up to two panels times two tiles, or four panels, each as its tile register holds it. Sums of
// tile t and panel s are number t * 2 + s, with four panels number s.
struct alignas(64) TileSums {
  float of[4][kTileRows][kPanel];
};

template <int kPanels, int kTiles>
void load_sums(const TileSums& sums) {
  _tile_loadd(0, sums.of[0], 64);
  if constexpr (kPanels >= 2) _tile_loadd(1, sums.of[1], 64);
  if constexpr (kPanels == 4 || kTiles == 2) _tile_loadd(2, sums.of[2], 64);
  if constexpr (kPanels * kTiles == 4) _tile_loadd(3, sums.of[3], 64);
}

template <int kPanels, int kTiles>
void store_sums(TileSums& sums) {
  _tile_stored(0, sums.of[0], 64);
  if constexpr (kPanels >= 2) _tile_stored(1, sums.of[1], 64);
  if constexpr (kPanels == 4 || kTiles == 2) _tile_stored(2, sums.of[2], 64);
  if constexpr (kPanels * kTiles == 4) _tile_stored(3, sums.of[3], 64);
}

// sums (+)= tiles of activations times panels, over `steps` of kTileDepth; the activations of neighbouring steps lie
// `x_step` apart.
template <int kPanels, int kTiles>
void multiply_tiles(const BFloat16* const (&weights)[kPanels], const TilePrefetch (&next)[kPanels],
                    const BFloat16* const (&x)[kTiles], std::int64_t x_step, std::int64_t steps, bool accumulate,
                    TileSums& sums) {
  static_assert(kPanels * kTiles <= 4 && kPanels != 3 && kTiles <= 2);
  if (accumulate) {
    load_sums<kPanels, kTiles>(sums);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (std::int64_t i = 0; i < steps; ++i) {
    if (next[0].once) {
#pragma GCC unroll 4
      for (int s = 0; s < kPanels; ++s) touch(weights[s] + std::min(i + 1, steps - 1) * kTileSize);
    }
    _tile_loadd(4, x[0] + i * x_step, 64);
    if constexpr (kTiles == 2) _tile_loadd(5, x[1] + i * x_step, 64);
    next[0].step(i);
    _tile_loadd(6, weights[0] + i * kTileSize, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kTiles == 2) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kPanels >= 2) {
      next[1].step(i);
      _tile_loadd(7, weights[1] + i * kTileSize, 64);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (kTiles == 2) _tile_dpbf16ps(3, 5, 7);
    }
    if constexpr (kPanels == 4) {
      next[2].step(i);
      _tile_loadd(6, weights[2] + i * kTileSize, 64);
      _tile_dpbf16ps(2, 4, 6);
      next[3].step(i);
      _tile_loadd(7, weights[3] + i * kTileSize, 64);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  store_sums<kPanels, kTiles>(sums);
}

// multiply_tiles for the kRows rows of one tile of activations, on the vector units; the sums of panel s are number s.
template <int kPanels, int kRows, class W>
void multiply_rows(const W* const (&weights)[kPanels], const TilePrefetch (&next)[kPanels], const BFloat16* x,
                   std::int64_t steps, bool accumulate, TileSums& sums) {
  __m512 totals[kPanels][kRows];
#pragma GCC unroll 8
  for (int j = 0; j < kPanels * kRows; ++j)
    totals[j / kRows][j % kRows] = accumulate ? _mm512_load_ps(sums.of[j / kRows][j % kRows]) : _mm512_setzero_ps();
  for (std::int64_t i = 0; i < steps; ++i) {
    __m512 even[kPanels][kRows] = {}, odd[kPanels][kRows] = {};
#pragma GCC unroll 2
    for (int k = 0; k < kTileDepth; k += 2) {
      __m512 x_even[kRows], x_odd[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        std::int32_t pair_bits;
        std::memcpy(&pair_bits, x + (i * kRows + r) * kTileDepth + k, sizeof pair_bits);
        const __m512i pair = _mm512_set1_epi32(pair_bits);
        x_even[r] = Avx512Float::even(pair);
        x_odd[r] = Avx512Float::odd(pair);
      }
#pragma GCC unroll 4
      for (int s = 0; s < kPanels; ++s) {
        const std::int64_t at = i * kTileSize + k * kPanel;
        __builtin_prefetch(next[s].from + at * static_cast<std::int64_t>(sizeof(W)), 0, 2);
        const RowPair w = load_pair(weights[s] + at);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          even[s][r] = _mm512_fmadd_ps(x_even[r], w.even, even[s][r]);
          odd[s][r] = _mm512_fmadd_ps(x_odd[r], w.odd, odd[s][r]);
        }
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < kPanels * kRows; ++j) {
      const int s = j / kRows, r = j % kRows;
      totals[s][r] = _mm512_add_ps(totals[s][r], _mm512_add_ps(even[s][r], odd[s][r]));
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < kPanels * kRows; ++j)
    _mm512_store_ps(sums.of[j / kRows][j % kRows], totals[j / kRows][j % kRows]);
}

// Activations as tiles [tile][step][row][32], the pieces of a token in neighbouring rows. Tokens are split evenly over
// as few tiles as hold them, and a tile has no more rows than it needs.
class TiledRows {
 public:
  TiledRows(const Product<float>& p, const Threads& threads)
      : pieces_(p.pieces),
        tokens_(p.num_rows),
        tiles_(ceil_div(p.num_rows, kTileRows / p.pieces)),
        steps_(ceil_div(p.maps.depth, kTileDepth)),
        buffer_(tiles_ * steps_ * step_size()) {
    parallel_for(threads, tiles_, tokens_per_tile() * p.maps.depth, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t tile = begin; tile < end; ++tile) fill(p, tile);
    });
  }

  int pieces() const { return pieces_; }
  int rows() const { return static_cast<int>(tokens_per_tile()) * pieces_; }  // in use in every tile
  std::int64_t tiles() const { return tiles_; }
  std::int64_t bytes() const { return tiles_ * steps_ * step_size() * static_cast<std::int64_t>(sizeof(BFloat16)); }
  std::int64_t first_token(std::int64_t tile) const { return tile * tokens_ / tiles_; }
  std::int64_t tokens_per_tile() const { return ceil_div(tokens_, tiles_); }
  std::int64_t step_size() const { return static_cast<std::int64_t>(rows()) * kTileDepth; }
  const BFloat16* at(std::int64_t tile, std::int64_t k) const {
    return buffer_.get() + (tile * steps_ + k / kTileDepth) * step_size();
  }

 private:
  void fill(const Product<float>& p, std::int64_t tile) {
    BFloat16* to = buffer_.get() + tile * steps_ * step_size();
    const std::int64_t first = first_token(tile), count = first_token(tile + 1) - first;
    if (count < tokens_per_tile()) std::fill_n(to, steps_ * step_size(), BFloat16{});
    for (std::int64_t i = 0; i < count; ++i) {
      if (p.states != nullptr) {
        copy_row(p.states[first + i], p.maps.depth, to + i * kTileDepth);
      } else {
        split_row(p.x.row(first + i), p.maps.depth, to + i * pieces_ * kTileDepth);
      }
    }
  }

  // A row of bf16 is padded with zeros to whole tiles.
  void copy_row(const BFloat16* x, std::int64_t depth, BFloat16* to) const {
    for (std::int64_t k = 0; k < depth; k += kTileDepth, to += step_size()) {
      const auto missing = std::max<std::int64_t>(0, k + kTileDepth - depth);
      _mm512_store_si512(to, _mm512_maskz_loadu_epi16(static_cast<__mmask32>(0xffffffffu >> missing), x + k));
    }
  }

  // x = piece + piece ..., largest first; a row is padded with zeros to whole tiles.
  void split_row(const float* x, std::int64_t depth, BFloat16* to) const {
    for (std::int64_t k = 0; k < steps_ * kTileDepth; k += Avx512Float::kLanes) {
      const auto valid = std::clamp<std::int64_t>(depth - k, 0, Avx512Float::kLanes);
      __m512 rest = _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << valid) - 1), x + k);
      BFloat16* piece = to + k / kTileDepth * step_size() + k % kTileDepth;
      for (int i = 0; i < pieces_; ++i, piece += kTileDepth) {
        Avx512Float::store(piece, rest);
        const __m512 stored = Avx512Float::load(piece);
        const __mmask16 infinite = _mm512_fpclass_ps_mask(stored, 0x18);  // its rest is zero, not infinity - infinity
        rest = _mm512_maskz_sub_ps(static_cast<__mmask16>(~infinite), rest, stored);
      }
    }
  }

  int pieces_;
  std::int64_t tokens_;
  std::int64_t tiles_;
  std::int64_t steps_;
  Buffer<BFloat16> buffer_;
};

}  // namespace
}  // namespace incline_fast::cpu
