// Strided rows of any float type in device memory, read and written as fp32.
#pragma once

#include <cstdint>

#include "../../affine_norm.h"
#include "../launch.h"
#include "../leading.h"

namespace incline_fast::cuda {

// One row. `wide`: contiguous and 16-byte aligned, so that several elements can be moved at once.
struct Row {
  char* data = nullptr;
  std::int64_t stride = 0;  // in elements
  DType dtype = DType::kFloat32;
  bool wide = false;
};

// The rows of a tensor.
struct RowView {
  Row first;
  Leading leading;
};

__host__ __device__ constexpr int bytes_of(DType dtype) {
  return dtype == DType::kInt8 ? 1 : dtype == DType::kFloat32 ? 4 : dtype == DType::kFloat64 ? 8 : 2;
}

// The row that begins `offset` elements from the first one.
__device__ __forceinline__ Row row_at(const RowView& view, std::int64_t offset) {
  Row row = view.first;
  row.data += offset * bytes_of(row.dtype);
  return row;
}

__device__ inline Row row_of(const RowView& view, std::int64_t index) {
  return row_at(view, view.leading.offset(index));
}

__device__ __forceinline__ float widen(unsigned short bits, DType dtype) {
  if (dtype == DType::kBFloat16) return __uint_as_float(static_cast<unsigned>(bits) << 16);
  return __half2float(__ushort_as_half(bits));
}

__device__ __forceinline__ unsigned short narrow(float value, DType dtype) {
  if (dtype == DType::kBFloat16) return __bfloat16_as_ushort(__float2bfloat16_rn(value));
  return __half_as_ushort(__float2half_rn(value));
}

// Rounds to nearest even, once, as a store in that type would.
__device__ __forceinline__ float round_to(DType dtype, float value) {
  return dtype == DType::kFloat32 ? value : widen(narrow(value, dtype), dtype);
}

__device__ __forceinline__ float load_element(const Row& row, std::int64_t k) {
  const char* const address = row.data + k * row.stride * bytes_of(row.dtype);
  if (row.dtype == DType::kFloat32) return *reinterpret_cast<const float*>(address);
  if (row.dtype == DType::kFloat64) return static_cast<float>(*reinterpret_cast<const double*>(address));
  return widen(*reinterpret_cast<const unsigned short*>(address), row.dtype);
}

// The 32-bit words of elements k to k + 2 count - 1 of a wide row of a 16-bit type.
template <int count>
__device__ __forceinline__ void load_words(const Row& row, int k, unsigned (&words)[count]) {
  const char* const address = row.data + 2 * static_cast<std::int64_t>(k);
  if constexpr (count == 2) {
    const uint2 part = *reinterpret_cast<const uint2*>(address);
    words[0] = part.x, words[1] = part.y;
  } else {
    for (int i = 0; i < count; i += 4) {
      const uint4 part = *reinterpret_cast<const uint4*>(address + 4 * i);
      words[i] = part.x, words[i + 1] = part.y, words[i + 2] = part.z, words[i + 3] = part.w;
    }
  }
}

// Elements k to k + count - 1, with zeros from `limit` on; count is 4, 8 or 16 and k a multiple of it.
template <int count>
__device__ __forceinline__ void load_elements(const Row& row, int k, int limit, float (&values)[count]) {
  if (!row.wide || k + count > limit || row.dtype == DType::kFloat64) {
#pragma unroll
    for (int i = 0; i < count; ++i) values[i] = k + i < limit ? load_element(row, k + i) : 0.0f;
  } else if (row.dtype == DType::kFloat32) {
    for (int i = 0; i < count; i += 4) {
      const float4 part = *reinterpret_cast<const float4*>(row.data + 4 * static_cast<std::int64_t>(k + i));
      values[i] = part.x, values[i + 1] = part.y, values[i + 2] = part.z, values[i + 3] = part.w;
    }
  } else {
    unsigned words[count / 2];
    load_words(row, k, words);
    for (int i = 0; i < count; ++i) {
      values[i] = widen(static_cast<unsigned short>(words[i / 2] >> (16 * (i % 2))), row.dtype);
    }
  }
}

__device__ __forceinline__ void store_element(const Row& row, std::int64_t k, float value) {
  char* const address = row.data + k * row.stride * bytes_of(row.dtype);
  if (row.dtype == DType::kFloat32) {
    *reinterpret_cast<float*>(address) = value;
  } else {
    *reinterpret_cast<unsigned short*>(address) = narrow(value, row.dtype);
  }
}

// Elements k to k + count - 1, those before `limit`; count is 4 or 8 and k a multiple of it.
template <int count>
__device__ __forceinline__ void store_elements(const Row& row, int k, int limit, const float (&values)[count]) {
  if (!row.wide || k + count > limit) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (k + i < limit) store_element(row, k + i, values[i]);
    }
  } else if (row.dtype == DType::kFloat32) {
    for (int i = 0; i < count; i += 4) {
      *reinterpret_cast<float4*>(row.data + 4 * static_cast<std::int64_t>(k + i)) =
          make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
    }
  } else {
    unsigned words[count / 2];
    for (int i = 0; i < count / 2; ++i) {
      words[i] = narrow(values[2 * i], row.dtype) | static_cast<unsigned>(narrow(values[2 * i + 1], row.dtype)) << 16;
    }
    char* const address = row.data + 2 * static_cast<std::int64_t>(k);
    if constexpr (count == 4) {
      *reinterpret_cast<uint2*>(address) = make_uint2(words[0], words[1]);
    } else {
      *reinterpret_cast<uint4*>(address) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

}  // namespace incline_fast::cuda
