// Arrays for the tests of the torch-free kernels: exactly as long as what a kernel may touch, so that AddressSanitizer
// sees the first element beyond it; elements between the strides hold a pattern that no kernel may read or write.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <type_traits>
#include <vector>

#include "affine_norm.h"
#include "cpu/float_types.h"
#include "cpu/rows.h"

namespace incline_fast::test {

// As cpu::with_storage_type, and int8, which no row has.
template <class F>
void with_element_type(DType dtype, F f) {
  if (dtype == DType::kInt8) return f(static_cast<std::int8_t*>(nullptr));
  cpu::with_storage_type(dtype, f);
}

inline std::int64_t bytes_of(DType dtype) {
  std::int64_t bytes = 0;
  with_element_type(dtype, [&](auto* type) { bytes = sizeof *type; });
  return bytes;
}

// A number of mean 0 and variance 1; cheap, because the tests draw a hundred million of them.
inline double draw(std::mt19937& random) { return (static_cast<double>(random()) * 0x1p-31 - 1.0) * std::sqrt(3.0); }

// A typed matrix; with `strided` its rows and columns lie apart and it begins one element after an aligned address.
class Array {
 public:
  Array(DType dtype, std::int64_t rows, std::int64_t columns, bool strided = false)
      : dtype_(dtype),
        sizes_{rows, columns},
        strides_{strided ? 2 * columns + 3 : columns, strided ? 2 : 1},
        first_(strided ? 1 : 0),
        length_(rows * columns == 0 ? 0 : first_ + (rows - 1) * strides_[0] + (columns - 1) * strides_[1] + 1),
        storage_(static_cast<std::size_t>(length_ * bytes_of(dtype)), kGap) {}

  std::int64_t rows() const { return sizes_[0]; }
  std::int64_t columns() const { return sizes_[1]; }
  std::int64_t row_stride() const { return strides_[0]; }
  std::int64_t column_stride() const { return strides_[1]; }
  void* data() { return storage_.data() + first_ * bytes_of(dtype_); }
  DType dtype() const { return dtype_; }
  const std::vector<std::byte>& storage() const { return storage_; }

  Rows matrix() { return {data(), dtype_, 2, sizes_, strides_}; }
  Rows vector() { return {data(), dtype_, 1, sizes_ + 1, strides_ + 1}; }

  double get(std::int64_t row, std::int64_t column) const {
    double value = 0;
    with_element_type(dtype_, [&](auto* type) {
      std::remove_pointer_t<decltype(type)> element;
      std::memcpy(&element, at(row, column), sizeof element);
      value = static_cast<double>(cpu::widen(element));
    });
    return value;
  }

  // Stores the value rounded to the array's dtype.
  void set(std::int64_t row, std::int64_t column, double value) {
    with_element_type(dtype_, [&](auto* type) {
      const auto element = cpu::narrow<std::remove_pointer_t<decltype(type)>>(value);
      std::memcpy(const_cast<std::byte*>(at(row, column)), &element, sizeof element);
    });
  }

  // Whether every byte that belongs to no element still holds the pattern.
  bool gaps_untouched() const {
    std::vector<std::byte> copy = storage_;
    for (std::int64_t i = 0; i < rows(); ++i) {
      for (std::int64_t j = 0; j < columns(); ++j) {
        std::fill_n(copy.data() + (at(i, j) - storage_.data()), bytes_of(dtype_), kGap);
      }
    }
    return std::all_of(copy.begin(), copy.end(), [](std::byte b) { return b == kGap; });
  }

 private:
  static constexpr std::byte kGap{0xff};  // NaN in every floating-point format

  const std::byte* at(std::int64_t row, std::int64_t column) const {
    return storage_.data() + (first_ + row * strides_[0] + column * strides_[1]) * bytes_of(dtype_);
  }

  DType dtype_;
  std::int64_t sizes_[2];
  std::int64_t strides_[2];
  std::int64_t first_;
  std::int64_t length_;
  std::vector<std::byte> storage_;
};

}  // namespace incline_fast::test
