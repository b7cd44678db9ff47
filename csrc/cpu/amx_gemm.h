// z = x W^T for bf16 and int8 maps on the matrix unit of AMX. 32 rows of a bf16 panel of 16 columns are laid out as the
// unit's tile of weights is, so bf16 maps need no other layout; int8 weights are converted to it chunk by chunk.
//
// The unit takes bf16 activations. An activation that bf16 does not hold exactly is split into two or three bf16 pieces
// that add up to it (8 + 8 (+ 8) bits of significand); each piece is a row of the tile, and at the end sums are added.
//
// Every column is summed in one fixed order, the unit's own: 32 products at a time, from the first to the last. It is
// documented (Intel SDM, TDPBF16PS): of the 32 products of a step the unit sums those of even k and those of odd k,
// each in one chain of fused multiply-adds from zero, adds the two sums, and adds that to the total. It rounds to
// nearest and takes subnormal numbers (below 1.2e-38) as zero. Vector instructions can give the same bits. They are
// used with few rows, because loading tiles from memory is a fifth slower than loading vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "amx_tiles.h"
#include "panel_gemm.h"
#include "parallel_for.h"
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
    const std::int64_t shares = panels_ < 4 * threads.count ? std::min(x.tiles(), threads.count) : 1;
    const std::int64_t parts = std::max(shares, std::min(x.tiles() / 4, x.bytes() / kPartBytes));
    // Memory bound up to some 64 rows: an estimate of a panel's time in multiply-adds at full vector speed.
    const std::int64_t work = depth_ * kPanel * (1 + x.tiles() / parts / 4);
    parallel_for(threads, parts * panels_, work, [&](std::int64_t begin, std::int64_t end) {
      const TileConfiguration configuration(x.rows());
      const FlushSubnormals flush;
      const Buffer<TileSums> sums(ceil_div(x.tiles(), parts));
      while (begin < end) {
        const std::int64_t i = begin / panels_, first = begin % panels_;
        const std::int64_t last = std::min(panels_, first + end - begin);
        multiply_panels(x, {i * x.tiles() / parts, (i + 1) * x.tiles() / parts, sums.get()}, first, last);
        begin += last - first;
      }
    });
  }

 private:
  // Tiles tile .. tile_end of activations, which every panel is multiplied by before the next part's, and the sums of
  // each pass over one group of panels.
  struct Part {
    std::int64_t tile;
    std::int64_t tile_end;
    TileSums* sums;
  };

  static bool suit_vectors(const TiledRows& x) { return x.tiles() == 1 && x.rows() <= kVectorRows; }

  // bf16 panels are read four at a time, far apart in memory: with many tiles, a tile of activations is then loaded
  // half as often as with two panels at a time. Two at a time are taken with just two tiles and with three rows on
  // vector units, because more sums would not fit the registers in one pass, and of int8 tiles, see kTileChunk.
  void multiply_panels(const TiledRows& x, const Part& part, std::int64_t first, std::int64_t last) const {
    const bool two = suit_vectors(x) ? x.rows() > 2 : !kIsBFloat16 || part.tile_end - part.tile == 2;
    if (!two) first = in_groups_of<4>(x, part, first, last);
    in_groups_of<1>(x, part, in_groups_of<2>(x, part, first, last), last);
  }

  // Multiplies panels first .. last in groups of kPanels, as many as are whole; returns the first panel that is left.
  template <int kPanels>
  std::int64_t in_groups_of(const TiledRows& x, const Part& part, std::int64_t first, std::int64_t last) const {
    const std::int64_t run = (last - first) / kPanels;
    for (std::int64_t i = 0; i < run; ++i) panel_group<kPanels>(x, part, first + i, run);
    return first + run * kPanels;
  }

  // Tiles of activations that are multiplied by kPanels panels in one pass, with all sums in tile registers.
  template <int kPanels>
  static constexpr int kTogether = kPanels == 4 ? 1 : 2;

  // Panels first, first + spacing, ... times all tiles, chunk by chunk, so that a chunk is read from memory once.
  // Packed weights that a single pass uses are one chunk, so that their sums stay in registers.
  template <int kPanels>
  void panel_group(const TiledRows& x, const Part& part, std::int64_t first, std::int64_t spacing) const {
    const bool once = suit_vectors(x) || (kIsBFloat16 && part.tile_end - part.tile <= kTogether<kPanels>);
    const std::int64_t chunk = once && product_.maps.packed ? std::max<std::int64_t>(depth_, kTileDepth) : kTileChunk;
    alignas(64) W buffers[kPanels][kTileChunk * kPanel];
    for (std::int64_t k = 0, steps = 0; k < depth_; k += steps * kTileDepth) {
      steps = std::clamp<std::int64_t>((depth_ - k) / kTileDepth, 1, chunk / kTileDepth);
      const W* weights[kPanels];
      for (int s = 0; s < kPanels; ++s) weights[s] = whole_steps(first + s * spacing, k, steps, buffers[s]);
      if (suit_vectors(x)) {
        multiply_on_vectors<kPanels>(x, part, weights, k, steps);
      } else {
        multiply_on_tiles<kPanels>(x, part, weights, k, steps);
      }
    }
    for (std::int64_t t = part.tile; t < part.tile_end; ++t) {
      const TileSums& sums = part.sums[(t - part.tile) / kTogether<kPanels>];
      const std::int64_t at = (t - part.tile) % kTogether<kPanels> * 2;
      for (int s = 0; s < kPanels; ++s) store_tokens(x, sums.of[at + s], first + s * spacing, t);
    }
  }

  // `steps` x kTileDepth rows of the panel from row k on, padded with zeros where the depth ends before them.
  const W* whole_steps(std::int64_t panel, std::int64_t k, std::int64_t steps, W* buffer) const {
    const std::int64_t padded = steps * kTileDepth, depth = std::min(padded, depth_ - k);
    const W* rows = reader_.chunk(panel, k, depth, buffer);
    const std::int64_t size = stored_depth<W>(depth) * kPanel;
    if (depth == padded) return rows;
    if (rows != buffer) std::copy_n(rows, size, buffer);
    std::fill(buffer + size, buffer + padded * kPanel, W{});
    return buffer;
  }

  template <int kPanels>
  void multiply_on_vectors(const TiledRows& x, const Part& part, const W* const (&weights)[kPanels], std::int64_t k,
                           std::int64_t steps) const {
    TilePrefetch next[kPanels];
    for (int s = 0; s < kPanels; ++s) next[s] = {reinterpret_cast<const char*>(weights[s]) + kPrefetchBytes, 1, true};
    by_rows<kPanels, kPanels == 4 ? 2 : kVectorRows>(x.rows(), weights, next, x.at(part.tile, k), steps, k > 0,
                                                     *part.sums);
  }

  // multiply_rows for `rows` rows, at most kRows.
  template <int kPanels, int kRows>
  static void by_rows(int rows, const W* const (&weights)[kPanels], const TilePrefetch (&next)[kPanels],
                      const BFloat16* x, std::int64_t steps, bool accumulate, TileSums& sums) {
    if constexpr (kRows > 1) {
      if (rows < kRows) return by_rows<kPanels, kRows - 1>(rows, weights, next, x, steps, accumulate, sums);
    }
    multiply_rows<kPanels, kRows>(weights, next, x, steps, accumulate, sums);
  }

  // With one pass over bf16 weights, they are prefetched shortly before their use. Otherwise each pass prefetches its
  // share of the next chunk; of int8 weights, widen() has prefetched the first lines of every step.
  template <int kPanels>
  void multiply_on_tiles(const TiledRows& x, const Part& part, const W* const (&weights)[kPanels], std::int64_t k,
                         std::int64_t steps) const {
    alignas(64) BFloat16 wide[kPanels][kIsBFloat16 ? 1 : kTileChunk * kPanel];
    const BFloat16* tiles[kPanels];
    if constexpr (kIsBFloat16) {
      std::copy_n(weights, kPanels, tiles);
    } else {
      std::copy_n(wide, kPanels, tiles);
      widen(weights, steps, wide);
    }
    const std::int64_t passes = ceil_div(part.tile_end - part.tile, kTogether<kPanels>);
    const int lines = static_cast<int>(ceil_div(kStepLines - kLinesWidening, passes));
    const bool once = kIsBFloat16 && passes == 1;
    for (std::int64_t pass = 0; pass < passes; ++pass) {
      const std::int64_t ahead = once ? kPrefetchBytes : steps * 64 * (kStepLines + kLinesWidening + pass * lines);
      TilePrefetch next[kPanels];
      for (int s = 0; s < kPanels; ++s) next[s] = {reinterpret_cast<const char*>(weights[s]) + ahead, lines, once};
      const std::int64_t at = part.tile + pass * kTogether<kPanels>;
      asm volatile("" : : : "memory");  // the compiler writes what the tiles are loaded from before this point
      if (at + kTogether<kPanels> <= part.tile_end) {
        multiply<kPanels, kTogether<kPanels>>(x, tiles, next, at, k, steps, part.sums[pass]);
      } else {
        multiply<kPanels, 1>(x, tiles, next, at, k, steps, part.sums[pass]);
      }
    }
  }

  // int8 weights as bf16 tiles. Reading memory takes longer than widening and multiplying, so each of these prefetches
  // half of the next chunk.
  template <int kPanels>
  static void widen(const W* const (&weights)[kPanels], std::int64_t steps,
                    BFloat16 (&wide)[kPanels][kTileChunk * kPanel]) {
    for (std::int64_t i = 0; i < steps; ++i) {
      for (int s = 0; s < kPanels; ++s) {
        const char* chunk = reinterpret_cast<const char*>(weights[s]);
        TilePrefetch{chunk + steps * kStepLines * 64, kLinesWidening, false}.step(i);
        widen_step(weights[s] + i * kTileSize, wide[s] + i * kTileSize);
      }
    }
  }

  template <int kPanels, int kTiles>
  static void multiply(const TiledRows& x, const BFloat16* const (&weights)[kPanels],
                       const TilePrefetch (&next)[kPanels], std::int64_t tile, std::int64_t k, std::int64_t steps,
                       TileSums& sums) {
    const BFloat16* tiles[kTiles];
    for (int t = 0; t < kTiles; ++t) tiles[t] = x.at(tile + t, k);
    multiply_tiles<kPanels, kTiles>(weights, next, tiles, x.step_size(), steps, k > 0, sums);
  }

  // z = the sums of a tile's rows, times the scale of their columns where the map has one.
  void store_tokens(const TiledRows& x, const float (&sums)[kTileRows][kPanel], std::int64_t panel,
                    std::int64_t tile) const {
    const Maps& maps = product_.maps;
    __m512 scale = _mm512_set1_ps(1);
    if (maps.scale != nullptr) {
      const std::int64_t columns = std::min<std::int64_t>(kPanel, maps.columns - panel * kPanel);
      const float* from = maps.scale + product_.map * maps.columns + panel * kPanel;
      scale = _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << columns) - 1), from);
    }
    const std::int64_t first = x.first_token(tile), count = x.first_token(tile + 1) - first;
    for (std::int64_t i = 0; i < count; ++i) {
      const __m512 total = add_pieces(&sums[i * x.pieces()], x.pieces());
      _mm512_storeu_ps(product_.z.row(first + i) + panel * kPanel, _mm512_mul_ps(total, scale));
    }
  }

  // The sum of one token's pieces, smallest first.
  static __m512 add_pieces(const float (*sums)[kPanel], int pieces) {
    __m512 total = _mm512_load_ps(sums[pieces - 1]);
    for (int i = pieces - 2; i >= 0; --i) total = _mm512_add_ps(total, _mm512_load_ps(sums[i]));
    return total;
  }

  // The least size of a part of the activations (and at least four tiles, because the map is read from memory once per
  // part): it stays in an L2 cache beside the weights while all panels are multiplied by it.
  static constexpr std::int64_t kPartBytes = 1024 * 1024;
  static constexpr bool kIsBFloat16 = std::is_same_v<W, BFloat16>;
  // With more rows the matrix unit is faster, although it loads more slowly.
  static constexpr int kVectorRows = kIsBFloat16 ? 3 : 2;
  static constexpr int kStepLines = kTileSize * sizeof(W) / 64, kLinesWidening = kIsBFloat16 ? 0 : kStepLines / 2;

  const Product<float>& product_;
  PanelReader<W> reader_;
  std::int64_t depth_;
  std::int64_t panels_;
};

template <>
constexpr bool kMatrixUnit<AmxFloat> = true;

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
