// The launches of a call, as data.
#pragma once

#include <vector>

#include "affine_norm.h"
#include "call.h"

namespace incline_fast::cuda {

using Kernel = void (*)(AffineCall);

struct Launch {
  Kernel kernel;
  dim3 grid;
  std::int64_t dynamic_bytes;
  AffineCall call;
  int threads = kThreads;
  unsigned cluster = 1;  // blocks
};

std::vector<Launch> plan(const AffineNorm& op, const Workspace& workspace, bool programmatic = false,
                         const Features& features = {});
std::vector<Launch> plan_epilogue(const AffineNorm& op, const Rows& mapped, bool programmatic = false);
void run(const std::vector<Launch>& launches, void* cuda_stream);

// Kernels for a call's maps and rows; defined beside their instantiations.
Kernel dense_kernel_for(const AffineCall& call, DType map);
Kernel low_rank_kernel_for(const AffineCall& call, DType map);
// Null where the ring, or the kernel for one cluster, does not serve the rows.
Kernel ring_kernel_for(const AffineCall& call, DType map, int column_tiles);
Kernel one_cluster_kernel_for(const AffineCall& call, DType map);
Launch epilogue(const AffineCall& call, std::int64_t rows);

}  // namespace incline_fast::cuda
