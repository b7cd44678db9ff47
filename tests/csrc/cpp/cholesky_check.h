// The Cholesky kernel on random symmetric positive definite matrices: L L^T = A, L X = I, info.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "arrays.h"
#include "cholesky.h"
#include "cpu/dispatch.h"

namespace incline_fast::test {

class CholeskyProblem {
 public:
  CholeskyProblem(DType dtype, std::int64_t size, bool strided, std::int64_t bad_pivot)
      : size_(size),
        bad_pivot_(bad_pivot),
        source_(dtype, size, size, strided),
        factor_(dtype, size, size, strided),
        inverse_(dtype, size, size, strided) {
    std::mt19937 random(1);
    std::vector<double> b(static_cast<std::size_t>(size * size));
    for (double& value : b) value = draw(random);
    for (std::int64_t i = 0; i < size; ++i) {
      for (std::int64_t j = 0; j < size; ++j) {
        double sum = i == j ? 1.0 : 0.0;
        for (std::int64_t k = 0; k < size; ++k) sum += b[i * size + k] * b[j * size + k] / static_cast<double>(size);
        source_.set(i, j, sum);
      }
    }
    if (bad_pivot > 0) source_.set(bad_pivot - 1, bad_pivot - 1, -1.0);
  }

  // Runs the kernel; returns what is wrong, empty if nothing is.
  std::string run(const Threads& threads) {
    const Rows source = source_.matrix(), factor = factor_.matrix(), inverse = inverse_.matrix();
    std::int32_t info = 0;
    cpu::cholesky_block({.dtype = source.dtype,
                         .count = 1,
                         .size = size_,
                         .source = matrices(source),
                         .factor = matrices(factor),
                         .inverse = matrices(inverse),
                         .info = &info},
                        threads);
    if (info != bad_pivot_) return "info is " + std::to_string(info) + ", expected " + std::to_string(bad_pivot_);
    if (!factor_.gaps_untouched() || !inverse_.gaps_untouched()) return "wrote between the elements of an array";
    return bad_pivot_ > 0 ? wrong_after_breakdown() : wrong_product();
  }

 private:
  static Matrices matrices(const Rows& rows) { return {rows.data, rows.ndim, rows.sizes, rows.strides}; }

  std::string wrong_after_breakdown() const {
    for (std::int64_t i = 0; i < size_; ++i) {
      for (std::int64_t j = 0; j < size_; ++j) {
        if (inverse_.get(i, j) != 0.0) return "the inverse of a matrix that broke down is not zero";
      }
    }
    return {};
  }

  std::string wrong_product() const {
    const double eps = source_.dtype() == DType::kFloat64 ? std::numeric_limits<double>::epsilon()
                                                          : std::numeric_limits<float>::epsilon();
    const double bound = 8 * static_cast<double>(size_) * eps;
    for (std::int64_t i = 0; i < size_; ++i) {
      for (std::int64_t j = 0; j < size_; ++j) {
        if (j > i && (factor_.get(i, j) != 0.0 || inverse_.get(i, j) != 0.0)) return "not zero above the diagonal";
        double product = 0, identity = 0;
        for (std::int64_t k = 0; k < size_; ++k) {
          product += factor_.get(i, k) * factor_.get(j, k);
          identity += factor_.get(i, k) * inverse_.get(k, j);
        }
        const bool right =
            std::abs(product - source_.get(i, j)) <= bound && std::abs(identity - (i == j ? 1.0 : 0.0)) <= bound;
        if (!right) {
          std::ostringstream out;
          out << "at [" << i << ", " << j << "] L L^T - A is " << product - source_.get(i, j) << " and L X is "
              << identity;
          return out.str();
        }
      }
    }
    return {};
  }

  std::int64_t size_;
  std::int64_t bad_pivot_;  // 1-based, 0: none
  Array source_, factor_, inverse_;
};

}  // namespace incline_fast::test
