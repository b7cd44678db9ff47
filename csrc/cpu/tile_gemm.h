// z = x W^T for bf16 maps on the matrix unit of AMX. A panel of 16 columns is, 32 rows at a time, just what one tile of
// weights holds, so the maps need no other layout.
//
// The unit takes bf16 activations. Those that are no bf16 numbers are split into two or three that add up to them
// (8 + 8 (+ 8) bits of significand); each piece is one more row of the tile, and the pieces' sums are added at the end.
//
// The order of every column's sum is fixed, as in panel_gemm.h: the unit's own inside a chunk of kChunk, then chunk by
// chunk. The unit's own is documented (Intel SDM, TDPBF16PS): of the 32 products of a step it sums those of even k and
// those of odd k, each in one chain of fused multiply-adds from zero, adds the two sums, and adds that to the total. It
// rounds to nearest and takes subnormal numbers (below 1.2e-38) as zero. Vector instructions can do the same, bit for
// bit, and with few rows they do: tiles that come from memory are loaded a fifth slower than vectors.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "buffer.h"
#include "panel_gemm.h"
#include "spread.h"
#include "vec_avx512.h"

namespace incline_fast::cpu {

// AVX-512 with a matrix unit for bf16.
struct AmxFloat : Avx512Float {};

namespace {

constexpr int kTileRows = 16;
constexpr int kTileDepth = 32;  // rows of a panel, or activations of a row, in one tile
constexpr std::int64_t kTileSize = kTileRows * kTileDepth;
constexpr int kVectorRows = 4;  // up to so many rows the vector units multiply faster than memory delivers

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

// What is asked of memory while a chunk is multiplied: `lines` cache lines per step, from `from` on.
struct Prefetch {
  const BFloat16* from;
  int lines;

  void step(std::int64_t index) const {
    const auto* address = reinterpret_cast<const char*>(from) + index * lines * 64;
    for (int i = 0; i < lines; ++i) __builtin_prefetch(address + i * 64, 0, 2);
  }
};

// sums[tile * 2 + panel], or sums[panel] of four panels, = tiles of activations times panels, over `steps` of
// kTileDepth; the activations of neighbouring steps lie `x_step` apart.
template <int kPanels, int kTiles>
void multiply_tiles(const BFloat16* const (&weights)[kPanels], const Prefetch (&next)[kPanels],
                    const BFloat16* const (&x)[kTiles], std::int64_t x_step, std::int64_t steps,
                    float (&sums)[4][kTileRows][kPanel]) {
  static_assert(kPanels * kTiles <= 4 && kPanels != 3 && kTiles <= 2);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (std::int64_t i = 0; i < steps; ++i) {
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
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
}

// multiply_tiles for the first kRows rows of one tile of activations, on the vector units.
template <int kPanels, int kRows>
void multiply_rows(const BFloat16* const (&weights)[kPanels], const Prefetch (&next)[kPanels], const BFloat16* x,
                   std::int64_t steps, float (&sums)[4][kTileRows][kPanel]) {
  __m512 totals[kPanels][kRows] = {};
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
        const std::int64_t line = i * kTileSize + k * kPanel;
        __builtin_prefetch(next[s].from + line, 0, 2);
        const __m512i pairs = _mm512_loadu_si512(weights[s] + line);
        const __m512 w_even = Avx512Float::even(pairs), w_odd = Avx512Float::odd(pairs);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          even[s][r] = _mm512_fmadd_ps(x_even[r], w_even, even[s][r]);
          odd[s][r] = _mm512_fmadd_ps(x_odd[r], w_odd, odd[s][r]);
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
  for (int j = 0; j < kPanels * kRows; ++j) _mm512_store_ps(sums[j / kRows][j % kRows], totals[j / kRows][j % kRows]);
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
    spread(threads, tiles_, tokens_per_tile() * p.maps.depth, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t tile = begin; tile < end; ++tile) fill(p, tile);
    });
  }

  int pieces() const { return pieces_; }
  int rows() const { return static_cast<int>(tokens_per_tile()) * pieces_; }  // in use in every tile
  bool suit_vectors() const { return tiles_ == 1 && rows() <= kVectorRows; }
  std::int64_t tiles() const { return tiles_; }
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
    for (std::int64_t i = 0; i < count; ++i) split_row(p.x.row(first + i), p.maps.depth, to + i * pieces_ * kTileDepth);
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
        const __mmask16 infinite = _mm512_fpclass_ps_mask(stored, 0x18);  // nothing remains of infinity
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

class TileGemm {
 public:
  explicit TileGemm(const Product<float>& product)
      : product_(product),
        reader_(product.maps, product.map),
        depth_(product.maps.depth),
        panels_(ceil_div(product.maps.columns, kPanel)) {}

  void run(const Threads& threads) const {
    const TiledRows x(product_, threads);
    const std::int64_t parts = panels_ < 4 * threads.count ? std::min(x.tiles(), threads.count) : 1;
    // Memory bound up to some 64 rows: an estimate of a panel's time in multiply-adds at full vector speed.
    const std::int64_t work = depth_ * kPanel * (1 + x.tiles() / parts / 4);
    spread(threads, parts * panels_, work, [&](std::int64_t begin, std::int64_t end) {
      const TileConfiguration configuration(x.rows());
      const FlushSubnormals flush;
      while (begin < end) {
        const std::int64_t part = begin / panels_, first = begin % panels_;
        const std::int64_t last = std::min(panels_, first + end - begin);
        multiply_panels(x, first, last, part * x.tiles() / parts, (part + 1) * x.tiles() / parts);
        begin += last - first;
      }
    });
  }

 private:
  // With one tile of rows, four far-apart streams of weights; with more, two panels meet two tiles in registers, or
  // three or four rows of vectors.
  void multiply_panels(const TiledRows& x, std::int64_t first, std::int64_t last, std::int64_t tile,
                       std::int64_t tile_end) const {
    std::int64_t p = first;
    if (tile_end - tile == 1 && !(x.suit_vectors() && x.rows() > 2)) {
      p = streams<4>(x, p, last, tile, tile_end);
    } else {
      p = streams<2>(x, p, last, tile, tile_end);
    }
    streams<1>(x, p, last, tile, tile_end);
  }

  // As many of the panels first .. last as divide into kPanels streams; returns where it stopped.
  template <int kPanels>
  std::int64_t streams(const TiledRows& x, std::int64_t first, std::int64_t last, std::int64_t tile,
                       std::int64_t tile_end) const {
    const std::int64_t run = (last - first) / kPanels;
    for (std::int64_t i = 0; i < run; ++i) panel_group<kPanels>(x, first + i, run, tile, tile_end);
    return first + run * kPanels;
  }

  // Panels first, first + spacing, ...: all tiles, chunk by chunk, so that a chunk is read from memory once. With one
  // pass over the chunk, weights are asked for shortly before their use; with several, each pass asks for its share of
  // the next chunk.
  template <int kPanels>
  void panel_group(const TiledRows& x, std::int64_t first, std::int64_t spacing, std::int64_t tile,
                   std::int64_t tile_end) const {
    constexpr int kTogether = kPanels == 4 ? 1 : 2;
    alignas(64) BFloat16 buffers[kPanels][kChunk * kPanel];
    const std::int64_t passes = ceil_div(tile_end - tile, kTogether);
    for (std::int64_t k = 0; k < depth_; k += kChunk) {
      const std::int64_t depth = std::min(kChunk, depth_ - k);
      const BFloat16* weights[kPanels];
      for (int s = 0; s < kPanels; ++s) weights[s] = whole_steps(first + s * spacing, k, depth, buffers[s]);
      const std::int64_t steps = ceil_div(depth, kTileDepth);
      for (std::int64_t pass = 0; pass < passes; ++pass) {
        Prefetch next[kPanels];
        for (int s = 0; s < kPanels; ++s) {
          const int lines = static_cast<int>(ceil_div(kTileRows, passes));
          const std::int64_t ahead = passes == 1 ? kPrefetchBytes : steps * (kTileRows + pass * lines) * 64;
          next[s] = {weights[s] + ahead / static_cast<std::int64_t>(sizeof(BFloat16)), lines};
        }
        const std::int64_t at = tile + pass * kTogether;
        if (at + kTogether <= tile_end) {
          multiply<kPanels, kTogether>(x, weights, next, first, spacing, at, k);
        } else {
          multiply<kPanels, 1>(x, weights, next, first, spacing, at, k);
        }
      }
    }
  }

  // The panel's rows k .. k + depth, padded with zeros where the last tile is not full.
  const BFloat16* whole_steps(std::int64_t panel, std::int64_t k, std::int64_t depth, BFloat16* buffer) const {
    const BFloat16* rows = reader_.chunk(panel, k, depth, buffer);
    const std::int64_t size = stored_depth<BFloat16>(depth) * kPanel;
    const std::int64_t padded = ceil_div(depth, kTileDepth) * kTileSize;
    if (size == padded) return rows;
    if (rows != buffer) std::copy_n(rows, size, buffer);
    std::fill(buffer + size, buffer + padded, BFloat16{});
    return buffer;
  }

  template <int kPanels, int kTiles>
  void multiply(const TiledRows& x, const BFloat16* const (&weights)[kPanels], const Prefetch (&next)[kPanels],
                std::int64_t first, std::int64_t spacing, std::int64_t tile, std::int64_t k) const {
    const BFloat16* tiles[kTiles];
    for (int t = 0; t < kTiles; ++t) tiles[t] = x.at(tile + t, k);
    alignas(64) float sums[4][kTileRows][kPanel];
    asm volatile("" : : : "memory");  // what the tiles are loaded from has been written
    const std::int64_t steps = ceil_div(std::min(kChunk, depth_ - k), kTileDepth);
    if (x.suit_vectors()) {
      by_rows<kPanels, kPanels == 4 ? 2 : kVectorRows>(x.rows(), weights, next, tiles[0], steps, sums);
    } else {
      multiply_tiles<kPanels, kTiles>(weights, next, tiles, x.step_size(), steps, sums);
    }
    for (int t = 0; t < kTiles; ++t) {
      const std::int64_t token = x.first_token(tile + t), count = x.first_token(tile + t + 1) - token;
      for (int s = 0; s < kPanels; ++s) {
        for (std::int64_t i = 0; i < count; ++i) {
          float* z = product_.z.row(token + i) + (first + s * spacing) * kPanel;
          add_pieces(&sums[t * 2 + s][i * x.pieces()], x.pieces(), z, k > 0);
        }
      }
    }
  }

  // multiply_rows for `rows` rows, at most kRows.
  template <int kPanels, int kRows>
  static void by_rows(int rows, const BFloat16* const (&weights)[kPanels], const Prefetch (&next)[kPanels],
                      const BFloat16* x, std::int64_t steps, float (&sums)[4][kTileRows][kPanel]) {
    if constexpr (kRows > 1) {
      if (rows < kRows) return by_rows<kPanels, kRows - 1>(rows, weights, next, x, steps, sums);
    }
    multiply_rows<kPanels, kRows>(weights, next, x, steps, sums);
  }

  // z (+)= the sums of one token's pieces, smallest first.
  static void add_pieces(const float (*sums)[kPanel], int pieces, float* z, bool accumulate) {
    __m512 total = _mm512_load_ps(sums[pieces - 1]);
    for (int i = pieces - 2; i >= 0; --i) total = _mm512_add_ps(total, _mm512_load_ps(sums[i]));
    _mm512_storeu_ps(z, accumulate ? _mm512_add_ps(_mm512_loadu_ps(z), total) : total);
  }

  const Product<float>& product_;
  PanelReader<BFloat16> reader_;
  std::int64_t depth_;
  std::int64_t panels_;
};

template <>
struct GemmOf<AmxFloat, BFloat16> {
  using Type = TileGemm;
};

}  // namespace
}  // namespace incline_fast::cpu
