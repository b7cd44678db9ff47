// The thread pool of torch, as a launcher sees it.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>

#include "../affine_norm.h"

namespace incline_fast {

inline Threads torch_threads() {
  return {torch::stable::get_num_threads(),
          [](std::int64_t begin, std::int64_t end, std::int64_t grain, void (*body)(std::int64_t, std::int64_t, void*),
             void* context) { TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context)); }};
}

}  // namespace incline_fast
