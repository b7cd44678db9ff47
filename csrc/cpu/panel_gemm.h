// z = x W^T for one map. W lies in panels of 16 output columns, k-major, so the inner loop broadcasts an activation and
// multiplies it with contiguous weights: no horizontal sums, unit stride. A panel is [depth][16]; in bf16 it is
// [ceil(depth / 2)][16][2], where one shift and one mask of the same load give two rows of fp32 weights.
//
// Every output column is summed over k in one fixed order: sequentially inside a chunk, then chunk by chunk; the length
// of a chunk depends on the depth alone.
// Tile shape, threads and batch only choose which columns and rows are computed together, so they never change a bit.
// (Chunks also keep fp32 error from growing with the whole length, and keep several panels' chunks in the L1 cache.)
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../affine_norm.h"
#include "float_types.h"
#include "parallel_for.h"
#include "rows.h"

namespace incline_fast::cpu {
namespace {

constexpr int kPanel = 16;
constexpr std::int64_t kChunk = 128;
// Up to this depth a chunk is half as long. Otherwise the whole sum could be one chain of 128 additions, whose rounding
// error is twice that of the shorter chains in which torch multiplies one row.
constexpr std::int64_t kShortDepth = 256;
constexpr int kMaxPanels = 4;
constexpr int kMaxTokens = 8;
// With at most so many passes over a chunk the product is limited by memory, and the panels computed side by side are
// taken far apart from each other. With more passes they are neighbours, whose columns of z share memory pages.
constexpr int kFarPasses = 2;
// How far ahead of their use weights are prefetched (measured: 2 to 3 KB; 1 and 4 KB cost 5%).
constexpr std::int64_t kPrefetchBytes = 2048;
// Bytes of activations that all panels are multiplied by before the next ones are read: they stay in an L2 cache.
constexpr std::int64_t kBlockBytes = 512 * 1024;
// Rows of activations in such a block. With more rows a block would cover less of the depth, and all of z is read and
// written once per block; with fewer, the map would be read from memory more often than the multiplications hide.
constexpr std::int64_t kGroupRows = 128;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <class V>
constexpr int kVectors = kPanel / V::kLanes;  // registers per panel row

// Tokens of the largest tile.
template <class V>
constexpr int kTileTokens = std::clamp(V::kAccumulators / kVectors<V>, 1, V::kAccumulators > 16 ? kMaxTokens : 6);

// Number of panels computed side by side: with few tokens, reading several panels at once hides the memory's latency.
template <class V, int kTokens>
constexpr int kPanelsAtOnce = std::clamp(V::kAccumulators / (kVectors<V> * kTokens), 1, kMaxPanels);

// Panels that are computed side by side, and how many panels after these the next ones begin.
struct Panels {
  std::int64_t first;
  std::int64_t spacing;
  std::int64_t step;
  std::int64_t at(int i) const { return first + i * spacing; }
};

// A matrix in scratch.
template <class T>
struct Scratch {
  T* data = nullptr;
  std::int64_t stride = 0;
  T* row(std::int64_t i) const { return data + i * stride; }
};

// Rows of a panel that share a cache line (an fp64 row takes two): they are loaded, and prefetched, together.
template <class W>
constexpr int kLineRows = std::max(1, 64 / (kPanel * static_cast<int>(sizeof(W))));

// Position of row k, column j in a panel.
template <class W>
constexpr std::int64_t panel_index(std::int64_t k, int j) {
  if constexpr (std::is_same_v<W, BFloat16>) return k / 2 * (2 * kPanel) + 2 * j + k % 2;
  return k * kPanel + j;
}

// Number of rows of a panel as stored. bf16 rows are stored in pairs: with an odd depth the last row is zeros, and the
// activation that it is multiplied by is zero padding.
template <class W>
constexpr std::int64_t stored_depth(std::int64_t depth) {
  return std::is_same_v<W, BFloat16> ? ceil_div(depth, 2) * 2 : depth;
}

// One product: `num_rows` rows x in scratch, times map `map` of `maps`, into z.
template <class T>
struct Product {
  const Maps& maps;
  std::int64_t map;
  Scratch<const T> x;
  Scratch<T> z;
  std::int64_t num_rows;
  int pieces;  // bf16 numbers into which an activation is split for a matrix unit, which takes no others; amx_gemm.h
  const BFloat16* const* states = nullptr;  // rows of bf16 to read instead of x, for a matrix unit
};

// Gives the chunks of one map's panels: where they are in a packed map, or a copy in panel layout of an unpacked one.
template <class W>
class PanelReader {
 public:
  PanelReader(const Maps& maps, std::int64_t map)
      : maps_(maps), data_(static_cast<const W*>(maps.data) + map * maps.map_stride) {}

  // Rows k_begin.. of a panel; `buffer` is used where the map is not packed.
  const W* chunk(std::int64_t panel, std::int64_t k_begin, std::int64_t depth, W* buffer) const {
    if (maps_.packed) return data_ + (panel * stored_depth<W>(maps_.depth) + k_begin) * kPanel;
    const std::int64_t columns = std::min<std::int64_t>(kPanel, maps_.columns - panel * kPanel);
    for (int j = 0; j < kPanel; ++j) {
      const W* from = data_ + (panel * kPanel + j) * maps_.column_stride + k_begin * maps_.depth_stride;
      for (std::int64_t k = 0; k < stored_depth<W>(depth); ++k)
        buffer[panel_index<W>(k, j)] = j < columns && k < depth ? from[k * maps_.depth_stride] : W{};
    }
    return buffer;
  }

 private:
  const Maps& maps_;
  const W* data_;
};

// Register v of row j of the cache line of weights at `line`.
template <class V, class W>
typename V::Register weights_at(const W* line, int j, int v) {
  if constexpr (std::is_same_v<W, BFloat16>) {
    const W* pairs = line + 2 * v * V::kLanes;
    return j == 0 ? V::load_even(pairs) : V::load_odd(pairs);
  } else {
    return V::load(line + j * kPanel + v * V::kLanes);
  }
}

// Rows of a panel's chunk as numbers of the compute type: [depth][16].
template <class V, class W>
void widen_chunk(const W* from, std::int64_t depth, typename V::Scalar* to) {
  const auto widen = [&](std::int64_t k, int j) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors<V>; ++v)
      V::store(to + (k + j) * kPanel + v * V::kLanes, weights_at<V, W>(from + k * kPanel, j, v));
  };
  std::int64_t k = 0;
  for (; k + kLineRows<W> <= depth; k += kLineRows<W>) {
#pragma GCC unroll 4
    for (int j = 0; j < kLineRows<W>; ++j) widen(k, j);
  }
  for (; k < depth; ++k) widen(k, 0);
}

// What tile() prefetches: per `interval` cache lines that it reads of each panel s, the next line from `from[s]` on.
template <int kPanels>
struct Prefetch {
  const char* from[kPanels];
  std::int64_t interval;
};

// z[m, columns of panel s] (+)= sum over k < depth of x[m, k] w[s][k, :], for kTokens rows and kPanels panels.
// A function of its own, so that its machine code can be found and examined; a call costs little beside its chunk.
template <class V, class W, int kPanels, int kTokens>
[[gnu::noinline]] void tile(const W* const (&weights)[kPanels], const typename V::Scalar* x, std::int64_t x_stride,
                            std::int64_t depth, typename V::Scalar* const (&z)[kPanels], std::int64_t z_stride,
                            bool accumulate, const Prefetch<kPanels>& next) {
  using Register = typename V::Register;
  constexpr int kVec = kVectors<V>;
  // Either the weights of all panels stay in registers while activations are loaded one by one, or the other way round,
  // whichever takes fewer registers: sums, weights and activations together do not fit.
  constexpr int kTogether = kPanels * kVec <= kTokens ? kPanels : 1;
  Register sums[kPanels][kTokens][kVec];
#pragma GCC unroll 32
  for (int i = 0; i < kPanels * kTokens * kVec; ++i)
    sums[i / (kTokens * kVec)][i / kVec % kTokens][i % kVec] = V::zero();
  const auto add_row = [&](int s, std::int64_t k, int j) __attribute__((always_inline)) {
    Register w[kTogether][kVec];
#pragma GCC unroll 16
    for (int i = 0; i < kTogether * kVec; ++i)
      w[i / kVec][i % kVec] = weights_at<V, W>(weights[s + i / kVec] + k * kPanel, j, i % kVec);
#pragma GCC unroll 8
    for (int m = 0; m < kTokens; ++m) {
      const Register activation = V::broadcast(x[m * x_stride + k + j]);
#pragma GCC unroll 16
      for (int i = 0; i < kTogether * kVec; ++i) {
        Register& sum = sums[s + i / kVec][m][i % kVec];
        sum = V::fma(activation, w[i / kVec][i % kVec], sum);
      }
    }
  };
  std::int64_t k = 0, wait = 1, ahead = 0;
  for (; k + kLineRows<W> <= depth; k += kLineRows<W>) {
    if (--wait == 0) {
#pragma GCC unroll 8
      for (int s = 0; s < kPanels; ++s) __builtin_prefetch(next.from[s] + ahead, 0, 2);
      ahead += 64;
      wait = next.interval;
    }
#pragma GCC unroll 8
    for (int s = 0; s < kPanels; s += kTogether) {
#pragma GCC unroll 4
      for (int j = 0; j < kLineRows<W>; ++j) add_row(s, k, j);
    }
  }
  for (; k < depth; ++k) {
#pragma GCC unroll 8
    for (int s = 0; s < kPanels; s += kTogether) add_row(s, k, 0);
  }
#pragma GCC unroll 32
  for (int i = 0; i < kPanels * kTokens * kVec; ++i) {
    const int s = i / (kTokens * kVec), m = i / kVec % kTokens, v = i % kVec;
    typename V::Scalar* to = z[s] + m * z_stride + v * V::kLanes;
    V::store(to, accumulate ? V::add(V::load(to), sums[s][m][v]) : sums[s][m][v]);
  }
}

// Multiplies the finished sums of a panel's columns by their scales, in rows begin .. begin + count.
template <class V, class T>
void scale_panel(const Product<T>& p, std::int64_t panel, std::int64_t begin, std::int64_t count) {
  const std::int64_t first = panel * kPanel, columns = std::min<std::int64_t>(kPanel, p.maps.columns - first);
  alignas(64) T factors[kPanel] = {};
  std::copy_n(p.maps.scale + p.map * p.maps.columns + first, columns, factors);
  for (std::int64_t i = begin; i < begin + count; ++i) {
    T* z = p.z.row(i) + first;
    for (int v = 0; v < kPanel; v += V::kLanes) V::store(z + v, V::mul(V::load(z + v), V::load(factors + v)));
  }
}

// One product, split into independent tasks: panels, and groups of rows when there are many rows.
template <class V, class W>
class PanelGemm {
 public:
  using T = typename V::Scalar;

  explicit PanelGemm(const Product<T>& p)
      : product_(p),
        reader_(p.maps, p.map),
        depth_(p.maps.depth),
        chunk_(depth_ <= kShortDepth ? kChunk / 2 : kChunk),
        panels_(ceil_div(p.maps.columns, kPanel)),
        x_(p.x),
        z_(p.z),
        rows_(p.num_rows) {}

  void run(const Threads& threads) const {
    const std::int64_t blocks = ceil_div(rows_, kTileTokens<V>);
    const std::int64_t parts = panels_ < 4 * threads.count ? std::min(blocks, threads.count) : 1;
    const std::int64_t part_rows = ceil_div(rows_, parts);
    // Memory bound with few rows, compute bound with many: an estimate of a panel's time in multiply-adds at full
    // speed.
    const std::int64_t work = depth_ * kPanel * (1 + part_rows / 8);
    parallel_for(threads, parts * panels_, work, [&](std::int64_t begin, std::int64_t end) {
      while (begin < end) {
        const std::int64_t part = begin / panels_, first = begin % panels_;
        const std::int64_t last = std::min(panels_, first + end - begin);
        const std::int64_t row = part * part_rows;
        if (row < rows_) by_blocks(first, last, row, std::min(part_rows, rows_ - row));
        begin += last - first;
      }
    });
  }

 private:
  // Panels first .. last times `count` rows from `row` on, block by block of activations that stay in a cache: the rows
  // are split into groups, and a group's depth into blocks.
  void by_blocks(std::int64_t first, std::int64_t last, std::int64_t row, std::int64_t count) const {
    const std::int64_t groups = ceil_div(count, kGroupRows);
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t begin = row + g * count / groups, size = row + (g + 1) * count / groups - begin;
      const std::int64_t chunks = kBlockBytes / (chunk_ * size * static_cast<std::int64_t>(sizeof(T)));
      const std::int64_t block = std::max<std::int64_t>(1, chunks) * chunk_;
      for (std::int64_t k = 0; k < depth_; k += block)
        by_tokens<kTileTokens<V>>(first, last, begin, size, k, std::min(k + block, depth_));
    }
  }

  // Splits rows evenly into tiles of at most kTileTokens and picks the kernel for the larger of the two sizes.
  template <int kTokens>
  void by_tokens(std::int64_t first, std::int64_t last, std::int64_t row, std::int64_t count, std::int64_t k_begin,
                 std::int64_t k_end) const {
    const std::int64_t largest = ceil_div(count, ceil_div(count, kTileTokens<V>));
    if constexpr (kTokens > 1) {
      if (largest < kTokens) return by_tokens<kTokens - 1>(first, last, row, count, k_begin, k_end);
    }
    constexpr int kParallel = kPanelsAtOnce<V, kTokens>;
    const std::int64_t run = (last - first) / kParallel;
    const bool near = count > kFarPasses * kTokens;
    for (std::int64_t i = 0; i < run; ++i) {
      const Panels panels = near ? Panels{first + i * kParallel, 1, kParallel} : Panels{first + i, run, 1};
      panel_group<kParallel, kTokens>(panels, row, count, k_begin, k_end);
    }
    for (std::int64_t p = first + run * kParallel; p < last; ++p)
      panel_group<1, kTokens>({p, 0, 1}, row, count, k_begin, k_end);
  }

  // `panels` from k_begin to k_end times all rows, chunk by chunk, so that a chunk is read from memory once, and
  // converted once where several passes use it.
  template <int kPanels, int kTokens>
  void panel_group(const Panels& panels, std::int64_t row, std::int64_t count, std::int64_t k_begin,
                   std::int64_t k_end) const {
    constexpr bool kConverts = !std::is_same_v<W, T>;
    alignas(64) W buffers[kPanels][kChunk * kPanel];
    alignas(64) T wide[kConverts ? kPanels : 1][kChunk * kPanel];
    const std::int64_t passes = ceil_div(count, kTokens);
    for (std::int64_t k = k_begin; k < k_end; k += chunk_) {
      const std::int64_t depth = stored_depth<W>(std::min(chunk_, depth_ - k));
      const W* weights[kPanels];
      const T* converted[kPanels];
      for (int s = 0; s < kPanels; ++s) {
        weights[s] = reader_.chunk(panels.at(s), k, std::min(chunk_, depth_ - k), buffers[s]);
        if constexpr (kConverts) {
          converted[s] = wide[s];
          if (passes > 1) widen_chunk<V, W>(weights[s], depth, wide[s]);
        }
      }
      const std::int64_t following =
          k + chunk_ < k_end ? depth : panels.step * stored_depth<W>(depth_) + k_begin - k;  // rows to the next chunk
      for (std::int64_t pass = 0; pass < passes; ++pass) {
        const std::int64_t begin = row + pass * count / passes, size = row + (pass + 1) * count / passes - begin;
        const Prefetch<kPanels> next = ahead(weights, depth, following, pass, passes);
        if (kConverts && passes > 1) {
          multiply<T, kPanels, kTokens>(converted, panels, begin, size, k, depth, next);
        } else {
          multiply<W, kPanels, kTokens>(weights, panels, begin, size, k, depth, next);
        }
      }
    }
    if (product_.maps.scale == nullptr || k_end < depth_) return;
    for (int s = 0; s < kPanels; ++s) scale_panel<V>(product_, panels.at(s), row, count);
  }

  // With one pass over a chunk, weights are prefetched shortly before their use; with several, each pass prefetches its
  // share of the next chunk, which begins `following` rows later.
  template <int kPanels>
  static Prefetch<kPanels> ahead(const W* const (&weights)[kPanels], std::int64_t depth, std::int64_t following,
                                 std::int64_t pass, std::int64_t passes) {
    constexpr std::int64_t kRowBytes = kPanel * static_cast<std::int64_t>(sizeof(W));
    const std::int64_t bytes = passes == 1 ? kPrefetchBytes : (following + pass * depth / passes) * kRowBytes;
    Prefetch<kPanels> next;
    for (int s = 0; s < kPanels; ++s) next.from[s] = reinterpret_cast<const char*>(weights[s]) + bytes;
    next.interval = passes == 1 ? 1 : passes * static_cast<std::int64_t>(sizeof(T) / sizeof(W));
    return next;
  }

  // Rows begin .. begin + size, kTokens or one less, times the chunk at k.
  template <class U, int kPanels, int kTokens>
  void multiply(const U* const (&weights)[kPanels], const Panels& panels, std::int64_t begin, std::int64_t size,
                std::int64_t k, std::int64_t depth, const Prefetch<kPanels>& next) const {
    if constexpr (kTokens > 1) {
      if (size < kTokens) return multiply<U, kPanels, kTokens - 1>(weights, panels, begin, size, k, depth, next);
    }
    T* z[kPanels];
    for (int s = 0; s < kPanels; ++s) z[s] = z_.row(begin) + panels.at(s) * kPanel;
    tile<V, U, kPanels, kTokens>(weights, x_.row(begin) + k, x_.stride, depth, z, z_.stride, k > 0, next);
  }

  const Product<T>& product_;
  PanelReader<W> reader_;
  std::int64_t depth_;
  std::int64_t chunk_;
  std::int64_t panels_;
  Scratch<const T> x_;
  Scratch<T> z_;
  std::int64_t rows_;
};

// The class that multiplies maps of type W with the instructions of V; amx_gemm.h specialises it for AMX.
template <class V, class W>
struct GemmOf {
  using Type = PanelGemm<V, W>;
};

}  // namespace
}  // namespace incline_fast::cpu
