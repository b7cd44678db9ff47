#include <cstdint>
#include <optional>

#include "describe.h"
#include "ops.h"

namespace incline_fast {
namespace {

// One value per row of x; further ones belong to a larger batch.
Rows row_buffer(const char* name, const Tensor& tensor, const Tensor& x, std::int64_t num_rows) {
  check_device(name, tensor, x);
  if (tensor.dim() != 1 || tensor.size(0) < num_rows) {
    fail(name, " has shape ", show(tensor.sizes()), "; expected (", num_rows, ",), the number of rows of x, or more");
  }
  return rows(tensor, tensor.scalar_type());
}

// Most steps of a serving engine edit no row, and then this loop is all that runs; it is written so that the compiler
// can vectorise it.
bool any_edited(const std::int32_t* row_map, std::int64_t rows) {
  std::int32_t all = -1;
  for (std::int64_t i = 0; i < rows; ++i) all &= row_map[i];
  return all >= 0;
}

// The edit alone, without the norm that follows it: for prompts, of which few rows are edited.
//
// Rows with row_map >= 0 of the residual stream r = x (+ residual): r <- row_beta r + row_alpha (M r + bias). Without a
// residual, x is r. With one, the residual receives the edited row and x a row of zeros, so that x + residual is the
// edited row. Other rows are not touched. row_alpha, row_beta and row_map may be longer than x has rows.
void affine_residual_(Tensor x, MaybeTensor residual, const MaybeTensor& down, const Tensor& up,
                      const MaybeTensor& down_scale, const MaybeTensor& up_scale, const MaybeTensor& bias,
                      const Tensor& row_alpha, const Tensor& row_beta, const Tensor& row_map) {
  const Types types = check_inputs(x, std::nullopt);
  AffineNorm op;
  op.norm = Norm::kNone;
  op.hidden_size = x.size(x.dim() - 1);
  op.num_rows = x.numel() / op.hidden_size;
  check_dtype("row_map", row_map, {ScalarType::Int});
  const Rows buffer = row_buffer("row_map", row_map, x, op.num_rows);
  if (buffer.strides[0] != 1) fail("row_map is not contiguous; pass row_map.contiguous()");
  if (!any_edited(static_cast<const std::int32_t*>(buffer.data), op.num_rows)) return;

  check_float("row_alpha", row_alpha);
  check_float("row_beta", row_beta);
  op.row_alpha = row_buffer("row_alpha", row_alpha, x, op.num_rows);
  op.row_beta = row_buffer("row_beta", row_beta, x, op.num_rows);
  check_writable("x", x);
  op.x = op.edited = rows(x, types.x, true);
  ScalarType residual_type = types.x;
  if (residual.has_value()) {
    residual_type = check_inputs(x, residual).residual;
    check_writable("residual", *residual);
    if (residual->const_data_ptr() == x.const_data_ptr()) {
      fail("x and residual share memory; they receive two outputs and must be different");
    }
    op.residual = op.edited = rows(*residual, residual_type, true);
    op.y = op.x;
  }
  const MaybeTensor none;
  const Arguments args{x,    op.norm, none, none, down, up,  down_scale, up_scale,
                       bias, none,    none, none, 1.0,  1.0, 0.0,        0.0};
  describe_maps(args, types.x == ScalarType::Double || residual_type == ScalarType::Double, op);
  describe_bias(args, op);
  read_row_map(row_map, op);
  backend::affine_norm(op, {x, residual, down, up});
}

}  // namespace

void define_affine_residual(Library& library) {
  library.def(
      "affine_residual_(Tensor(a!) x, Tensor(b!)? residual, Tensor? down, Tensor up, Tensor? down_scale, "
      "Tensor? up_scale, Tensor? bias, Tensor row_alpha, Tensor row_beta, Tensor row_map) -> ()");
}

void register_affine_residual(Library& library) { library.impl("affine_residual_", TORCH_BOX(&affine_residual_)); }

}  // namespace incline_fast
