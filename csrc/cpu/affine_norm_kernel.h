// The op for one instruction set, written once over the vector traits. Block by block of rows that share a map: rows to
// compute type, matrix products, then each row is edited, rounded, stored, and normalised from what was stored.
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
#include "parallel_for.h"
#include "rows.h"

namespace incline_fast::cpu {
namespace {

// A row's stride in scratch: whole panels, plus one cache line so that rows do not collide in the cache's sets.
constexpr std::int64_t row_stride(std::int64_t size) { return ceil_div(size, kPanel) * kPanel + kPanel; }

// Rows in the order of their maps: those of map g are order[begin[g]] .. order[begin[g + 1]]. Rows without a map come
// last; where they are not even normalised, they are left out.
struct Grouping {
  std::vector<std::int64_t> order;
  std::vector<std::int64_t> begin;

  explicit Grouping(const AffineNorm& op) : begin(op.num_maps + 2, 0) {
    const auto group_of = [&](std::int64_t i) -> std::int64_t {
      if (op.row_map == nullptr) return 0;
      const std::int64_t map = op.row_map[i * op.row_map_stride];
      return map < 0 ? op.num_maps : map;
    };
    for (std::int64_t i = 0; i < op.num_rows; ++i) ++begin[group_of(i) + 1];
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    order.resize(op.norm == Norm::kNone ? begin[op.num_maps] : op.num_rows);
    std::vector<std::int64_t> next(begin);
    for (std::int64_t i = 0; i < op.num_rows; ++i) {
      const std::int64_t place = next[group_of(i)]++;
      if (place < size()) order[place] = i;
    }
  }

  std::int64_t size() const { return static_cast<std::int64_t>(order.size()); }
};

// Bounds the scratch memory; enough rows to make reading the map once more per block cheap beside the products.
constexpr std::int64_t kBlockRows = 512;
constexpr std::int64_t kNoMap = -1;

// Whether bf16 and int8 maps are multiplied by a matrix unit that takes bf16 activations.
template <class V>
constexpr bool kMatrixUnit = false;

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
        block_(std::min(groups_.size(), kBlockRows)),
        buffer_((2 * block_ + 3) * stride_),
        r_{buffer_.get(), stride_},
        z_{r_.row(block_), stride_},
        weight_(z_.row(block_)),
        norm_bias_(op.norm_bias.data == nullptr ? nullptr : weight_ + stride_),
        bias_(op.bias.data == nullptr ? nullptr : weight_ + 2 * stride_) {}

  void run() {
    load_vectors();
    for (std::int64_t g = 0; g < op_.num_maps; ++g) {
      if (groups_.begin[g] == groups_.begin[g + 1]) continue;
      if (bias_ != nullptr) load_row<V>(op_.bias, op_.bias.ndim == 1 ? 0 : g, size_, padded_, bias_);
      run_group(groups_.begin[g], groups_.begin[g + 1], g);
    }
    run_group(groups_.begin[op_.num_maps], groups_.size(), kNoMap);
  }

 private:
  void load_vectors() {
    if (op_.norm == Norm::kNone) return;
    load_row<V>(op_.weight, 0, size_, padded_, weight_);
    const auto offset = V::broadcast(static_cast<T>(op_.weight_offset));
    for (std::int64_t i = 0; i < padded_; i += V::kLanes) V::store(weight_ + i, V::add(V::load(weight_ + i), offset));
    if (norm_bias_ != nullptr) load_row<V>(op_.norm_bias, 0, size_, padded_, norm_bias_);
  }

  // Rows begin .. end of the grouping, which share a map. A row is loaded before it is stored and no other row depends
  // on it, so outputs may overwrite inputs.
  void run_group(std::int64_t begin, std::int64_t end, std::int64_t map) {
    const bool direct = map != kNoMap && states_suit_matrix_unit();
    for (std::int64_t first = begin; first < end; first += block_) {
      const std::int64_t count = std::min(block_, end - first);
      const std::int64_t* tokens = groups_.order.data() + first;
      if (direct) {
        point_at_states(tokens, count);
      } else {
        parallel_for(threads_, count, size_, [&](std::int64_t from, std::int64_t to) {
          for (std::int64_t i = from; i < to; ++i) load_residual_stream(r_.row(i), z_.row(i), tokens[i]);
        });
      }
      if (map != kNoMap) project(map, count);
      parallel_for(threads_, count, 4 * size_, [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t i = from; i < to; ++i) {
          T* r = r_.row(direct ? from : i);
          if (direct) load_row<V>(op_.x, tokens[i], size_, padded_, r);
          finish_row(r, z_.row(i), tokens[i], map != kNoMap);
        }
      });
    }
  }

  // Whether the first product may read x in the caller's memory. Rows are then not copied to scratch before they are
  // edited: with many tokens that saves writing a megabyte and reading it twice.
  bool states_suit_matrix_unit() const {
    const DType map = op_.down.data == nullptr ? op_.up.dtype : op_.down.dtype;
    return kMatrixUnit<V> && (map == DType::kBFloat16 || map == DType::kInt8) && op_.x.dtype == DType::kBFloat16 &&
           op_.residual.data == nullptr && op_.x.strides[op_.x.ndim - 1] == 1;
  }

  void point_at_states(const std::int64_t* tokens, std::int64_t count) {
    states_.resize(count);
    for (std::int64_t i = 0; i < count; ++i)
      states_[i] = static_cast<const BFloat16*>(op_.x.data) + row_offset(op_.x, tokens[i]);
  }

  // Writes r of a token to `r`; `residual` is scratch for its second term.
  void load_residual_stream(T* r, T* residual, std::int64_t token) {
    load_row<V>(op_.x, token, size_, padded_, r);
    if (op_.residual.data == nullptr) return;
    load_row<V>(op_.residual, token, size_, padded_, residual);
    for (std::int64_t j = 0; j < padded_; j += V::kLanes)
      V::store(r + j, V::add(V::load(r + j), V::load(residual + j)));
  }

  // z = up (down r) for the rows in scratch.
  void project(std::int64_t map, std::int64_t count) {
    const Scratch<const T> r{r_.data, stride_};
    const bool is_bfloat16 = op_.x.dtype == DType::kBFloat16 && op_.residual.data == nullptr;
    const int r_pieces = is_bfloat16 ? 1 : pieces();
    const BFloat16* const* states = states_.empty() ? nullptr : states_.data();
    if (op_.down.data == nullptr) return gemm({op_.up, map, r, z_, count, r_pieces, states});
    const std::int64_t stride = row_stride(op_.down.columns);
    const Buffer<T> buffer(count * stride);
    gemm({op_.down, map, r, Scratch<T>{buffer.get(), stride}, count, r_pieces, states});
    gemm({op_.up, map, Scratch<const T>{buffer.get(), stride}, z_, count, pieces()});
  }

  // The number of bf16 pieces of an fp32 activation, as many as show in the rounded outputs: three (24 bits) where x or
  // r' is fp32, otherwise two (16 bits).
  int pieces() const {
    const bool single = op_.x.dtype == DType::kFloat32 || op_.edited.dtype == DType::kFloat32;
    return single ? 3 : 2;
  }

  void gemm(const Product<T>& product) {
    // fp64 maps go with fp64 sums and only with them; the caller has checked it.
    if constexpr (std::is_same_v<T, double>) {
      multiply<double>(product);
    } else if (product.maps.dtype == DType::kInt8) {
      multiply<std::int8_t>(product);
    } else {
      with_storage_type(product.maps.dtype, [&](auto* type) {
        using W = std::remove_pointer_t<decltype(type)>;
        if constexpr (!std::is_same_v<W, double>) multiply<W>(product);
      });
    }
  }

  template <class W>
  void multiply(const Product<T>& product) {
    typename GemmOf<V, W>::Type(product).run(threads_);
  }

  // Edits a token's r, stores it, and normalises what was stored; `row` holds M r and is overwritten.
  void finish_row(const T* r, T* row, std::int64_t token, bool edit) {
    if (edit) {
      const auto alpha = static_cast<T>(op_.alpha * factor(op_.row_alpha, token));
      const auto beta = static_cast<T>(op_.beta * factor(op_.row_beta, token));
      store_values<V, true>(op_.edited, token, size_, row, combination<V>(row, r, bias_, alpha, beta));
    } else {
      store_values<V, true>(op_.edited, token, size_, row, [=](std::int64_t j) { return V::load(r + j); });
    }
    if (op_.norm == Norm::kNone) {
      if (op_.y.data == nullptr) return;
      std::fill_n(row, padded_, T(0));
      return store_values<V, false>(op_.y, token, size_, row, [=](std::int64_t j) { return V::load(row + j); });
    }
    const T centre = op_.norm == Norm::kLayer ? mean<V>(row, size_) : T(0);
    const T rstd = T(1) / std::sqrt(mean_square<V>(row, size_, centre) + static_cast<T>(op_.eps));
    store_values<V, false>(op_.y, token, size_, row, normalisation<V>(row, centre, rstd, weight_, norm_bias_));
  }

  const AffineNorm& op_;
  const Threads& threads_;
  Grouping groups_;
  std::vector<const BFloat16*> states_;  // rows of x that a matrix unit reads itself
  std::int64_t size_;
  std::int64_t padded_;
  std::int64_t stride_;
  std::int64_t block_;
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
  const DType residual = op.residual.data == nullptr ? op.x.dtype : op.residual.dtype;
  if (op.x.dtype == DType::kFloat64 || residual == DType::kFloat64) {
    AffineNormKernel<Double>(op, threads).run();
  } else {
    AffineNormKernel<Single>(op, threads).run();
  }
}

}  // namespace
}  // namespace incline_fast::cpu
