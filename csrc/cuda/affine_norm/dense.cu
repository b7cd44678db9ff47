#include "choose_product.h"
#include "dense_kernel.h"

namespace incline_fast::cuda {

Kernel dense_kernel_for(const AffineCall& call, DType map) {
  return with_products(call, map, [&](auto rows, auto product, auto) -> Kernel {
    using Types = typename decltype(rows)::type;
    using Product = typename decltype(product)::type;
    return call.num_rows <= kTileRows ? &dense_kernel<Types, Product, 1>
                                      : &dense_kernel<Types, Product, Product::kRowTiles>;
  });
}

}  // namespace incline_fast::cuda
