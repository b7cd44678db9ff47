#include <torch/csrc/stable/ops.h>

#include <string>
#include <tuple>

#include "backend.h"
#include "describe.h"
#include "ops.h"

namespace incline_fast {
namespace {

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

// In place: `residual` holds the residual stream on entry and r' on return; `y` receives the normalised rows. With
// `add_y`, y holds a block's output on entry and is added to the residual stream first.
void affine_layer_norm_(Tensor y, Tensor residual, bool add_y, const Tensor& weight, const MaybeTensor& norm_bias,
                        const MaybeTensor& down, const Tensor& up, const MaybeTensor& down_scale,
                        const MaybeTensor& up_scale, const MaybeTensor& bias, const MaybeTensor& row_alpha,
                        const MaybeTensor& row_beta, const MaybeTensor& row_map, double alpha, double beta, double eps,
                        double weight_offset) {
  in_place(y, residual, add_y,
           {residual, Norm::kLayer, weight, norm_bias, down, up, down_scale, up_scale, bias, row_alpha, row_beta,
            row_map, alpha, beta, eps, weight_offset});
}

void affine_rms_norm_(Tensor y, Tensor residual, bool add_y, const Tensor& weight, const MaybeTensor& down,
                      const Tensor& up, const MaybeTensor& down_scale, const MaybeTensor& up_scale,
                      const MaybeTensor& bias, const MaybeTensor& row_alpha, const MaybeTensor& row_beta,
                      const MaybeTensor& row_map, double alpha, double beta, double eps, double weight_offset) {
  in_place(y, residual, add_y,
           {residual, Norm::kRms, weight, std::nullopt, down, up, down_scale, up_scale, bias, row_alpha, row_beta,
            row_map, alpha, beta, eps, weight_offset});
}

}  // namespace

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
