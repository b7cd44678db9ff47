// z = x W^T for bf16 and int8 maps on the matrix unit of AMX. A panel of 16 columns in bf16 is, 32 rows at a time, just
// what one tile of weights holds, so the maps need no other layout; int8 weights are brought into it chunk by chunk.
//
// The unit takes bf16 activations. Those that are no bf16 numbers are split into two or three that add up to them
// (8 + 8 (+ 8) bits of significand); each piece is one more row of the tile, and the pieces' sums are added at the end.
//
// The order of every column's sum is fixed, as in panel_gemm.h: the unit's own inside a chunk of kTileChunk, then chunk
// by chunk. The unit's own is documented (Intel SDM, TDPBF16PS): of the 32 products of a step it sums those of even k
// and those of odd k, each in one chain of fused multiply-adds from zero, adds the two sums, and adds that to the
// total. It rounds to nearest and takes subnormal numbers (below 1.2e-38) as zero. Vector instructions can do the same,
// bit for bit, and with few rows they do: tiles that come from memory are loaded a fifth slower than vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "panel_gemm.h"
#include "spread.h"
#include "tile_multiply.h"
#include "vec_avx512.h"

namespace incline_fast::cpu {
namespace {

template <class W>
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
  // With one tile of rows, or two rows of vectors, four far-apart streams of weights. Otherwise two: two panels meet
  // two tiles or three rows of vectors in registers, or two widened chunks fit the L1 cache.
  void multiply_panels(const TiledRows& x, std::int64_t first, std::int64_t last, std::int64_t tile,
                       std::int64_t tile_end) const {
    std::int64_t p = first;
    if (tile_end - tile == 1 && (x.suit_vectors() ? x.rows() <= 2 : kIsBFloat16)) {
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

  // Panels first, first + spacing, ...: all tiles, chunk by chunk, so that a chunk is read from memory once.
  template <int kPanels>
  void panel_group(const TiledRows& x, std::int64_t first, std::int64_t spacing, std::int64_t tile,
                   std::int64_t tile_end) const {
    alignas(64) W buffers[kPanels][kTileChunk * kPanel];
    for (std::int64_t k = 0; k < depth_; k += steps_at(k) * kTileDepth) {
      const W* weights[kPanels];
      for (int s = 0; s < kPanels; ++s) weights[s] = whole_steps(first + s * spacing, k, buffers[s]);
      if (x.suit_vectors()) {
        multiply_on_vectors<kPanels>(x, weights, first, spacing, tile, k);
      } else {
        multiply_on_tiles<kPanels>(x, weights, first, spacing, tile, tile_end, k);
      }
    }
    if (product_.maps.scale == nullptr) return;
    const std::int64_t begin = x.first_token(tile), count = x.first_token(tile_end) - begin;
    for (int s = 0; s < kPanels; ++s) scale_panel<Avx512Float>(product_, first + s * spacing, begin, count);
  }

  // Steps of the chunk at k: whole ones as long as there are any, then the rest, padded.
  std::int64_t steps_at(std::int64_t k) const {
    return std::clamp<std::int64_t>((depth_ - k) / kTileDepth, 1, kTileChunk / kTileDepth);
  }

  // The panel's rows of the chunk at k, padded with zeros if they are the rest.
  const W* whole_steps(std::int64_t panel, std::int64_t k, W* buffer) const {
    const std::int64_t padded = steps_at(k) * kTileDepth, depth = std::min(padded, depth_ - k);
    const W* rows = reader_.chunk(panel, k, depth, buffer);
    const std::int64_t size = stored_depth<W>(depth) * kPanel;
    if (depth == padded) return rows;
    if (rows != buffer) std::copy_n(rows, size, buffer);
    std::fill(buffer + size, buffer + padded * kPanel, W{});
    return buffer;
  }

  template <int kPanels>
  void multiply_on_vectors(const TiledRows& x, const W* const (&weights)[kPanels], std::int64_t first,
                           std::int64_t spacing, std::int64_t tile, std::int64_t k) const {
    TilePrefetch next[kPanels];
    for (int s = 0; s < kPanels; ++s) next[s] = {reinterpret_cast<const char*>(weights[s]) + kPrefetchBytes, 1};
    alignas(64) float sums[4][kTileRows][kPanel];
    by_rows<kPanels, kPanels == 4 ? 2 : kVectorRows>(x.rows(), weights, next, x.at(tile, k), steps_at(k), sums);
    for (int s = 0; s < kPanels; ++s) add_tokens(x, sums[s], first + s * spacing, tile, k > 0);
  }

  // multiply_rows for `rows` rows, at most kRows.
  template <int kPanels, int kRows>
  static void by_rows(int rows, const W* const (&weights)[kPanels], const TilePrefetch (&next)[kPanels],
                      const BFloat16* x, std::int64_t steps, float (&sums)[4][kTileRows][kPanel]) {
    if constexpr (kRows > 1) {
      if (rows < kRows) return by_rows<kPanels, kRows - 1>(rows, weights, next, x, steps, sums);
    }
    multiply_rows<kPanels, kRows>(weights, next, x, steps, sums);
  }

  // With one pass over a bf16 chunk, weights are asked for shortly before their use. Otherwise each pass asks for its
  // share of the next chunk, of which int8 weights have asked for the first lines while they were widened.
  template <int kPanels>
  void multiply_on_tiles(const TiledRows& x, const W* const (&weights)[kPanels], std::int64_t first,
                         std::int64_t spacing, std::int64_t tile, std::int64_t tile_end, std::int64_t k) const {
    constexpr int kTogether = kPanels == 4 ? 1 : 2;
    alignas(64) BFloat16 wide[kPanels][kIsBFloat16 ? 1 : kTileChunk * kPanel];
    const BFloat16* tiles[kPanels];
    if constexpr (kIsBFloat16) {
      std::copy_n(weights, kPanels, tiles);
    } else {
      std::copy_n(wide, kPanels, tiles);
      widen(weights, steps_at(k), wide);
    }
    const std::int64_t steps = steps_at(k), passes = ceil_div(tile_end - tile, kTogether);
    const int lines = static_cast<int>(ceil_div(kStepLines - kLinesWidening, passes));
    for (std::int64_t pass = 0; pass < passes; ++pass) {
      const bool soon = kIsBFloat16 && passes == 1;
      const std::int64_t ahead = soon ? kPrefetchBytes : steps * 64 * (kStepLines + kLinesWidening + pass * lines);
      TilePrefetch next[kPanels];
      for (int s = 0; s < kPanels; ++s) next[s] = {reinterpret_cast<const char*>(weights[s]) + ahead, lines};
      const std::int64_t at = tile + pass * kTogether;
      if (at + kTogether <= tile_end) {
        multiply<kPanels, kTogether>(x, tiles, next, first, spacing, at, k);
      } else {
        multiply<kPanels, 1>(x, tiles, next, first, spacing, at, k);
      }
    }
  }

  // int8 weights as bf16 tiles. Reading memory takes longer than widening and multiplying, so both ask for the next
  // chunk, a half each.
  template <int kPanels>
  static void widen(const W* const (&weights)[kPanels], std::int64_t steps,
                    BFloat16 (&wide)[kPanels][kTileChunk * kPanel]) {
    for (std::int64_t i = 0; i < steps; ++i) {
      for (int s = 0; s < kPanels; ++s) {
        const char* chunk = reinterpret_cast<const char*>(weights[s]);
        TilePrefetch{chunk + steps * kStepLines * 64, kLinesWidening}.step(i);
        widen_step(weights[s] + i * kTileSize, wide[s] + i * kTileSize);
      }
    }
  }

  template <int kPanels, int kTiles>
  void multiply(const TiledRows& x, const BFloat16* const (&weights)[kPanels], const TilePrefetch (&next)[kPanels],
                std::int64_t first, std::int64_t spacing, std::int64_t tile, std::int64_t k) const {
    const BFloat16* tiles[kTiles];
    for (int t = 0; t < kTiles; ++t) tiles[t] = x.at(tile + t, k);
    alignas(64) float sums[4][kTileRows][kPanel];
    asm volatile("" : : : "memory");  // what the tiles are loaded from has been written
    multiply_tiles<kPanels, kTiles>(weights, next, tiles, x.step_size(), steps_at(k), sums);
    for (int t = 0; t < kTiles; ++t) {
      for (int s = 0; s < kPanels; ++s) add_tokens(x, sums[t * 2 + s], first + s * spacing, tile + t, k > 0);
    }
  }

  // z (+)= the sums of a tile's rows.
  void add_tokens(const TiledRows& x, const float (&sums)[kTileRows][kPanel], std::int64_t panel, std::int64_t tile,
                  bool accumulate) const {
    const std::int64_t first = x.first_token(tile), count = x.first_token(tile + 1) - first;
    for (std::int64_t i = 0; i < count; ++i)
      add_pieces(&sums[i * x.pieces()], x.pieces(), product_.z.row(first + i) + panel * kPanel, accumulate);
  }

  // z (+)= the sums of one token's pieces, smallest first.
  static void add_pieces(const float (*sums)[kPanel], int pieces, float* z, bool accumulate) {
    __m512 total = _mm512_load_ps(sums[pieces - 1]);
    for (int i = pieces - 2; i >= 0; --i) total = _mm512_add_ps(total, _mm512_load_ps(sums[i]));
    _mm512_storeu_ps(z, accumulate ? _mm512_add_ps(_mm512_loadu_ps(z), total) : total);
  }

  static constexpr bool kIsBFloat16 = std::is_same_v<W, BFloat16>;
  static constexpr int kStepLines = kTileSize * sizeof(W) / 64, kLinesWidening = kIsBFloat16 ? 0 : kStepLines / 2;

  const Product<float>& product_;
  PanelReader<W> reader_;
  std::int64_t depth_;
  std::int64_t panels_;
};

template <>
struct GemmOf<AmxFloat, BFloat16> {
  using Type = TileGemm<BFloat16>;
};

template <>
struct GemmOf<AmxFloat, std::int8_t> {
  using Type = TileGemm<std::int8_t>;
};

}  // namespace
}  // namespace incline_fast::cpu
