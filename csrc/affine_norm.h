// The fused op without torch: raw pointers, sizes and strides in, no allocation visible outside. A backend implements
// one function of this shape.
//
//   r  = x (+ residual)
//   r' = beta_i r_i + alpha_i (up_g (down_g r_i) + bias_g)     g = row_map[i]; rows with g < 0 keep r' = r
//   y  = RMSNorm(r') (weight + weight_offset)   or   LayerNorm(r') (weight + weight_offset) + norm_bias
//
// Sums run in fp64 when x or the residual is fp64, otherwise in fp32. r' is rounded once, to the dtype of `edited`, and
// the norm reads the rounded value.
#pragma once

#include <cstdint>

namespace incline_fast {

enum class DType : std::int8_t { kFloat32, kFloat64, kBFloat16, kFloat16, kInt8 };  // kInt8: maps only

// A strided array whose last dimension holds one row. `data` is null where an optional tensor is absent.
struct Rows {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t ndim = 0;
  const std::int64_t* sizes = nullptr;
  const std::int64_t* strides = nullptr;  // in elements
};

// G maps [columns, depth], strided as in nn.Linear or packed in panels of 16 columns: [G, ceil(columns / 16), depth,
// 16], in bf16 [G, ceil(columns / 16), ceil(depth / 2), 16, 2], filled up with zeros.
struct Maps {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  bool packed = false;
  std::int64_t columns = 0;
  std::int64_t depth = 0;
  std::int64_t map_stride = 0;     // in elements; also of a packed stack
  std::int64_t column_stride = 0;  // unpacked only
  std::int64_t depth_stride = 0;   // unpacked only
  const float* scale = nullptr;    // [G, columns], multiplies the finished sums of int8 maps; null for others
};

// kNone, which the CPU's kernels alone know: the edit without a norm. Rows without a map are not touched, and y, where
// there is one, receives zeros in the others.
enum class Norm : std::int8_t { kRms, kLayer, kNone };

struct AffineNorm {
  Norm norm = Norm::kRms;
  std::int64_t num_rows = 0;
  std::int64_t hidden_size = 0;
  Rows x;
  Rows residual;   // optional
  Rows edited;     // r', out; may be x or residual
  Rows y;          // out; may be x when there is a residual; optional without a norm
  Rows weight;     // one row; absent without a norm
  Rows norm_bias;  // optional, one row
  Rows bias;       // optional, one row or one per map
  Maps down;       // optional: absent for dense maps
  Maps up;
  Rows row_alpha;                         // optional: one value per row, multiplied by alpha
  Rows row_beta;                          // optional: likewise
  const std::int32_t* row_map = nullptr;  // optional: absent means map 0 for every row
  std::int64_t row_map_stride = 0;
  std::int64_t num_maps = 0;
  double alpha = 1.0;
  double beta = 1.0;
  double eps = 0.0;
  double weight_offset = 0.0;
};

// How a backend spreads work: body(begin, end, context) over disjoint ranges, none shorter than `grain` but the last.
struct Threads {
  std::int64_t count = 1;
  void (*parallel_for)(std::int64_t begin, std::int64_t end, std::int64_t grain,
                       void (*body)(std::int64_t, std::int64_t, void*), void* context) = nullptr;
};

}  // namespace incline_fast
