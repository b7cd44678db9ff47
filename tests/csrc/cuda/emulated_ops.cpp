// The op library of csrc/cuda on CPU tensors: the same sources, with the emulator in the place of the device. Its ops
// are torch.ops.incline_fast_emulated.*; the test that loads it defines their schemas.
#define TORCH_TARGET_VERSION 0x020b000000000000
#include <torch/csrc/stable/library.h>

#include "bindings/affine_norm_op.cpp"
#include "bindings/cholesky_op.cpp"
#include "bindings/cuda_backend.cpp"

namespace incline_fast::cuda {

bool is_served(const torch::stable::Tensor& tensor) { return tensor.is_cpu(); }

OnDeviceOf::OnDeviceOf(const torch::stable::Tensor&) {}

unsigned* OnDeviceOf::tickets() const {
  static unsigned counters[kTicketCount] = {};
  return counters;
}

}  // namespace incline_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(incline_fast_emulated, CPU, m) {
  m.impl("affine_rms_norm", TORCH_BOX(&incline_fast::affine_rms_norm));
  m.impl("affine_layer_norm", TORCH_BOX(&incline_fast::affine_layer_norm));
  m.impl("affine_rms_norm_", TORCH_BOX(&incline_fast::affine_rms_norm_));
  m.impl("affine_layer_norm_", TORCH_BOX(&incline_fast::affine_layer_norm_));
  m.impl("cholesky_block", TORCH_BOX(&incline_fast::cholesky_block));
  m.impl("cholesky_block_", TORCH_BOX(&incline_fast::cholesky_block_));
  m.impl("triangular_inverse", TORCH_BOX(&incline_fast::triangular_inverse));
}

STABLE_TORCH_LIBRARY_FRAGMENT(incline_fast_emulated, m) { m.def("set_batch_invariant(bool enabled) -> ()"); }

STABLE_TORCH_LIBRARY_IMPL(incline_fast_emulated, CompositeExplicitAutograd, m) {
  m.impl("set_batch_invariant", TORCH_BOX(&incline_fast::cuda::set_batch_invariant));
}
