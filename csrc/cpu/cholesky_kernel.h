// Cholesky of one block and the inverse of its factor, written once over the vector traits.
//
// Both are the same elimination: with Z = [A | I], subtracting multiples of earlier rows and scaling turns the left
// half into L^T and the right half into L^-1. Rows are treated eight at a time: first all earlier rows are subtracted
// (a small matrix product whose sums stay in registers), then the eight are solved against their own 8 x 8 triangle.
//
// Each isa_*.cpp includes this file after choosing its target, so everything here has internal linkage.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "../cholesky.h"
#include "buffer.h"
#include "parallel_for.h"

namespace incline_fast::cpu {
namespace {

constexpr int kPivots = 8;
constexpr std::int64_t kPanelRows = 64;
constexpr std::int64_t kWidest = 32;  // every kernel's chunk of columns divides this

constexpr std::int64_t round_up(std::int64_t value, std::int64_t unit) { return (value + unit - 1) / unit * unit; }

// The i-th matrix of a stack, in elements of T.
template <class T>
struct Strided {
  T* data;
  std::int64_t row_stride;
  std::int64_t column_stride;

  Strided(const Matrices& stack, std::int64_t i)
      : data(static_cast<T*>(stack.data)),
        row_stride(stack.strides[stack.ndim - 2]),
        column_stride(stack.strides[stack.ndim - 1]) {
    for (std::int64_t dim = stack.ndim - 3; dim >= 0; --dim) {
      data += i % stack.sizes[dim] * stack.strides[dim];
      i /= stack.sizes[dim];
    }
  }
  T& at(std::int64_t row, std::int64_t column) const { return data[row * row_stride + column * column_stride]; }
};

template <class V>
class CholeskyKernel {
 public:
  using T = typename V::Scalar;

  CholeskyKernel(const CholeskyBlock& op, const Threads& threads)
      : op_(op),
        threads_(threads),
        rows_(round_up(op.size, kPivots)),
        half_(round_up(op.size, kWidest)),
        stride_((op.inverse.data == nullptr ? half_ : 2 * half_) + kLine),
        buffer_(rows_ * stride_),
        z_(buffer_.get()) {}

  void run(std::int64_t i) {
    std::int64_t bad = op_.info != nullptr && op_.info[i] != 0 ? kBefore : kNone;
    if (bad == kNone) {
      load(Strided<const T>(op_.source, i));
      bad = eliminate();
      if (op_.factor.data != nullptr) store_factor(Strided<T>(op_.factor, i));
      if (bad >= 0) op_.info[i] = static_cast<std::int32_t>(op_.first + bad + 1);
    }
    if (op_.inverse.data != nullptr) store_inverse(Strided<T>(op_.inverse, i), bad == kNone);
  }

 private:
  static constexpr std::int64_t kNone = -1;              // every pivot was good
  static constexpr std::int64_t kBefore = -2;            // an earlier block of the matrix has broken down
  static constexpr std::int64_t kLine = 64 / sizeof(T);  // with it a row is an odd number of lines: all sets are used
  static constexpr int kVec = V::kAccumulators >= 2 * kPivots ? 2 : 1;
  static constexpr int kChunk = kVec * V::kLanes;
  static_assert(kWidest % kChunk == 0);

  // The triangle of eight pivots, and the reciprocals of its diagonal.
  struct Triangle {
    T value[kPivots][kPivots];
    T reciprocal[kPivots];
  };

  T* row(std::int64_t k) const { return z_ + k * stride_; }

  // Z = [A^T's upper triangle | I], padded with rows of the identity to a multiple of eight.
  void load(Strided<const T> source) {
    for (std::int64_t k = 0; k < rows_; ++k) {
      // Left of the diagonal chunks read no further than to the beginning of the row's panel.
      std::fill(row(k) + k / kPanelRows * kPanelRows, row(k) + k, T(0));
      std::fill(row(k) + op_.size, row(k) + half_, T(0));
      if (k >= op_.size) row(k)[k] = T(1);
      if (op_.inverse.data == nullptr) continue;
      std::fill(row(k) + half_, row(k) + 2 * half_, T(0));
      row(k)[half_ + k] = T(1);
    }
    for_lower_tiles([&](std::int64_t r, std::int64_t c) { row(c)[r] = source.at(r, c); });
  }

  void store_factor(Strided<T> factor) const {
    for_lower_tiles([&](std::int64_t r, std::int64_t c) { factor.at(r, c) = row(c)[r]; });
    for (std::int64_t r = 0; r < op_.size; ++r) {
      if (factor.column_stride == 1) {
        std::fill(&factor.at(r, r) + 1, &factor.at(r, 0) + op_.size, T(0));
      } else {
        for (std::int64_t c = r + 1; c < op_.size; ++c) factor.at(r, c) = T(0);
      }
    }
  }

  void store_inverse(Strided<T> inverse, bool valid) const {
    for (std::int64_t r = 0; r < op_.size; ++r) {
      for (std::int64_t c = 0; c < op_.size; ++c) inverse.at(r, c) = valid && c <= r ? row(r)[half_ + c] : T(0);
    }
  }

  // f(r, c) for c <= r < size, in tiles whose transpose stays in the cache.
  template <class F>
  void for_lower_tiles(const F& f) const {
    constexpr std::int64_t kTile = 16;
    for (std::int64_t first = 0; first < op_.size; first += kTile) {
      for (std::int64_t r = first; r < op_.size; ++r) {
        for (std::int64_t c = first; c <= std::min(r, first + kTile - 1); ++c) f(r, c);
      }
    }
  }

  // The index of the first bad pivot, or kNone.
  std::int64_t eliminate() {
    const bool factored = op_.factor.data == nullptr, invert = op_.inverse.data != nullptr;
    for (std::int64_t panel = 0; panel < rows_; panel += kPanelRows) {
      const std::int64_t panel_end = std::min(panel + kPanelRows, rows_);
      // Chunks begin at multiples of their width; the part left of the diagonal is computed as well, but never read.
      const std::int64_t begin = factored ? half_ : panel / kChunk * kChunk, end = half_ + (invert ? panel_end : 0);
      parallel_for(threads_, round_up(end - begin, kChunk) / kChunk, (panel_end - panel) * panel * kChunk,
                   [&](std::int64_t first, std::int64_t last) {
                     for (std::int64_t i = first; i < last; ++i) subtract_above(panel, panel_end, begin + i * kChunk);
                   });
      for (std::int64_t p = panel; p < panel_end; p += kPivots) {
        const std::int64_t own = factored ? half_ : p / kChunk * kChunk;
        for (std::int64_t c = own; c < end; c += kChunk) subtract(p, c, panel, p);
        Triangle triangle;
        const std::int64_t bad = factored ? read(p, triangle) : factor(p, triangle);
        for (std::int64_t c = own; c < end; c += kChunk) solve(p, c, triangle);
        if (!factored) write(p, triangle);
        if (bad != kNone) return bad;
      }
    }
    return kNone;
  }

  // The rows of a panel minus what the rows above it contribute, in columns c .. c + kChunk. The rows above are taken
  // so few at a time that they stay in the L1 cache for all rows of the panel.
  void subtract_above(std::int64_t panel, std::int64_t panel_end, std::int64_t c) {
    const std::int64_t end = std::min(panel_end, c + kChunk);  // rows below are left of their diagonal here
    for (std::int64_t k = 0; k < panel; k += kPanelRows) {
      for (std::int64_t p = panel; p < end; p += kPivots) subtract(p, c, k, std::min(k + kPanelRows, panel));
    }
  }

  // Rows p .. p + 7 minus combinations of rows first .. last - 1, whose factors are those rows' elements in columns
  // p .. p + 7 of Z; in columns c .. c + kChunk.
  void subtract(std::int64_t p, std::int64_t c, std::int64_t first, std::int64_t last) {
    // The inverse is lower triangular: its rows above its column c are zero there.
    first = std::max(first, c - half_);
    if (first >= last) return;
    typename V::Register sums[kPivots][kVec];
#pragma GCC unroll 16
    for (int i = 0; i < kPivots * kVec; ++i) sums[i / kVec][i % kVec] = V::zero();
    for (std::int64_t k = first; k < last; ++k) {
      typename V::Register earlier[kVec];
#pragma GCC unroll 2
      for (int v = 0; v < kVec; ++v) earlier[v] = V::load(row(k) + c + v * V::kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < kPivots; ++i) {
        const auto factor = V::broadcast(row(k)[p + i]);
#pragma GCC unroll 2
        for (int v = 0; v < kVec; ++v) sums[i][v] = V::fma(factor, earlier[v], sums[i][v]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kPivots * kVec; ++i) {
      T* to = row(p + i / kVec) + c + i % kVec * V::kLanes;
      V::store(to, V::sub(V::load(to), sums[i / kVec][i % kVec]));
    }
  }

  // The Cholesky factor of the 8 x 8 block at p.
  std::int64_t factor(std::int64_t p, Triangle& triangle) const {
    auto& l = triangle.value;
    std::int64_t bad = kNone;
    for (int j = 0; j < kPivots; ++j) {
      T pivot = row(p + j)[p + j];
      for (int k = 0; k < j; ++k) pivot -= l[j][k] * l[j][k];
      // Written so that NaN is refused as well.
      if (!(pivot > T(0) && pivot <= std::numeric_limits<T>::max()) && bad == kNone) bad = p + j;
      l[j][j] = std::sqrt(pivot);
      triangle.reciprocal[j] = T(1) / l[j][j];
      for (int i = j + 1; i < kPivots; ++i) {
        T value = row(p + j)[p + i];
        for (int k = 0; k < j; ++k) value -= l[i][k] * l[j][k];
        l[i][j] = value * triangle.reciprocal[j];
      }
    }
    return bad;
  }

  std::int64_t read(std::int64_t p, Triangle& triangle) const {
    for (int i = 0; i < kPivots; ++i) {
      for (int j = 0; j <= i; ++j) triangle.value[i][j] = row(p + j)[p + i];
      triangle.reciprocal[i] = T(1) / triangle.value[i][i];
    }
    return kNone;
  }

  void write(std::int64_t p, const Triangle& triangle) {
    for (int j = 0; j < kPivots; ++j) {
      for (int i = j; i < kPivots; ++i) row(p + j)[p + i] = triangle.value[i][j];
    }
  }

  // Rows p .. p + 7 multiplied from the left by the inverse of their triangle, in columns c .. c + kChunk.
  void solve(std::int64_t p, std::int64_t c, const Triangle& triangle) {
    typename V::Register solved[kPivots][kVec];
#pragma GCC unroll 8
    for (int i = 0; i < kPivots; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kVec; ++v) {
        T* to = row(p + i) + c + v * V::kLanes;
        auto sum = V::zero();
#pragma GCC unroll 8
        for (int j = 0; j < i; ++j) sum = V::fma(V::broadcast(triangle.value[i][j]), solved[j][v], sum);
        solved[i][v] = V::mul(V::sub(V::load(to), sum), V::broadcast(triangle.reciprocal[i]));
        V::store(to, solved[i][v]);
      }
    }
  }

  const CholeskyBlock& op_;
  const Threads& threads_;
  std::int64_t rows_;
  std::int64_t half_;
  std::int64_t stride_;
  Buffer<T> buffer_;
  T* z_;
};

// `Single` and `Double` are the vector traits of one instruction set.
template <class Single, class Double>
void run_cholesky_block(const CholeskyBlock& op, const Threads& threads) {
  // Parallel over matrices, and inside one matrix over its columns: within a parallel region torch runs the inner loop
  // on one thread.
  const auto each = [&]<class V>(V*) {
    parallel_for(threads, op.count, op.size * op.size * op.size / 4, [&](std::int64_t begin, std::int64_t end) {
      CholeskyKernel<V> kernel(op, threads);
      for (std::int64_t i = begin; i < end; ++i) kernel.run(i);
    });
  };
  if (op.dtype == DType::kFloat64) {
    each(static_cast<Double*>(nullptr));
  } else {
    each(static_cast<Single*>(nullptr));
  }
}

}  // namespace
}  // namespace incline_fast::cpu
