// What a kernel knows of a call's rows and vectors when it is compiled: nothing, or all that decides how they are read.
#pragma once

#include <limits>

#include "call.h"

namespace incline_fast::cuda {

// Elements as they were loaded are kept in a Raw<count> until they are needed: what makes numbers of them waits for
// them, and between the request of one and the next nothing shall wait.

// Any types, strides and alignment.
struct AnyRows {
  static constexpr bool kUniform = false;
  static constexpr int kQuads = 1;  // see normalise_row()

  template <int count>
  struct Raw {
    float values[count] = {};
  };

  static __device__ __forceinline__ Row of(const Row& row) { return row; }
  static __device__ __forceinline__ MapView of(const MapView& map) { return map; }
  static __device__ __forceinline__ DType dtype(const Row& row) { return row.dtype; }
  static __device__ __forceinline__ std::int64_t offset(const RowView& view, std::int64_t row) {
    return view.leading.offset(row);
  }
  static __device__ __forceinline__ int limit(const AffineCall& call) { return call.hidden; }
  static __device__ __forceinline__ bool has_residual(const AffineCall& call) {
    return call.residual.first.data != nullptr;
  }

  // Elements k to k + count - 1 of a row, zeros from the hidden size on; count is 1 or as load_elements() has it.
  template <int count>
  static __device__ __forceinline__ Raw<count> request(const AffineCall& call, const Row& row, int k) {
    Raw<count> raw;
    if constexpr (count == 1) {
      raw.values[0] = load_element(row, k);
    } else {
      load_elements(row, k, call.hidden, raw.values);
    }
    return raw;
  }

  template <int count>
  static __device__ __forceinline__ void widen_to(const Raw<count>& raw, float (&values)[count]) {
    for (int i = 0; i < count; ++i) values[i] = raw.values[i];
  }
};

// x, residual, r', y, weight and norm_bias of one 16-bit type, all wide and with one stride from row to row, as are the
// maps over the hidden size, which is a multiple of kWholeSteps: what nearly every call is. Its kernels are smaller and
// request more before they wait.
template <DType kType, bool kResidual>
struct UniformRows {
  static constexpr bool kUniform = true;
  static constexpr int kQuads = 4;

  template <int count>
  struct Raw {
    unsigned words[(count + 1) / 2] = {};
  };

  static __device__ __forceinline__ Row of(const Row& row) { return {row.data, 1, kType, true}; }
  static __device__ __forceinline__ MapView of(const MapView& map) {
    return {map.data, map.scale, map.columns, map.depth, true};
  }
  static __device__ __forceinline__ DType dtype(const Row&) { return kType; }
  static __device__ __forceinline__ std::int64_t offset(const RowView& view, std::int64_t row) {
    return row * view.leading.strides[0];
  }
  // No access crosses it, and the compiler knows that nothing is larger.
  static constexpr int kNoLimit = std::numeric_limits<int>::max();
  static __device__ __forceinline__ int limit(const AffineCall&) { return kNoLimit; }
  static __device__ __forceinline__ bool has_residual(const AffineCall&) { return kResidual; }

  template <int count>
  static __device__ __forceinline__ Raw<count> request(const AffineCall&, const Row& row, int k) {
    Raw<count> raw;
    if constexpr (count == 1) {
      raw.words[0] = reinterpret_cast<const unsigned short*>(row.data)[k];
    } else {
      load_words(row, k, raw.words);
    }
    return raw;
  }

  template <int count>
  static __device__ __forceinline__ void widen_to(const Raw<count>& raw, float (&values)[count]) {
    for (int i = 0; i < count; ++i) {
      values[i] = widen(static_cast<unsigned short>(raw.words[i / 2] >> (16 * (i % 2))), kType);
    }
  }
};

constexpr int kWholeSteps = 64;  // no step of a product, of any type of map, crosses the end of a row then

inline bool is_uniform(const AffineCall& call, DType type) {
  const auto vector = [&](const Row& row) { return row.data == nullptr || (row.dtype == type && row.wide); };
  const auto rows = [&](const RowView& view) { return vector(view.first) && view.leading.count <= 1; };
  return call.hidden % kWholeSteps == 0 && rows(call.x) && rows(call.residual) && rows(call.edited) && rows(call.y) &&
         vector(call.weight) && vector(call.norm_bias);
}

}  // namespace incline_fast::cuda
