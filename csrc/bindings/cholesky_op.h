// The Cholesky block kernel on torch tensors: checks its arguments, describes them to the launcher, allocates outputs.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace incline_fast {

using torch::stable::Tensor;

// (L, info) of A [..., n, n], n <= 1024.
std::tuple<Tensor, Tensor> cholesky_block(const Tensor& A);

// A [..., n, n] <- L, inverse [..., n, n] <- L^-1 if given. `info` [...] holds 0 for the matrices to factor; see
// CholeskyBlock.
void cholesky_block_(Tensor A, std::optional<Tensor> inverse, Tensor info, std::int64_t first);

// L^-1 of lower triangular L [..., n, n], n <= 1024.
Tensor triangular_inverse(const Tensor& L);

}  // namespace incline_fast
