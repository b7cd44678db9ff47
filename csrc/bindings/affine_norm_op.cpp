#include <torch/csrc/stable/ops.h>

#include <cstddef>
#include <string>
#include <tuple>

#include "../affine_norm.h"
#include "backend.h"
#include "check.h"
#include "ops.h"

namespace incline_fast {
namespace {

constexpr std::int64_t kPanel = 16;

// Arguments that all four forms share.
struct Arguments {
  const Tensor& x;  // in place, the residual stream: all other tensors have to be on its device
  Norm norm;
  const Tensor& weight;
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

void* address(const Tensor& tensor, bool output) {
  // Rows describes inputs and outputs alike, so that its pointer is not const; backends write to outputs alone.
  return output ? tensor.mutable_data_ptr() : const_cast<void*>(tensor.const_data_ptr());
}

// Every property of a tensor is a call into torch, and these calls are most of the time of a small op: `type` is passed
// in because the check before has read it already.
Rows rows(const Tensor& tensor, ScalarType type, bool output = false) {
  const Sizes sizes = tensor.sizes();
  return {address(tensor, output), dtype_of(type), static_cast<std::int64_t>(sizes.size()), sizes.data(),
          tensor.strides().data()};
}

Rows vector(const Arguments& args, const char* name, const MaybeTensor& tensor, std::int64_t size,
            const char* meaning) {
  if (!tensor.has_value()) return {};
  check_device(name, *tensor, args.x);
  const ScalarType type = check_float(name, *tensor);
  check_shape(name, *tensor, {size}, meaning);
  return rows(*tensor, type);
}

// The factors of int8 maps; null for other maps.
const float* scales(const Arguments& args, const char* map, const Tensor& tensor, ScalarType type,
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
bool is_packed(ScalarType type, std::int64_t dim) { return dim == (type == ScalarType::BFloat16 ? 5 : 4); }

bool fits(const Sizes& s, bool packed, ScalarType type, std::int64_t columns, std::int64_t depth) {
  if (!packed) return s.size() == 3 && s[1] == columns && s[2] == depth;
  const std::int64_t panels = (columns + kPanel - 1) / kPanel;
  if (type == ScalarType::BFloat16) return s.slice(1).equals({panels, (depth + 1) / 2, kPanel, 2});
  return s.slice(1).equals({panels, depth, kPanel});
}

Maps maps(const Arguments& args, const char* name, const Tensor& tensor, const MaybeTensor& scale, std::int64_t columns,
          std::int64_t depth, bool is_double) {
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
std::int64_t rank_of(const Tensor& down, const Tensor& up) {
  if (down.dim() == 3) return down.size(1);
  return up.dim() == 5 ? 2 * up.size(2) : up.size(2);
}

void describe_maps(const Arguments& args, bool is_double, AffineNorm& op) {
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

void describe_bias(const Arguments& args, AffineNorm& op) {
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

void describe_row_map(const Arguments& args, AffineNorm& op) {
  if (!args.row_map.has_value()) return;
  check_device("row_map", *args.row_map, args.x);
  check_dtype("row_map", *args.row_map, {ScalarType::Int});
  check_shape("row_map", *args.row_map, {op.num_rows}, "the number of rows of x");
  op.row_map = static_cast<const std::int32_t*>(args.row_map->const_data_ptr());
  op.row_map_stride = args.row_map->stride(0);
  if (!backend::reads_values()) return;
  for (std::int64_t i = 0; i < op.num_rows; ++i) {
    const std::int32_t map = op.row_map[i * op.row_map_stride];
    if (map >= op.num_maps) fail("row_map holds ", map, "; allowed: below ", op.num_maps, ", the number of maps");
  }
}

struct Types {
  ScalarType x;
  ScalarType residual;  // of x where there is no residual; also of r'
  ScalarType y;
};

Types check_inputs(const Tensor& x, const MaybeTensor& residual) {
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

// `y` and `edited` are the outputs; they may share memory with x or residual, but not with each other.
void run(const Tensor& x, const MaybeTensor& residual, const Types& types, const Tensor& y, const Tensor& edited,
         const Arguments& args) {
  AffineNorm op;
  op.norm = args.norm;
  op.hidden_size = x.size(x.dim() - 1);
  op.num_rows = x.numel() / op.hidden_size;
  op.weight = vector(args, "weight", args.weight, op.hidden_size, "the hidden size");
  op.norm_bias = vector(args, "norm_bias", args.norm_bias, op.hidden_size, "the hidden size");
  op.row_alpha = vector(args, "row_alpha", args.row_alpha, op.num_rows, "the number of rows of x");
  op.row_beta = vector(args, "row_beta", args.row_beta, op.num_rows, "the number of rows of x");
  describe_maps(args, types.x == ScalarType::Double || types.residual == ScalarType::Double, op);
  describe_bias(args, op);
  describe_row_map(args, op);
  if (op.num_rows == 0) return;
  op.x = rows(x, types.x);
  if (residual.has_value()) op.residual = rows(*residual, types.residual);
  op.y = rows(y, types.y, true);
  op.edited = rows(edited, types.residual, true);
  op.alpha = args.alpha;
  op.beta = args.beta;
  op.eps = args.eps;
  op.weight_offset = args.weight_offset;
  backend::affine_norm(op, {x, residual, args.down, args.up});
}

std::tuple<Tensor, Tensor> functional(const Tensor& x, const MaybeTensor& residual, const Arguments& args) {
  const Types types = check_inputs(x, residual);
  Tensor y = torch::stable::new_empty(x, x.sizes());
  Tensor edited = torch::stable::new_empty(residual.has_value() ? *residual : x, x.sizes());
  run(x, residual, types, y, edited, args);
  return {y, edited};
}

void in_place(const Tensor& y, const Tensor& residual, bool add_y, const Arguments& args) {
  const Types types = check_inputs(y, residual);
  check_writable("y", y);
  check_writable("residual", residual);
  if (y.numel() > 0 && y.const_data_ptr() == residual.const_data_ptr()) {
    fail("y and residual share memory; they receive two outputs and must be different");
  }
  if (add_y) {
    run(y, residual, types, y, residual, args);
  } else {
    run(residual, std::nullopt, {types.residual, types.residual, types.y}, y, residual, args);
  }
}

std::tuple<Tensor, Tensor> affine_rms_norm(const Tensor& x, const MaybeTensor& residual, const Tensor& weight,
                                           const MaybeTensor& down, const Tensor& up, const MaybeTensor& down_scale,
                                           const MaybeTensor& up_scale, const MaybeTensor& bias,
                                           const MaybeTensor& row_alpha, const MaybeTensor& row_beta,
                                           const MaybeTensor& row_map, double alpha, double beta, double eps,
                                           double weight_offset) {
  return functional(x, residual,
                    {x, Norm::kRms, weight, std::nullopt, down, up, down_scale, up_scale, bias, row_alpha, row_beta,
                     row_map, alpha, beta, eps, weight_offset});
}

std::tuple<Tensor, Tensor> affine_layer_norm(const Tensor& x, const MaybeTensor& residual, const Tensor& weight,
                                             const MaybeTensor& norm_bias, const MaybeTensor& down, const Tensor& up,
                                             const MaybeTensor& down_scale, const MaybeTensor& up_scale,
                                             const MaybeTensor& bias, const MaybeTensor& row_alpha,
                                             const MaybeTensor& row_beta, const MaybeTensor& row_map, double alpha,
                                             double beta, double eps, double weight_offset) {
  return functional(x, residual,
                    {x, Norm::kLayer, weight, norm_bias, down, up, down_scale, up_scale, bias, row_alpha, row_beta,
                     row_map, alpha, beta, eps, weight_offset});
}

void affine_layer_norm_(Tensor y, Tensor residual, bool add_y, const Tensor& weight, const MaybeTensor& norm_bias,
                        const MaybeTensor& down, const Tensor& up, const MaybeTensor& down_scale,
                        const MaybeTensor& up_scale, const MaybeTensor& bias, const MaybeTensor& row_alpha,
                        const MaybeTensor& row_beta, const MaybeTensor& row_map, double alpha, double beta, double eps,
                        double weight_offset) {
  in_place(y, residual, add_y,
           {residual, Norm::kLayer, weight, norm_bias, down, up, down_scale, up_scale, bias, row_alpha, row_beta,
            row_map, alpha, beta, eps, weight_offset});
}

}  // namespace

void affine_rms_norm_(Tensor y, Tensor residual, bool add_y, const Tensor& weight, const MaybeTensor& down,
                      const Tensor& up, const MaybeTensor& down_scale, const MaybeTensor& up_scale,
                      const MaybeTensor& bias, const MaybeTensor& row_alpha, const MaybeTensor& row_beta,
                      const MaybeTensor& row_map, double alpha, double beta, double eps, double weight_offset) {
  in_place(y, residual, add_y,
           {residual, Norm::kRms, weight, std::nullopt, down, up, down_scale, up_scale, bias, row_alpha, row_beta,
            row_map, alpha, beta, eps, weight_offset});
}

void define_affine_norm(Library& library) {
  const std::string edit =
      "Tensor? down, Tensor up, Tensor? down_scale, Tensor? up_scale, Tensor? bias, Tensor? row_alpha, Tensor? "
      "row_beta, "
      "Tensor? row_map, float alpha, float beta, float eps, float weight_offset) -> ";
  for (const std::string name : {"affine_rms_norm", "affine_layer_norm"}) {
    const std::string norm = name == "affine_rms_norm" ? "Tensor weight, " : "Tensor weight, Tensor? norm_bias, ";
    library.def((name + "(Tensor x, Tensor? residual, " + norm + edit + "(Tensor, Tensor)").c_str());
    library.def((name + "_(Tensor(a!) y, Tensor(b!) residual, bool add_y, " + norm + edit + "()").c_str());
  }
}

void register_affine_norm(Library& library) {
  library.impl("affine_rms_norm", TORCH_BOX(&affine_rms_norm));
  library.impl("affine_layer_norm", TORCH_BOX(&affine_layer_norm));
  library.impl("affine_rms_norm_", TORCH_BOX(&affine_rms_norm_));
  library.impl("affine_layer_norm_", TORCH_BOX(&affine_layer_norm_));
}

}  // namespace incline_fast
