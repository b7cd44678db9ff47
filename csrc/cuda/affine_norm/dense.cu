#include "choose_product.h"
#include "dense_kernel.h"

namespace incline_fast::cuda {

Kernel dense_kernel_for(const AffineNorm& op, int num_rows) {
  return with_products(op, [&](auto product, auto) -> Kernel {
    using Product = typename decltype(product)::type;
    return num_rows <= kTileRows ? &dense_kernel<Product, 1> : &dense_kernel<Product, Product::kRowTiles>;
  });
}

}  // namespace incline_fast::cuda
