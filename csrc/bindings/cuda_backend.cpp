#include <torch/csrc/stable/ops.h>

#include <utility>

#include "../cuda/affine_norm/affine_norm.h"
#include "../cuda/cholesky/cholesky.h"
#include "backend.h"
#include "check.h"
#include "gpu_settings.h"
#include "torch_cuda.h"

namespace incline_fast::backend {
namespace {

using torch::headeronly::ScalarType;

// Rows up to which the decode kernels are at least as fast as torch's GEMM and an epilogue, by the model of
// benchmarks/decode_model.py on H100 and H200. Every block of theirs reads all of x, and of a low rank also the pieces
// of down r, of which there are many in a long row, from L2: the more rows, the more that weighs beside the map. rank
// 0: dense. Not for the kernels with bulk copies and for one cluster.
std::int64_t decode_rows(std::int64_t hidden_size, std::int64_t rank) {
  const bool wide = hidden_size > 4096;
  if (rank == 0) return hidden_size <= 2048 ? 8 : 5;
  if (rank <= 63) return wide ? 1 : 24;
  if (rank <= 128) return wide ? 6 : 24;
  if (rank <= 176) return wide ? 1 : 12;  // longer pieces of down r than up to 128, and fewer
  if (rank <= 384) return wide ? 5 : 12;
  if (rank <= 512) return wide ? 4 : 8;
  if (rank <= 1024) return wide ? 2 : 5;
  return 2;
}

cuda::Features features() { return cuda::bulk_copies ? cuda::features() : cuda::Features{}; }

// Whether torch's GEMM should multiply instead of the decode kernels, as is faster above decode_rows() rows. It rounds
// to the type of its operands, so all of them must have the type of the residual stream: otherwise more would be lost
// than in an unfused layer. And it takes one map for all rows.
bool takes_gemm(const AffineNorm& op) {
  const std::int64_t rank = op.down.data == nullptr ? 0 : op.down.columns;
  const bool possible = op.num_maps == 1 && op.up.dtype == op.x.dtype && op.x.dtype == op.edited.dtype;
  if (!possible || cuda::batch_invariant || op.num_rows <= decode_rows(op.hidden_size, rank)) return false;
  const cuda::Features usable = features();
  if (rank == 0 && op.num_rows > usable.ring_rows) return true;
  return !cuda::has_kernel_with(usable, op);
}

Tensor multiply(const Tensor& rows, const Tensor& map) {
  return torch::stable::matmul(rows, torch::stable::transpose(torch::stable::select(map, 0, 0), 0, 1));
}

// M r, [rows, d], by torch.
Tensor mapped(const AffineNorm& op, const AffineTensors& tensors) {
  const Tensor r =
      tensors.residual.has_value() ? torch::stable::subtract(tensors.x, *tensors.residual, -1.0) : tensors.x;
  const Tensor rows = torch::stable::reshape(r, {op.num_rows, op.hidden_size});
  return multiply(tensors.down.has_value() ? multiply(rows, *tensors.down) : rows, tensors.up);
}

}  // namespace

const char* device() { return "cuda"; }

bool serves(const Tensor& tensor) { return cuda::is_served(tensor); }

bool reads_values() { return false; }

std::int64_t max_cholesky_size() { return cuda::kMaxCholeskyBlock; }

void affine_norm(const AffineNorm& op, const AffineTensors& tensors) {
  cuda::check_maps(op);
  const cuda::OnDeviceOf here(tensors.x);
  if (takes_gemm(op)) {
    const Tensor z = mapped(op, tensors);
    const Rows rows = {const_cast<void*>(z.const_data_ptr()), dtype_of(z.scalar_type()), z.dim(), z.sizes().data(),
                       z.strides().data()};
    cuda::affine_norm_epilogue(op, rows, here.cuda_stream(), cuda::programmatic_launch);
    return;
  }
  // From torch's allocator, which does not reuse freed memory before the CUDA stream has passed the kernel that reads
  // it, nor, during a capture, within the graph.
  const Tensor workspace = torch::stable::new_empty(tensors.x, {cuda::workspace_bytes(op)}, ScalarType::Byte);
  cuda::affine_norm(op, {workspace.mutable_data_ptr(), here.tickets()}, here.cuda_stream(), cuda::programmatic_launch,
                    features());
}

void cholesky_block(const CholeskyBlock& op, const Tensor& A) {
  const cuda::OnDeviceOf here(A);
  cuda::cholesky_block(op, here.cuda_stream());
}

}  // namespace incline_fast::backend
