#include "choose_product.h"
#include "one_cluster_kernel.h"

namespace incline_fast::cuda {

Kernel one_cluster_kernel_for(const AffineCall& call, DType map) {
  return with_products(call, map, [](auto rows, auto inner, auto outer) -> Kernel {
    using Types = typename decltype(rows)::type;
    using Inner = typename decltype(inner)::type;
    using Outer = typename decltype(outer)::type;
    if constexpr (Types::kUniform) {
      return &one_cluster_kernel<Types, Inner, Outer>;
    } else {
      return nullptr;
    }
  });
}

}  // namespace incline_fast::cuda
