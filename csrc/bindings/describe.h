// Torch tensors as the arrays and maps that a backend takes; what the ops do not define is refused on the way.
#pragma once

#include <cstdint>
#include <string>

#include "../affine_norm.h"
#include "backend.h"
#include "check.h"
#include "ops.h"

namespace incline_fast {

constexpr std::int64_t kPanel = 16;

// Arguments that all forms of the op share.
struct Arguments {
  const Tensor& x;  // in place, the residual stream: all other tensors have to be on its device
  Norm norm;
  const MaybeTensor& weight;
  const MaybeTensor& norm_bias;
  const MaybeTensor& down;
  const Tensor& up;
  const MaybeTensor& down_scale;
  const MaybeTensor& up_scale;
  const MaybeTensor& bias;
  const MaybeTensor& row_alpha;
  const MaybeTensor& row_beta;
  const MaybeTensor& row_map;
  double alpha;
  double beta;
  double eps;
  double weight_offset;
};

inline void* address(const Tensor& tensor, bool output) {
  // Rows describes inputs and outputs alike, so that its pointer is not const; backends write to outputs alone.
  return output ? tensor.mutable_data_ptr() : const_cast<void*>(tensor.const_data_ptr());
}

// Every property of a tensor is a call into torch, and these calls are most of the time of a small op: `type` is passed
// in because the check before has read it already.
inline Rows rows(const Tensor& tensor, ScalarType type, bool output = false) {
  const Sizes sizes = tensor.sizes();
  return {address(tensor, output), dtype_of(type), static_cast<std::int64_t>(sizes.size()), sizes.data(),
          tensor.strides().data()};
}

inline Rows vector(const Arguments& args, const char* name, const MaybeTensor& tensor, std::int64_t size,
                   const char* meaning) {
  if (!tensor.has_value()) return {};
  check_device(name, *tensor, args.x);
  const ScalarType type = check_float(name, *tensor);
  check_shape(name, *tensor, {size}, meaning);
  return rows(*tensor, type);
}

// The factors of int8 maps; null for other maps.
inline const float* scales(const Arguments& args, const char* map, const Tensor& tensor, ScalarType type,
                           const MaybeTensor& scale, std::int64_t columns) {
  if (type != ScalarType::Char) {
    if (scale.has_value()) fail(map, "_scale is given, but ", map, " is not int8; only int8 weights have a scale");
    return nullptr;
  }
  const std::string name = std::string(map) + "_scale";
  if (!scale.has_value()) fail(name, " is absent, but ", map, " is int8; expected float32 [G, ", columns, "]");
  check_device(name.c_str(), *scale, args.x);
  check_dtype(name.c_str(), *scale, {ScalarType::Float});
  check_shape(name.c_str(), *scale, {tensor.size(0), columns}, "one factor per output column");
  if (!scale->is_contiguous()) fail(name, " is not contiguous; pass ", name, ".contiguous()");
  return static_cast<const float*>(scale->const_data_ptr());
}

// A map in the kernels' panels: [G, panels, depth, 16], or [G, panels, ceil(depth / 2), 16, 2] in bf16.
inline bool is_packed(ScalarType type, std::int64_t dim) { return dim == (type == ScalarType::BFloat16 ? 5 : 4); }

inline bool fits(const Sizes& s, bool packed, ScalarType type, std::int64_t columns, std::int64_t depth) {
  if (!packed) return s.size() == 3 && s[1] == columns && s[2] == depth;
  const std::int64_t panels = (columns + kPanel - 1) / kPanel;
  if (type == ScalarType::BFloat16) return s.slice(1).equals({panels, (depth + 1) / 2, kPanel, 2});
  return s.slice(1).equals({panels, depth, kPanel});
}

inline Maps maps(const Arguments& args, const char* name, const Tensor& tensor, const MaybeTensor& scale,
                 std::int64_t columns, std::int64_t depth, bool is_double) {
  check_device(name, tensor, args.x);
  const ScalarType type =
      is_double
          ? check_dtype(name, tensor, {ScalarType::Double})
          : check_dtype(name, tensor, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Char});
  const Sizes s = tensor.sizes(), t = tensor.strides();
  const bool packed = is_packed(type, s.size());
  if (s.size() == 0 || !fits(s, packed, type, columns, depth) || s[0] < 1 || depth < 1) {
    fail(name, " has shape ", show(s), "; expected [G, ", columns, ", ", depth,
         "] or what pack() makes of it, with G >= 1");
  }
  if (packed && !tensor.is_contiguous()) fail(name, " is packed but not contiguous; pass ", name, ".contiguous()");
  return {address(tensor, false),
          dtype_of(type),
          packed,
          columns,
          depth,
          t[0],
          packed ? 0 : t[1],
          packed ? 0 : t[2],
          scales(args, name, tensor, type, scale, columns)};
}

// The rank, from a factor whose shape has it. Two packed bf16 factors have it rounded up to an even number; the column
// that packing added holds zeros.
inline std::int64_t rank_of(const Tensor& down, const Tensor& up) {
  if (down.dim() == 3) return down.size(1);
  return up.dim() == 5 ? 2 * up.size(2) : up.size(2);
}

inline void describe_maps(const Arguments& args, bool is_double, AffineNorm& op) {
  const std::int64_t hidden = op.hidden_size;
  if (!args.down.has_value()) {
    op.up = maps(args, "up", args.up, args.up_scale, hidden, hidden, is_double);
    if (args.down_scale.has_value()) fail("down_scale is given, but down is not int8; only int8 weights have a scale");
    op.num_maps = args.up.size(0);
    return;
  }
  if (args.up.dim() != 3 && !is_packed(args.up.scalar_type(), args.up.dim())) {
    fail("up has shape ", show(args.up.sizes()), "; expected [G, d, rank] or what pack() makes of it");
  }
  const std::int64_t rank = rank_of(*args.down, args.up);
  op.up = maps(args, "up", args.up, args.up_scale, hidden, rank, is_double);
  op.down = maps(args, "down", *args.down, args.down_scale, rank, hidden, is_double);
  op.num_maps = args.up.size(0);
  if (args.down->size(0) != op.num_maps) {
    fail("down holds ", args.down->size(0), " maps; expected ", op.num_maps, ", as many as up");
  }
}

inline void describe_bias(const Arguments& args, AffineNorm& op) {
  if (!args.bias.has_value()) return;
  check_device("bias", *args.bias, args.x);
  const ScalarType type = check_float("bias", *args.bias);
  if (args.bias->dim() == 1) {
    check_shape("bias", *args.bias, {op.hidden_size}, "the hidden size");
  } else {
    check_shape("bias", *args.bias, {op.num_maps, op.hidden_size}, "one bias per map");
  }
  op.bias = rows(*args.bias, type);
}

inline void read_row_map(const Tensor& row_map, AffineNorm& op) {
  op.row_map = static_cast<const std::int32_t*>(row_map.const_data_ptr());
  op.row_map_stride = row_map.stride(0);
  if (!backend::reads_values()) return;
  for (std::int64_t i = 0; i < op.num_rows; ++i) {
    const std::int32_t map = op.row_map[i * op.row_map_stride];
    if (map >= op.num_maps) fail("row_map holds ", map, "; allowed: below ", op.num_maps, ", the number of maps");
  }
}

inline void describe_row_map(const Arguments& args, AffineNorm& op) {
  if (!args.row_map.has_value()) return;
  check_device("row_map", *args.row_map, args.x);
  check_dtype("row_map", *args.row_map, {ScalarType::Int});
  check_shape("row_map", *args.row_map, {op.num_rows}, "the number of rows of x");
  read_row_map(*args.row_map, op);
}

struct Types {
  ScalarType x;
  ScalarType residual;  // of x where there is no residual; also of r'
  ScalarType y;
};

inline Types check_inputs(const Tensor& x, const MaybeTensor& residual) {
  check_served("x", x);
  const ScalarType type = check_float("x", x);
  if (x.dim() < 1 || x.size(x.dim() - 1) < 1) {
    fail("x has shape ", show(x.sizes()), "; expected [..., d] with d >= 1");
  }
  if (!residual.has_value()) return {type, type, type};
  check_device("residual", *residual, x);
  const ScalarType residual_type = check_dtype("residual", *residual, {type, ScalarType::Float, ScalarType::Double});
  check_shape("residual", *residual, x.sizes(), "the shape of x");
  return {type, residual_type, type};
}

}  // namespace incline_fast
