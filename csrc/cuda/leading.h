// The leading dimensions of a strided tensor, merged where one stride describes two, so that kernels can walk over
// them.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "launch.h"

namespace incline_fast::cuda {

constexpr int kLeadingDims = 4;

struct Leading {
  int count = 0;
  std::int64_t sizes[kLeadingDims] = {};
  std::int64_t strides[kLeadingDims] = {};  // in elements

  // Where the index-th row or matrix begins, in elements from the first one. Divisions of 32 bits, and none where one
  // stride describes all rows: those of 64 bits are some 150 instructions each.
  __device__ std::int64_t offset(std::int64_t index) const {
    std::int64_t offset = 0;
    auto rest = static_cast<unsigned>(index);
#pragma unroll 1
    for (int i = count - 1; i > 0; --i) {
      const auto size = static_cast<unsigned>(sizes[i]);
      offset += static_cast<std::int64_t>(rest % size) * strides[i];
      rest /= size;
    }
    return offset + static_cast<std::int64_t>(rest) * strides[0];
  }
};

// The first `ndim` dimensions of the argument `name`.
inline Leading merge_leading(const char* name, std::int64_t ndim, const std::int64_t* sizes,
                             const std::int64_t* strides) {
  Leading leading;
  std::int64_t total = 1;
  for (std::int64_t i = 0; i < ndim; ++i) {
    total *= sizes[i];
    if (total > std::numeric_limits<std::int32_t>::max()) {
      throw std::invalid_argument(std::string(name) + " has more than 2147483647 rows or matrices");
    }
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
