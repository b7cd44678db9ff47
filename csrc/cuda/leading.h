// The leading dimensions of a strided tensor, merged where one stride describes two, so that kernels can walk over
// them.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "launch.h"

namespace incline_fast::cuda {

constexpr int kLeadingDims = 4;

struct Leading {
  int count = 0;
  std::int64_t sizes[kLeadingDims] = {};
  std::int64_t strides[kLeadingDims] = {};  // in elements

  // Where the index-th row or matrix begins, in elements from the first one.
  __device__ std::int64_t offset(std::int64_t index) const {
    std::int64_t offset = 0;
    for (int i = count - 1; i >= 0; --i) {
      offset += index % sizes[i] * strides[i];
      index /= sizes[i];
    }
    return offset;
  }
};

// The first `ndim` dimensions of the argument `name`.
inline Leading merge_leading(const char* name, std::int64_t ndim, const std::int64_t* sizes,
                             const std::int64_t* strides) {
  Leading leading;
  for (std::int64_t i = 0; i < ndim; ++i) {
    if (sizes[i] == 1) continue;
    const int previous = leading.count - 1;
    if (previous >= 0 && leading.strides[previous] == strides[i] * sizes[i]) {
      leading.sizes[previous] *= sizes[i];
      leading.strides[previous] = strides[i];
      continue;
    }
    if (leading.count == kLeadingDims) {
      throw std::invalid_argument(std::string(name) + " has more than " + std::to_string(kLeadingDims) +
                                  " leading dimensions that cannot be merged; pass " + name + ".contiguous()");
    }
    leading.sizes[leading.count] = sizes[i];
    leading.strides[leading.count++] = strides[i];
  }
  return leading;
}

}  // namespace incline_fast::cuda
