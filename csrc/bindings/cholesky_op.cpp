#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "../cholesky.h"
#include "backend.h"
#include "check.h"
#include "ops.h"

namespace incline_fast {
namespace {

void check_stack(const char* name, const Tensor& stack) {
  check_served(name, stack);
  check_dtype(name, stack, {ScalarType::Float, ScalarType::Double});
  const Sizes sizes = stack.sizes();
  const std::size_t n = sizes.size();
  if (n < 2 || sizes[n - 1] != sizes[n - 2] || sizes[n - 1] > backend::max_cholesky_size()) {
    fail(name, " has shape ", show(sizes), "; expected [..., n, n] with n <= ", backend::max_cholesky_size());
  }
}

Matrices matrices(const Tensor& stack, bool output) {
  void* data = output ? stack.mutable_data_ptr() : const_cast<void*>(stack.const_data_ptr());
  return {data, stack.dim(), stack.sizes().data(), stack.strides().data()};
}

CholeskyBlock describe(const Tensor& source) {
  CholeskyBlock op;
  op.dtype = dtype_of(source.scalar_type());
  op.size = source.size(source.dim() - 1);
  op.count = op.size == 0 ? 0 : source.numel() / (op.size * op.size);
  op.source = matrices(source, false);
  return op;
}

Sizes stack_shape(const Tensor& stack) { return stack.sizes().slice(0, stack.dim() - 2); }

// (L, info) of A [..., n, n], n <= 1024 on the CPU and 128 on CUDA.
std::tuple<Tensor, Tensor> cholesky_block(const Tensor& A) {
  check_stack("A", A);
  Tensor L = torch::stable::new_empty(A, A.sizes());
  Tensor info = torch::stable::new_zeros(A, stack_shape(A), ScalarType::Int);
  CholeskyBlock op = describe(A);
  op.factor = matrices(L, true);
  op.info = static_cast<std::int32_t*>(info.mutable_data_ptr());
  backend::cholesky_block(op, A);
  return {L, info};
}

// A [..., n, n] <- L, inverse [..., n, n] <- L^-1 if given. `info` [...] holds 0 for the matrices to factor; see
// CholeskyBlock.
void cholesky_block_(Tensor A, std::optional<Tensor> inverse, Tensor info, std::int64_t first) {
  check_stack("A", A);
  check_writable("A", A);
  if (inverse.has_value()) {
    check_device("inverse", *inverse, A, "A");
    check_dtype("inverse", *inverse, {A.scalar_type()});
    check_shape("inverse", *inverse, A.sizes(), "the shape of A");
    check_writable("inverse", *inverse);
  }
  check_device("info", info, A, "A");
  check_dtype("info", info, {ScalarType::Int});
  check_shape("info", info, stack_shape(A), "one per matrix of A");
  if (!info.is_contiguous()) fail("info is not contiguous; pass a contiguous tensor");
  CholeskyBlock op = describe(A);
  op.factor = matrices(A, true);
  if (inverse.has_value()) op.inverse = matrices(*inverse, true);
  op.info = static_cast<std::int32_t*>(info.mutable_data_ptr());
  op.first = first;
  backend::cholesky_block(op, A);
}

// L^-1 of lower triangular L [..., n, n].
Tensor triangular_inverse(const Tensor& L) {
  check_stack("L", L);
  Tensor inverse = torch::stable::new_empty(L, L.sizes());
  CholeskyBlock op = describe(L);
  op.inverse = matrices(inverse, true);
  backend::cholesky_block(op, L);
  return inverse;
}

}  // namespace

void define_cholesky(Library& library) {
  library.def("cholesky_block(Tensor A) -> (Tensor, Tensor)");
  library.def("cholesky_block_(Tensor(a!) A, Tensor(b!)? inverse, Tensor(c!) info, int first) -> ()");
  library.def("triangular_inverse(Tensor L) -> Tensor");
}

void register_cholesky(Library& library) {
  library.impl("cholesky_block", TORCH_BOX(&cholesky_block));
  library.impl("cholesky_block_", TORCH_BOX(&cholesky_block_));
  library.impl("triangular_inverse", TORCH_BOX(&triangular_inverse));
}

}  // namespace incline_fast
