// Rows of any dtype and stride, to and from contiguous scratch in the compute type.
#pragma once

#include <cstdint>

#include "../affine_norm.h"
#include "float_types.h"

namespace incline_fast::cpu {
namespace {

// Calls f with a null pointer of the storage type that `dtype` names.
template <class F>
void with_storage_type(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(static_cast<float*>(nullptr));
    case DType::kFloat64:
      return f(static_cast<double*>(nullptr));
    case DType::kBFloat16:
      return f(static_cast<BFloat16*>(nullptr));
    case DType::kFloat16:
      return f(static_cast<Float16*>(nullptr));
    case DType::kInt8:  // maps only, see AffineNormKernel::gemm
      return;
  }
}

// Offset in elements of the i-th row, rows counted over all leading dimensions.
inline std::int64_t row_offset(const Rows& rows, std::int64_t i) {
  std::int64_t offset = 0;
  for (std::int64_t dim = rows.ndim - 2; dim >= 0; --dim) {
    offset += i % rows.sizes[dim] * rows.strides[dim];
    i /= rows.sizes[dim];
  }
  return offset;
}

template <class V, class S>
void widen_row(const S* from, std::int64_t stride, std::int64_t size, typename V::Scalar* to) {
  std::int64_t i = 0;
  if constexpr (requires { V::load(from); }) {
    if (stride == 1) {
      for (; i + V::kLanes <= size; i += V::kLanes) V::store(to + i, V::load(from + i));
    }
  }
  for (; i < size; ++i) to[i] = static_cast<typename V::Scalar>(widen(from[i * stride]));
}

template <class V, class S>
void narrow_row(const typename V::Scalar* from, std::int64_t size, S* to, std::int64_t stride) {
  std::int64_t i = 0;
  if constexpr (requires { V::store(to, V::zero()); }) {
    if (stride == 1) {
      for (; i + V::kLanes <= size; i += V::kLanes) V::store(to + i, V::load(from + i));
    }
  }
  for (; i < size; ++i) to[i * stride] = narrow<S>(from[i]);
}

// Row i, followed by zeros up to `padded` elements.
template <class V>
void load_row(const Rows& rows, std::int64_t i, std::int64_t size, std::int64_t padded, typename V::Scalar* to) {
  with_storage_type(rows.dtype, [&](auto* type) {
    const auto* from = static_cast<decltype(type)>(rows.data) + row_offset(rows, i);
    widen_row<V>(from, rows.strides[rows.ndim - 1], size, to);
  });
  for (std::int64_t j = size; j < padded; ++j) to[j] = 0;
}

// Row i = value(0), value(kLanes), ..., registers of kLanes elements, rounded to the row's type. `scratch` is a padded
// row of the compute type; afterwards it holds what was stored, if kReadBack. All is done in one loop, because a row is
// too long to stay in registers, and reading it again from a cache takes as long as the arithmetic.
template <class V, bool kReadBack, class Value>
void store_values(const Rows& rows, std::int64_t i, std::int64_t size, typename V::Scalar* scratch, Value value) {
  with_storage_type(rows.dtype, [&](auto* type) {
    auto* to = static_cast<decltype(type)>(rows.data) + row_offset(rows, i);
    const std::int64_t stride = rows.strides[rows.ndim - 1];
    std::int64_t j = 0;
    if constexpr (requires { V::store(to, V::load(to)); }) {
      if (stride == 1) {
        for (; j + V::kLanes <= size; j += V::kLanes) {
          V::store(to + j, value(j));
          if constexpr (kReadBack) V::store(scratch + j, V::load(to + j));
        }
      }
    }
    for (std::int64_t rest = j; rest < size; rest += V::kLanes) V::store(scratch + rest, value(rest));
    narrow_row<V>(scratch + j, size - j, to + j * stride, stride);
    if constexpr (kReadBack) widen_row<V>(to + j * stride, stride, size - j, scratch + j);
  });
}

// The i-th element of an optional vector, 1 where it is absent.
inline double factor(const Rows& vector, std::int64_t i) {
  double value = 1.0;
  if (vector.data != nullptr) {
    with_storage_type(vector.dtype, [&](auto* type) {
      value = widen(static_cast<decltype(type)>(vector.data)[i * vector.strides[0]]);
    });
  }
  return value;
}

}  // namespace
}  // namespace incline_fast::cpu
