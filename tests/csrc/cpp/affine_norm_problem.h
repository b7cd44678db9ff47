// One call of the fused op on random numbers, and the same by plain loops in double precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "affine_norm.h"
#include "arrays.h"

namespace incline_fast::test {

inline const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat64:
      return "float64";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat16:
      return "float16";
    case DType::kInt8:
      return "int8";
  }
  return "unknown";
}

struct Case {
  Norm norm = Norm::kRms;
  std::int64_t rows = 1;
  std::int64_t hidden = 1;
  std::int64_t rank = 0;  // 0: a dense map
  std::int64_t maps = 1;
  DType x = DType::kFloat32;
  DType map = DType::kFloat32;
  DType residual = DType::kFloat32;  // read where has_residual
  bool has_residual = false;
  bool packed = true;
  bool strided = false;
  bool row_map = false;
  bool bias = true;
  bool per_row = false;   // alpha and beta
  bool in_place = false;  // always, without a norm

  std::string text() const {
    std::ostringstream out;
    out << (norm == Norm::kRms     ? "rms"
            : norm == Norm::kLayer ? "layer"
                                   : "none")
        << ' ' << rows << " x " << hidden << " rank " << rank << " maps " << maps << ' ' << name_of(x) << " map "
        << name_of(map);
    if (has_residual) out << " residual " << name_of(residual);
    const std::pair<bool, const char*> flags[] = {{packed, "packed"}, {strided, "strided"}, {row_map, "row_map"},
                                                  {bias, "bias"},     {per_row, "per_row"}, {in_place, "in_place"}};
    for (const auto& [set, name] : flags) out << (set ? " " : " no ") << name;
    return out.str();
  }
};

// G matrices [columns, depth] in one of the layouts that a kernel reads, and their values.
class MapArray {
 public:
  MapArray(const Case& c, std::int64_t columns, std::int64_t depth, std::mt19937& random)
      : columns_(columns),
        depth_(depth),
        packed_(c.packed),
        panels_((columns + kPanel - 1) / kPanel),
        stored_depth_(c.map == DType::kBFloat16 ? (depth + 1) / 2 * 2 : depth),
        array_(c.packed ? Array(c.map, 1, c.maps * panels_ * stored_depth_ * kPanel)
                        : Array(c.map, c.maps * columns, depth, c.strided)),
        values_(static_cast<std::size_t>(c.maps * columns * depth)) {
    if (packed_) {
      for (std::int64_t i = 0; i < array_.columns(); ++i) array_.set(0, i, 0.0);  // what pads panels and pairs
    }
    const double size = 1.0 / std::sqrt(static_cast<double>(depth));
    if (c.map == DType::kInt8) {
      for (std::int64_t i = 0; i < c.maps * columns; ++i) scale_.push_back(static_cast<float>(size * (1 + i % 3) / 99));
    }
    for (std::int64_t g = 0; g < c.maps; ++g) {
      for (std::int64_t n = 0; n < columns; ++n) {
        for (std::int64_t k = 0; k < depth; ++k) place(g, n, k, size * draw(random));
      }
    }
  }

  double value(std::int64_t g, std::int64_t n, std::int64_t k) const { return values_[index(g, n, k)]; }

  Maps maps() {
    Maps maps{.data = array_.data(), .dtype = array_.dtype(), .packed = packed_, .columns = columns_, .depth = depth_};
    maps.map_stride = packed_ ? panels_ * stored_depth_ * kPanel : columns_ * array_.row_stride();
    maps.column_stride = packed_ ? 0 : array_.row_stride();
    maps.depth_stride = packed_ ? 0 : array_.column_stride();
    maps.scale = scale_.empty() ? nullptr : scale_.data();
    return maps;
  }

 private:
  static constexpr std::int64_t kPanel = 16;

  std::size_t index(std::int64_t g, std::int64_t n, std::int64_t k) const {
    return static_cast<std::size_t>((g * columns_ + n) * depth_ + k);
  }

  void place(std::int64_t g, std::int64_t n, std::int64_t k, double value) {
    const std::int64_t row = packed_ ? 0 : g * columns_ + n;
    const std::int64_t column = packed_ ? packed_index(g, n, k) : k;
    const double scale = scale_.empty() ? 1.0 : scale_[g * columns_ + n];
    array_.set(row, column, scale_.empty() ? value : std::clamp(std::nearbyint(value / scale), -127.0, 127.0));
    values_[index(g, n, k)] = scale * array_.get(row, column);
  }

  // In [G, panels, depth, 16], or [G, panels, depth / 2, 16, 2] in bf16.
  std::int64_t packed_index(std::int64_t g, std::int64_t n, std::int64_t k) const {
    const std::int64_t panel = (g * panels_ + n / kPanel) * stored_depth_ * kPanel, column = n % kPanel;
    if (array_.dtype() == DType::kBFloat16) return panel + k / 2 * (2 * kPanel) + 2 * column + k % 2;
    return panel + k * kPanel + column;
  }

  std::int64_t columns_;
  std::int64_t depth_;
  bool packed_;
  std::int64_t panels_;
  std::int64_t stored_depth_;
  Array array_;
  std::vector<float> scale_;  // [G, columns] of int8 maps
  std::vector<double> values_;
};

class AffineNormProblem {
 public:
  explicit AffineNormProblem(const Case& c)
      : case_(c),
        random_(1),
        x_(drawn(c.x, c.rows)),
        x_before_(x_),
        residual_(drawn(c.residual, c.has_residual ? c.rows : 0)),
        edited_(residual_dtype(), c.in_place ? 0 : c.rows, c.hidden, c.strided),
        y_(c.x, y_is_x() || c.norm == Norm::kNone ? 0 : c.rows, c.hidden, c.strided),
        weight_(drawn(c.x, 1)),
        norm_bias_(drawn(DType::kFloat32, c.norm == Norm::kLayer ? 1 : 0)),
        bias_(drawn(c.x, c.bias ? c.maps : 0)),
        alpha_(drawn(DType::kFloat64, c.per_row ? 1 : 0, c.rows)),
        beta_(drawn(DType::kFloat32, c.per_row ? 1 : 0, c.rows)),
        down_(c, c.rank, c.rank > 0 ? c.hidden : 0, random_),
        up_(c, c.hidden, c.rank > 0 ? c.rank : c.hidden, random_) {
    for (std::int64_t i = 0; i < c.rows; ++i) row_map_.push_back(c.row_map ? static_cast<int>((i * 5) % 4) - 1 : 0);
    for (auto& g : row_map_) g = std::min<int>(g, static_cast<int>(c.maps) - 1);
    expect();
  }

  // The description of the call; it points into this object.
  AffineNorm op() {
    AffineNorm op;
    op.norm = case_.norm;
    op.num_rows = case_.rows;
    op.hidden_size = case_.hidden;
    op.x = x_.matrix();
    if (case_.has_residual) op.residual = residual_.matrix();
    op.edited = edited().matrix();
    if (case_.norm != Norm::kNone) op.weight = weight_.matrix();
    if (case_.norm != Norm::kNone || case_.has_residual) op.y = y().matrix();
    if (case_.norm == Norm::kLayer) op.norm_bias = norm_bias_.matrix();
    if (case_.bias) op.bias = bias_.matrix();
    if (case_.rank > 0) op.down = down_.maps();
    op.up = up_.maps();
    if (case_.per_row) {
      op.row_alpha = alpha_.vector();
      op.row_beta = beta_.vector();
    }
    if (case_.row_map) {
      op.row_map = row_map_.data();
      op.row_map_stride = 1;
    }
    op.num_maps = case_.maps;
    op.alpha = kAlpha;
    op.beta = kBeta;
    op.eps = kEps;
    op.weight_offset = kWeightOffset;
    return op;
  }

  // What is wrong after the call; empty if nothing is.
  std::string error() {
    for (const Array* array : {&x_, &residual_, &edited_, &y_, &weight_, &norm_bias_, &bias_}) {
      if (!array->gaps_untouched()) return "wrote between the elements of an array";
    }
    for (std::int64_t i = 0; i < case_.rows; ++i) {
      const std::vector<double> normed = case_.norm == Norm::kNone ? emptied(i) : norm_of_edited(i);
      for (std::int64_t j = 0; j < case_.hidden; ++j) {
        const double edited_value = edited().get(i, j);
        if (!close(edited_value, expected_[i * case_.hidden + j], residual_dtype())) {
          return mismatch("r'", i, j, edited_value, expected_[i * case_.hidden + j]);
        }
        if (case_.norm == Norm::kNone && !case_.has_residual) continue;  // there is no y
        const double y_value = y().get(i, j);
        if (!close(y_value, normed[j], case_.x)) return mismatch("y", i, j, y_value, normed[j]);
      }
    }
    return {};
  }

  const std::vector<std::byte>& edited_bytes() { return edited().storage(); }
  const std::vector<std::byte>& y_bytes() { return y().storage(); }

 private:
  static constexpr double kAlpha = -0.5, kBeta = 0.75, kEps = 1e-3, kWeightOffset = 1.0;

  bool y_is_x() const { return case_.in_place && case_.has_residual; }
  DType residual_dtype() const { return case_.has_residual ? case_.residual : case_.x; }
  Array& edited() { return !case_.in_place ? edited_ : case_.has_residual ? residual_ : x_; }
  Array& y() { return y_is_x() ? x_ : y_; }

  Array drawn(DType dtype, std::int64_t rows) { return drawn(dtype, rows, case_.hidden); }
  Array drawn(DType dtype, std::int64_t rows, std::int64_t columns) {
    Array array(dtype, rows, columns, case_.strided);
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < columns; ++j) array.set(i, j, draw(random_));
    }
    return array;
  }

  // r' = beta r + alpha (up (down r) + bias), from the inputs before the call overwrites them.
  void expect() {
    for (std::int64_t i = 0; i < case_.rows; ++i) {
      std::vector<double> r(case_.hidden);
      for (std::int64_t j = 0; j < case_.hidden; ++j) {
        r[j] = x_.get(i, j) + (case_.has_residual ? residual_.get(i, j) : 0.0);
      }
      const std::int64_t g = row_map_[i];
      const double alpha = kAlpha * (case_.per_row ? alpha_.get(0, i) : 1.0);
      const double beta = kBeta * (case_.per_row ? beta_.get(0, i) : 1.0);
      std::vector<double> mapped = r;
      if (g >= 0 && case_.rank > 0) mapped = product(down_, g, case_.rank, mapped);
      if (g >= 0) mapped = product(up_, g, case_.hidden, mapped);
      for (std::int64_t j = 0; j < case_.hidden; ++j) {
        const double bias = case_.bias && g >= 0 ? bias_.get(g, j) : 0.0;
        const bool untouched = g < 0 && case_.norm == Norm::kNone && case_.has_residual;
        if (untouched) r[j] = residual_.get(i, j);
        expected_.push_back(g < 0 ? r[j] : beta * r[j] + alpha * (mapped[j] + bias));
      }
    }
  }

  static std::vector<double> product(const MapArray& map, std::int64_t g, std::int64_t columns,
                                     const std::vector<double>& v) {
    std::vector<double> result(columns, 0.0);
    for (std::int64_t n = 0; n < columns; ++n) {
      for (std::size_t k = 0; k < v.size(); ++k) result[n] += map.value(g, n, static_cast<std::int64_t>(k)) * v[k];
    }
    return result;
  }

  // Without a norm, what is left of a row of x beside the residual that it was added to.
  std::vector<double> emptied(std::int64_t i) {
    std::vector<double> v(case_.hidden, 0.0);
    for (std::int64_t j = 0; row_map_[i] < 0 && j < case_.hidden; ++j) v[j] = x_before_.get(i, j);
    return v;
  }

  // The norm of what the call stored as r': y must be close to it however r' was rounded.
  std::vector<double> norm_of_edited(std::int64_t i) {
    const auto d = static_cast<double>(case_.hidden);
    std::vector<double> v(case_.hidden);
    double mean = 0, square = 0;
    for (std::int64_t j = 0; j < case_.hidden; ++j) mean += (v[j] = edited().get(i, j)) / d;
    if (case_.norm == Norm::kRms) mean = 0;
    for (double value : v) square += (value - mean) * (value - mean) / d;
    for (std::int64_t j = 0; j < case_.hidden; ++j) {
      const double bias = case_.norm == Norm::kLayer ? norm_bias_.get(0, j) : 0.0;
      v[j] = (v[j] - mean) / std::sqrt(square + kEps) * (weight_.get(0, j) + kWeightOffset) + bias;
    }
    return v;
  }

  // The bounds of tests/tolerances.py, for sums of the hidden size.
  bool close(double actual, double expected, DType dtype) const {
    const auto [rtol, atol] = tolerance(dtype);
    const double growth = std::sqrt(std::max(1.0, static_cast<double>(case_.hidden) / 256));
    return std::abs(actual - expected) <= growth * (atol + rtol * std::abs(expected));
  }

  struct Tolerance {
    double rtol, atol;
  };

  static Tolerance tolerance(DType dtype) {
    switch (dtype) {
      case DType::kFloat64:
        return {1e-12, 1e-12};
      case DType::kBFloat16:
        return {1.6e-2, 1e-2};
      case DType::kFloat16:
        return {1e-3, 1e-3};
      default:
        return {1.3e-6, 1e-5};
    }
  }

  static std::string mismatch(const char* what, std::int64_t i, std::int64_t j, double actual, double expected) {
    std::ostringstream out;
    out.precision(9);
    out << what << '[' << i << ", " << j << "] is " << actual << ", expected " << expected;
    return out.str();
  }

  Case case_;
  std::mt19937 random_;
  Array x_, x_before_, residual_, edited_, y_, weight_, norm_bias_, bias_, alpha_, beta_;
  MapArray down_, up_;
  std::vector<std::int32_t> row_map_;
  std::vector<double> expected_;
};

}  // namespace incline_fast::test
