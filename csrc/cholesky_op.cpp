#include "cholesky_op.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "check.h"
#include "cholesky.h"
#include "cpu/dispatch.h"
#include "torch_threads.h"

namespace incline_fast {
namespace {

void check_stack(const char* name, const Tensor& stack) {
  check_cpu(name, stack);
  check_dtype(name, stack, {ScalarType::Float, ScalarType::Double});
  const auto sizes = shape(stack);
  const std::size_t n = sizes.size();
  if (n < 2 || sizes[n - 1] != sizes[n - 2] || sizes[n - 1] > kMaxCholeskySize) {
    fail(name, " has shape ", show(sizes), "; expected [..., n, n] with n <= ", kMaxCholeskySize);
  }
}

Matrices matrices(const Tensor& stack, bool output) {
  void* data = output ? stack.mutable_data_ptr() : const_cast<void*>(stack.const_data_ptr());
  return {data, stack.dim(), stack.sizes().data(), stack.strides().data()};
}

CholeskyBlock describe(const Tensor& source) {
  CholeskyBlock op;
  op.dtype = dtype_of(source);
  op.size = source.size(source.dim() - 1);
  op.count = op.size == 0 ? 0 : source.numel() / (op.size * op.size);
  op.source = matrices(source, false);
  return op;
}

std::vector<std::int64_t> stack_shape(const Tensor& stack) {
  auto sizes = shape(stack);
  sizes.resize(sizes.size() - 2);
  return sizes;
}

}  // namespace

std::tuple<Tensor, Tensor> cholesky_block(const Tensor& A) {
  check_stack("A", A);
  const auto sizes = shape(A), stack = stack_shape(A);
  Tensor L = torch::stable::new_empty(A, sizes);
  Tensor info = torch::stable::new_empty(A, stack, ScalarType::Int);
  auto* const pivots = static_cast<std::int32_t*>(info.mutable_data_ptr());
  std::fill(pivots, pivots + info.numel(), 0);
  CholeskyBlock op = describe(A);
  op.factor = matrices(L, true);
  op.info = pivots;
  cpu::cholesky_block(op, torch_threads());
  return {L, info};
}

void cholesky_block_(Tensor A, std::optional<Tensor> inverse, Tensor info, std::int64_t first) {
  check_stack("A", A);
  check_writable("A", A);
  if (inverse.has_value()) {
    check_cpu("inverse", *inverse);
    check_dtype("inverse", *inverse, {A.scalar_type()});
    check_shape("inverse", *inverse, shape(A), "the shape of A");
    check_writable("inverse", *inverse);
  }
  check_cpu("info", info);
  check_dtype("info", info, {ScalarType::Int});
  check_shape("info", info, stack_shape(A), "one per matrix of A");
  if (!info.is_contiguous()) fail("info is not contiguous; pass a contiguous tensor");
  CholeskyBlock op = describe(A);
  op.factor = matrices(A, true);
  if (inverse.has_value()) op.inverse = matrices(*inverse, true);
  op.info = static_cast<std::int32_t*>(info.mutable_data_ptr());
  op.first = first;
  cpu::cholesky_block(op, torch_threads());
}

Tensor triangular_inverse(const Tensor& L) {
  check_stack("L", L);
  Tensor inverse = torch::stable::new_empty(L, shape(L));
  CholeskyBlock op = describe(L);
  op.inverse = matrices(inverse, true);
  cpu::cholesky_block(op, torch_threads());
  return inverse;
}

}  // namespace incline_fast
