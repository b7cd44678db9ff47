#include "choose_product.h"
#include "low_rank_kernel.h"

namespace incline_fast::cuda {

Kernel low_rank_kernel_for(const AffineNorm& op, int num_rows) {
  return with_products(op, [&](auto inner, auto outer) -> Kernel {
    using Inner = typename decltype(inner)::type;
    using Outer = typename decltype(outer)::type;
    return num_rows <= kTileRows ? &low_rank_kernel<Inner, Outer, 1> : &low_rank_kernel<Inner, Outer, Outer::kRowTiles>;
  });
}

}  // namespace incline_fast::cuda
