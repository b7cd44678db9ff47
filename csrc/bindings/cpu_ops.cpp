// Schemas, and registration for the CPU; nothing else.
#include <torch/csrc/stable/library.h>

#include <string>

#include "../cpu/dispatch.h"
#include "affine_norm_op.h"
#include "affine_residual_op.h"
#include "cholesky_op.h"

namespace {

std::string cpu_isa() { return incline_fast::cpu::isa_name(); }

}  // namespace

STABLE_TORCH_LIBRARY(incline_fast, m) {
  m.def(
      "affine_rms_norm(Tensor x, Tensor? residual, Tensor weight, Tensor? down, Tensor up, Tensor? down_scale, "
      "Tensor? up_scale, Tensor? bias, Tensor? row_alpha, Tensor? row_beta, Tensor? row_map, float alpha, float beta, "
      "float eps, float weight_offset) -> (Tensor, Tensor)");
  m.def(
      "affine_layer_norm(Tensor x, Tensor? residual, Tensor weight, Tensor? norm_bias, Tensor? down, Tensor up, "
      "Tensor? down_scale, Tensor? up_scale, Tensor? bias, Tensor? row_alpha, Tensor? row_beta, Tensor? row_map, "
      "float alpha, float beta, float eps, float weight_offset) -> (Tensor, Tensor)");
  m.def(
      "affine_rms_norm_(Tensor(a!) y, Tensor(b!) stream, bool add_y, Tensor weight, Tensor? down, Tensor up, "
      "Tensor? down_scale, Tensor? up_scale, Tensor? bias, Tensor? row_alpha, Tensor? row_beta, Tensor? row_map, "
      "float alpha, float beta, float eps, float weight_offset) -> ()");
  m.def(
      "affine_layer_norm_(Tensor(a!) y, Tensor(b!) stream, bool add_y, Tensor weight, Tensor? norm_bias, "
      "Tensor? down, Tensor up, Tensor? down_scale, Tensor? up_scale, Tensor? bias, Tensor? row_alpha, "
      "Tensor? row_beta, Tensor? row_map, float alpha, float beta, float eps, float weight_offset) -> ()");
  m.def(
      "affine_residual_(Tensor(a!) x, Tensor(b!)? residual, Tensor? down, Tensor up, Tensor? down_scale, "
      "Tensor? up_scale, Tensor? bias, Tensor row_alpha, Tensor row_beta, Tensor row_map) -> ()");
  m.def("cholesky_block(Tensor A) -> (Tensor, Tensor)");
  m.def("cholesky_block_(Tensor(a!) A, Tensor(b!)? inverse, Tensor(c!) info, int first) -> ()");
  m.def("triangular_inverse(Tensor L) -> Tensor");
  m.def("cpu_isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(incline_fast, CPU, m) {
  m.impl("affine_rms_norm", TORCH_BOX(&incline_fast::affine_rms_norm));
  m.impl("affine_layer_norm", TORCH_BOX(&incline_fast::affine_layer_norm));
  m.impl("affine_rms_norm_", TORCH_BOX(&incline_fast::affine_rms_norm_));
  m.impl("affine_layer_norm_", TORCH_BOX(&incline_fast::affine_layer_norm_));
  m.impl("affine_residual_", TORCH_BOX(&incline_fast::affine_residual_));
  m.impl("cholesky_block", TORCH_BOX(&incline_fast::cholesky_block));
  m.impl("cholesky_block_", TORCH_BOX(&incline_fast::cholesky_block_));
  m.impl("triangular_inverse", TORCH_BOX(&incline_fast::triangular_inverse));
}

STABLE_TORCH_LIBRARY_IMPL(incline_fast, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&cpu_isa)); }
