// The op library of csrc/cuda on CPU tensors: the same sources, with the emulator in the place of the device. Its ops
// are torch.ops.incline_fast_emulated.*
#define TORCH_TARGET_VERSION 0x020b000000000000
#include "bindings/affine_norm_op.cpp"
#include "bindings/cholesky_op.cpp"
#include "bindings/cuda_backend.cpp"
#include "bindings/ops.h"

namespace incline_fast::cuda {

bool is_served(const torch::stable::Tensor& tensor) { return tensor.is_cpu(); }

OnDeviceOf::OnDeviceOf(const torch::stable::Tensor&) {}

unsigned* OnDeviceOf::tickets() const {
  alignas(8) static unsigned counters[kTicketCount] = {};
  return counters;
}

}  // namespace incline_fast::cuda

STABLE_TORCH_LIBRARY(incline_fast_emulated, m) {
  incline_fast::define_ops(m);
  m.def("set_batch_invariant(bool enabled) -> ()");
  m.def("set_programmatic_launch(bool enabled) -> ()");
  m.def("set_bulk_copies(bool enabled) -> ()");
  m.def("decode_rows(int hidden_size, int rank) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(incline_fast_emulated, CPU, m) { incline_fast::register_ops(m); }

STABLE_TORCH_LIBRARY_IMPL(incline_fast_emulated, CompositeExplicitAutograd, m) {
  m.impl("set_batch_invariant", TORCH_BOX(&incline_fast::cuda::set_batch_invariant));
  m.impl("set_programmatic_launch", TORCH_BOX(&incline_fast::cuda::set_programmatic_launch));
  m.impl("set_bulk_copies", TORCH_BOX(&incline_fast::cuda::set_bulk_copies));
  m.impl("decode_rows", TORCH_BOX(&incline_fast::backend::decode_rows));
}
