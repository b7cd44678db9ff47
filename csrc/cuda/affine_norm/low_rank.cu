#include "choose_product.h"
#include "low_rank_kernel.h"

namespace incline_fast::cuda {

Kernel low_rank_kernel_for(const AffineCall& call, DType map) {
  return with_products(call, map, [&](auto rows, auto inner, auto outer) -> Kernel {
    using Types = typename decltype(rows)::type;
    using Inner = typename decltype(inner)::type;
    using Outer = typename decltype(outer)::type;
    // With four row tiles the conversion of int8 leaves a register too few.
    constexpr bool converts = std::is_same_v<Outer, TensorCoreProduct<DType::kInt8, false>>;
    constexpr int row_tiles = converts ? 2 : Outer::kRowTiles;
    return call.num_rows <= kTileRows ? &low_rank_kernel<Types, Inner, Outer, 1>
                                      : &low_rank_kernel<Types, Inner, Outer, row_tiles>;
  });
}

}  // namespace incline_fast::cuda
