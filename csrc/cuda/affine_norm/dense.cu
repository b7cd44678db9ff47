#include <algorithm>

#include "choose_product.h"
#include "dense_kernel.h"

namespace incline_fast::cuda {

Kernel dense_kernel_for(const AffineCall& call, DType map) {
  return with_products(call, map, [&](auto rows, auto product, auto) -> Kernel {
    using Types = typename decltype(rows)::type;
    using Product = typename decltype(product)::type;
    // With eight row tiles the general kernel would spill on sm_80.
    constexpr int row_tiles = Types::kUniform ? Product::kRowTiles : std::min(Product::kRowTiles, 4);
    return call.num_rows <= kTileRows ? &dense_kernel<Types, Product, 1> : &dense_kernel<Types, Product, row_tiles>;
  });
}

}  // namespace incline_fast::cuda
