// The op for one instruction set, written once over the vector traits. Three phases: rows to compute type, matrix
// products map by map, then each row is edited, rounded, stored, and normalised from what was stored.
//
// Each isa_*.cpp includes this file after choosing its target, so everything here has internal linkage.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "../affine_norm.h"
#include "buffer.h"
#include "norm.h"
#include "panel_gemm.h"
#include "rows.h"
#include "spread.h"

namespace incline_fast::cpu {
namespace {

// A row's stride in scratch: whole panels, plus one cache line so that rows do not collide in the cache's sets.
constexpr std::int64_t row_stride(std::int64_t size) { return ceil_div(size, kPanel) * kPanel + kPanel; }

// Rows in the order of their maps: those of map g are order[begin[g]] .. order[begin[g + 1]]; the rows without a map
// come last.
struct Grouping {
  std::vector<std::int64_t> order;
  std::vector<std::int64_t> begin;

  explicit Grouping(const AffineNorm& op) : order(op.num_rows), begin(op.num_maps + 1, 0) {
    const auto map_of = [&](std::int64_t i) -> std::int64_t {
      if (op.row_map == nullptr) return 0;
      const std::int64_t map = op.row_map[i * op.row_map_stride];
      return map < 0 ? op.num_maps : map;
    };
    std::iota(order.begin(), order.end(), 0);
    if (op.row_map != nullptr) {
      std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return map_of(a) < map_of(b); });
    }
    for (std::int64_t i = 0; i < op.num_rows; ++i) {
      if (map_of(i) < op.num_maps) ++begin[map_of(i) + 1];
    }
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
  }
};

template <class V>
class AffineNormKernel {
 public:
  using T = typename V::Scalar;

  AffineNormKernel(const AffineNorm& op, const Threads& threads)
      : op_(op),
        threads_(threads),
        groups_(op),
        size_(op.hidden_size),
        padded_(ceil_div(op.hidden_size, kPanel) * kPanel),
        stride_(row_stride(op.hidden_size)),
        buffer_((2 * op.num_rows + 3) * stride_),
        r_{buffer_.get(), stride_},
        z_{r_.row(op.num_rows), stride_},
        weight_(z_.row(op.num_rows)),
        norm_bias_(op.norm_bias.data == nullptr ? nullptr : weight_ + stride_),
        bias_(op.bias.data == nullptr ? nullptr : weight_ + 2 * stride_) {}

  void run() {
    load_vectors();
    spread(threads_, op_.num_rows, size_, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) load_residual_stream(i);
    });
    // All rows are in scratch from here on, so outputs may overwrite inputs.
    for (std::int64_t g = 0; g < op_.num_maps; ++g) {
      const std::int64_t begin = groups_.begin[g], end = groups_.begin[g + 1];
      if (begin == end) continue;
      project(g, begin, end - begin);
      if (bias_ != nullptr) load_row<V>(op_.bias, op_.bias.ndim == 1 ? 0 : g, size_, padded_, bias_);
      finish(begin, end, true);
    }
    finish(groups_.begin[op_.num_maps], op_.num_rows, false);
  }

 private:
  void load_vectors() {
    load_row<V>(op_.weight, 0, size_, padded_, weight_);
    const auto offset = V::broadcast(static_cast<T>(op_.weight_offset));
    for (std::int64_t i = 0; i < padded_; i += V::kLanes) V::store(weight_ + i, V::add(V::load(weight_ + i), offset));
    if (norm_bias_ != nullptr) load_row<V>(op_.norm_bias, 0, size_, padded_, norm_bias_);
  }

  void load_residual_stream(std::int64_t i) {
    const std::int64_t token = groups_.order[i];
    T* r = r_.row(i);
    load_row<V>(op_.x, token, size_, padded_, r);
    if (op_.residual.data == nullptr) return;
    T* residual = z_.row(i);
    load_row<V>(op_.residual, token, size_, padded_, residual);
    for (std::int64_t j = 0; j < padded_; j += V::kLanes)
      V::store(r + j, V::add(V::load(r + j), V::load(residual + j)));
  }

  // z = up (down r) for consecutive rows of scratch that share map g.
  void project(std::int64_t g, std::int64_t begin, std::int64_t count) {
    const Scratch<const T> r{r_.row(begin), stride_};
    const Scratch<T> z{z_.row(begin), stride_};
    if (op_.down.data == nullptr) return gemm(op_.up, g, r, z, count);
    const std::int64_t stride = row_stride(op_.down.columns);
    const Buffer<T> buffer(count * stride);
    gemm(op_.down, g, r, Scratch<T>{buffer.get(), stride}, count);
    gemm(op_.up, g, Scratch<const T>{buffer.get(), stride}, z, count);
  }

  void gemm(const Maps& maps, std::int64_t g, Scratch<const T> x, Scratch<T> z, std::int64_t count) {
    with_storage_type(maps.dtype, [&](auto* type) {
      using W = std::remove_pointer_t<decltype(type)>;
      // fp64 maps go with fp64 sums and only with them; the caller has checked it.
      if constexpr (std::is_same_v<W, double> == std::is_same_v<T, double>) {
        PanelGemm<V, W>(maps, g, x, z, count).run(threads_);
      }
    });
  }

  void finish(std::int64_t begin, std::int64_t end, bool edit) {
    spread(threads_, end - begin, 4 * size_, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = begin + first; i < begin + last; ++i) finish_row(i, edit);
    });
  }

  void finish_row(std::int64_t i, bool edit) {
    const std::int64_t token = groups_.order[i];
    T *edited = r_.row(i), *y = z_.row(i);
    if (edit) {
      const auto alpha = static_cast<T>(op_.alpha * factor(op_.row_alpha, token));
      const auto beta = static_cast<T>(op_.beta * factor(op_.row_beta, token));
      combine<V>(y, edited, bias_, alpha, beta, padded_);
      std::swap(edited, y);
    }
    store_row<V>(edited, size_, op_.edited, token);
    load_row<V>(op_.edited, token, size_, padded_, edited);  // the norm reads the rounded value
    const T centre = op_.norm == Norm::kLayer ? mean<V>(edited, size_) : T(0);
    const T rstd = T(1) / std::sqrt(mean_square<V>(edited, size_, centre) + static_cast<T>(op_.eps));
    scale<V>(y, edited, centre, rstd, weight_, norm_bias_, padded_);
    store_row<V>(y, size_, op_.y, token);
  }

  const AffineNorm& op_;
  const Threads& threads_;
  Grouping groups_;
  std::int64_t size_;
  std::int64_t padded_;
  std::int64_t stride_;
  Buffer<T> buffer_;
  Scratch<T> r_;
  Scratch<T> z_;
  T* weight_;
  T* norm_bias_;
  T* bias_;
};

// `Single` and `Double` are the vector traits of one instruction set.
template <class Single, class Double>
void run_affine_norm(const AffineNorm& op, const Threads& threads) {
  const DType stream = op.residual.data == nullptr ? op.x.dtype : op.residual.dtype;
  if (op.x.dtype == DType::kFloat64 || stream == DType::kFloat64) {
    AffineNormKernel<Double>(op, threads).run();
  } else {
    AffineNormKernel<Single>(op, threads).run();
  }
}

}  // namespace
}  // namespace incline_fast::cpu
