// The launcher of the Cholesky block kernel on a GPU, for the CholeskyBlock of csrc/cholesky.h with size <= 128.
#pragma once

#include "../../cholesky.h"

namespace incline_fast::cuda {

constexpr std::int64_t kMaxCholeskyBlock = 128;

// Throws std::invalid_argument, naming the argument, for larger matrices and for stacks that need more strides than
// kLeadingDims. Starts one kernel on `cuda_stream` of the current device.
void cholesky_block(const CholeskyBlock& op, void* cuda_stream);

}  // namespace incline_fast::cuda
