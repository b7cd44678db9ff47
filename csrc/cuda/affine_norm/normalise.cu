// The norm in a launch of its own, one block per row.
#include "plan.h"
#include "row_norm.h"

namespace incline_fast::cuda {

// After dense_kernel or low_rank_kernel with more rows than their last block should normalise; at most kMaxRows blocks,
// so each has a multiprocessor to itself. The counters of low_rank_kernel are done with.
template <class Types>
__global__ void __launch_bounds__(kThreads, 2) normalise_rows(const __grid_constant__ AffineCall call) {
  if (call.programmatic) allow_next_launch();
  wait_for_previous_launch();
  if (blockIdx.x == 0 && threadIdx.x < kTicketCount) call.tickets[threadIdx.x] = 0;
  normalise_row<Types>(call, static_cast<int>(blockIdx.x));
}

Kernel normalise_kernel_for(const AffineCall& call) {
  if (is_uniform(call, DType::kBFloat16)) return &normalise_rows<UniformRows<DType::kBFloat16, false>>;
  if (is_uniform(call, DType::kFloat16)) return &normalise_rows<UniformRows<DType::kFloat16, false>>;
  return &normalise_rows<AnyRows>;
}

}  // namespace incline_fast::cuda
