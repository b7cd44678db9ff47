#include <torch/csrc/stable/ops.h>

#include <cstddef>
#include <cstring>
#include <vector>

#include "check.h"
#include "ops.h"

namespace incline_fast {
namespace {

constexpr const char* kRowsOrMore = ", the number of rows of x, or more";

// A stack of rows whose elements lie side by side, addressed in bytes.
struct ByteRows {
  std::byte* data;
  std::size_t stride;
  std::size_t size;

  std::byte* row(std::int64_t i) const { return data + static_cast<std::size_t>(i) * stride; }
};

std::size_t bytes_of(ScalarType type) {
  switch (dtype_of(type)) {
    case DType::kFloat64:
      return 8;
    case DType::kFloat32:
      return 4;
    default:
      return 2;
  }
}

ByteRows byte_rows(const char* name, const Tensor& tensor) {
  const std::size_t bytes = bytes_of(check_float(name, tensor));
  const std::int64_t dim = tensor.dim();
  const bool strided_rows = dim == 2 && tensor.stride(1) == 1;
  if (!strided_rows && !tensor.is_contiguous()) {
    fail(name, " has rows that are not contiguous; expected [num_rows, d] with stride 1 in d, or a contiguous tensor");
  }
  const std::size_t size = static_cast<std::size_t>(tensor.size(dim - 1)) * bytes;
  const std::size_t stride = strided_rows ? static_cast<std::size_t>(tensor.stride(0)) * bytes : size;
  return {static_cast<std::byte*>(tensor.mutable_data_ptr()), stride, size};
}

void check_per_row(const char* name, const Tensor& tensor, const Tensor& x, std::int64_t rows) {
  check_device(name, tensor, x);
  if (tensor.dim() != 1 || tensor.size(0) < rows) {
    fail(name, " has shape ", show(tensor.sizes()), "; expected (", rows, ",)", kRowsOrMore);
  }
  if (tensor.stride(0) != 1) fail(name, " is not contiguous; pass ", name, ".contiguous()");
}

std::vector<std::int64_t> edited_rows(const std::int32_t* row_map, std::int64_t rows) {
  std::vector<std::int64_t> edited;
  for (std::int64_t i = 0; i < rows; ++i) {
    if (row_map[i] >= 0) edited.push_back(i);
  }
  return edited;
}

// Most steps of a serving engine edit no row, and then this loop is all that runs; it is written so that the compiler
// can vectorise it.
bool any_edited(const std::int32_t* row_map, std::int64_t rows) {
  std::int32_t all = -1;
  for (std::int64_t i = 0; i < rows; ++i) all &= row_map[i];
  return all >= 0;
}

Tensor gathered(const Tensor& source, const ByteRows& rows, const std::vector<std::int64_t>& chosen) {
  const std::int64_t count = static_cast<std::int64_t>(chosen.size());
  Tensor result = torch::stable::new_empty(source, {count, source.size(source.dim() - 1)});
  auto* out = static_cast<std::byte*>(result.mutable_data_ptr());
  for (std::int64_t i = 0; i < count; ++i) {
    std::memcpy(out + static_cast<std::size_t>(i) * rows.size, rows.row(chosen[i]), rows.size);
  }
  return result;
}

Tensor gathered(const Tensor& source, const std::vector<std::int64_t>& chosen, std::size_t bytes) {
  const std::int64_t count = static_cast<std::int64_t>(chosen.size());
  Tensor result = torch::stable::new_empty(source, {count});
  const auto* in = static_cast<const std::byte*>(source.const_data_ptr());
  auto* out = static_cast<std::byte*>(result.mutable_data_ptr());
  for (std::int64_t i = 0; i < count; ++i) {
    std::memcpy(out + static_cast<std::size_t>(i) * bytes, in + static_cast<std::size_t>(chosen[i]) * bytes, bytes);
  }
  return result;
}

// The edit alone, without the norm that follows it: for serving engines that keep their own norms.
//
// Rows with row_map >= 0 of the residual stream r = x (+ residual): r <- row_beta r + row_alpha (M r + bias). Without a
// residual, x is r. With one, the residual receives the edited row and x a row of zeros, so that x + residual is the
// edited row. Other rows are not touched. row_alpha, row_beta and row_map may be longer than x has rows.
void affine_residual_(Tensor x, MaybeTensor residual, const MaybeTensor& down, const Tensor& up,
                      const MaybeTensor& down_scale, const MaybeTensor& up_scale, const MaybeTensor& bias,
                      const Tensor& row_alpha, const Tensor& row_beta, const Tensor& row_map) {
  check_served("x", x);
  if (x.dim() < 1 || x.size(x.dim() - 1) < 1) {
    fail("x has shape ", show(x.sizes()), "; expected [..., d] with d >= 1");
  }
  const std::int64_t rows = x.numel() / x.size(x.dim() - 1);
  check_dtype("row_map", row_map, {ScalarType::Int});
  check_per_row("row_map", row_map, x, rows);
  const auto* map = static_cast<const std::int32_t*>(row_map.const_data_ptr());
  if (!any_edited(map, rows)) return;
  check_per_row("row_alpha", row_alpha, x, rows);
  check_per_row("row_beta", row_beta, x, rows);
  check_writable("x", x);
  if (residual.has_value()) {
    check_device("residual", *residual, x);
    check_shape("residual", *residual, x.sizes(), "the shape of x");
    check_writable("residual", *residual);
  }

  const std::vector<std::int64_t> chosen = edited_rows(map, rows);
  const ByteRows x_rows = byte_rows("x", x);
  const ByteRows residual_rows = residual.has_value() ? byte_rows("residual", *residual) : x_rows;
  Tensor edited = residual.has_value() ? gathered(*residual, residual_rows, chosen) : gathered(x, x_rows, chosen);
  Tensor y = residual.has_value() ? gathered(x, x_rows, chosen) : torch::stable::new_empty(edited, edited.sizes());
  // The fused op also normalises. Its normalised rows are thrown away here, so any weight will do.
  const Tensor weight = torch::stable::new_zeros(x, {x.size(x.dim() - 1)});
  affine_rms_norm_(y, edited, residual.has_value(), weight, down, up, down_scale, up_scale, bias,
                   gathered(row_alpha, chosen, bytes_of(check_float("row_alpha", row_alpha))),
                   gathered(row_beta, chosen, bytes_of(check_float("row_beta", row_beta))),
                   gathered(row_map, chosen, sizeof(std::int32_t)), 1.0, 1.0, 1.0, 0.0);
  const auto* from = static_cast<const std::byte*>(edited.const_data_ptr());
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    std::memcpy(residual_rows.row(chosen[i]), from + i * residual_rows.size, residual_rows.size);
    if (residual.has_value()) std::memset(x_rows.row(chosen[i]), 0, x_rows.size);
  }
}

}  // namespace

void define_affine_residual(Library& library) {
  library.def(
      "affine_residual_(Tensor(a!) x, Tensor(b!)? residual, Tensor? down, Tensor up, Tensor? down_scale, "
      "Tensor? up_scale, Tensor? bias, Tensor row_alpha, Tensor row_beta, Tensor row_map) -> ()");
}

void register_affine_residual(Library& library) { library.impl("affine_residual_", TORCH_BOX(&affine_residual_)); }

}  // namespace incline_fast
