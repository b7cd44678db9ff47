// What each library (CPU, CUDA, emulated CUDA) defines for its own device. The ops, which are compiled into all of
// them, call these functions.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "../affine_norm.h"
#include "../cholesky.h"

namespace incline_fast::backend {

using torch::stable::Tensor;

// "cpu" or "cuda".
const char* device();

bool serves(const Tensor& tensor);

// Whether the values of a tensor can be read here and now, without waiting for a device.
bool reads_values();

std::int64_t max_cholesky_size();

// The tensors that the pointers of an AffineNorm come from, for a backend that calls torch's own ops on them.
struct AffineTensors {
  const Tensor& x;
  const std::optional<Tensor>& residual;
  const std::optional<Tensor>& down;
  const Tensor& up;
};

void affine_norm(const AffineNorm& op, const AffineTensors& tensors);

// Runs on the device of A.
void cholesky_block(const CholeskyBlock& op, const Tensor& A);

}  // namespace incline_fast::backend
