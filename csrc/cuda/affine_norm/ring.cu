#include "choose_product.h"
#include "ring_kernel.h"

namespace incline_fast::cuda {
namespace {

template <class Types, class Product, DType kMap>
Kernel choose_tiles(const AffineCall& call, int column_tiles) {
  const bool one_row_tile = call.num_rows <= kTileRows;
  if (column_tiles == 1) {
    return one_row_tile ? &ring_kernel<Types, Product, kMap, 1, 1> : &ring_kernel<Types, Product, kMap, 1, 2>;
  }
  if (one_row_tile) return &ring_kernel<Types, Product, kMap, 2, 1>;
  if constexpr (kMap == DType::kInt8)
    return nullptr;  // the launcher asks for one tile of columns then
  else
    return &ring_kernel<Types, Product, kMap, 2, 2>;
}

template <DType kMap>
Kernel choose_rows(const AffineCall& call, int column_tiles) {
  constexpr DType rows = kMap == DType::kFloat16 ? DType::kFloat16 : DType::kBFloat16;
  if (!is_uniform(call, rows)) return nullptr;
  if (call.residual.first.data != nullptr) {
    return choose_tiles<UniformRows<rows, true>, TensorCoreProduct<kMap, false>, kMap>(call, column_tiles);
  }
  return choose_tiles<UniformRows<rows, false>, TensorCoreProduct<kMap, true>, kMap>(call, column_tiles);
}

}  // namespace

Kernel ring_kernel_for(const AffineCall& call, DType map, int column_tiles) {
  switch (map) {
    case DType::kBFloat16:
      return choose_rows<DType::kBFloat16>(call, column_tiles);
    case DType::kFloat16:
      return choose_rows<DType::kFloat16>(call, column_tiles);
    case DType::kInt8:
      return choose_rows<DType::kInt8>(call, column_tiles);
    default:
      return nullptr;
  }
}

}  // namespace incline_fast::cuda
