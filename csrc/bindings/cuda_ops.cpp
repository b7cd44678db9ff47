// Registration for CUDA, nothing else; the schemas of what CPUs have too are in cpu_ops.cpp.
#include <torch/csrc/stable/library.h>

#include "affine_norm_op.h"
#include "batch_invariance.h"
#include "cholesky_op.h"

STABLE_TORCH_LIBRARY_IMPL(incline_fast, CUDA, m) {
  m.impl("affine_rms_norm", TORCH_BOX(&incline_fast::affine_rms_norm));
  m.impl("affine_layer_norm", TORCH_BOX(&incline_fast::affine_layer_norm));
  m.impl("affine_rms_norm_", TORCH_BOX(&incline_fast::affine_rms_norm_));
  m.impl("affine_layer_norm_", TORCH_BOX(&incline_fast::affine_layer_norm_));
  m.impl("cholesky_block", TORCH_BOX(&incline_fast::cholesky_block));
  m.impl("cholesky_block_", TORCH_BOX(&incline_fast::cholesky_block_));
  m.impl("triangular_inverse", TORCH_BOX(&incline_fast::triangular_inverse));
}

STABLE_TORCH_LIBRARY_FRAGMENT(incline_fast, m) { m.def("set_batch_invariant(bool enabled) -> ()"); }

STABLE_TORCH_LIBRARY_IMPL(incline_fast, CompositeExplicitAutograd, m) {
  m.impl("set_batch_invariant", TORCH_BOX(&incline_fast::cuda::set_batch_invariant));
}
