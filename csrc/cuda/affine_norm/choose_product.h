// Which product serves a call: by the maps' type, and by whether the rows can be used as they come.
#pragma once

#include <type_traits>

#include "plan.h"
#include "products.h"

namespace incline_fast::cuda {

template <class T>
struct Type {
  using type = T;
};

// Rows are exact in the tensor cores' type when they come in it and nothing is added to them.
inline bool rows_are_exact(const AffineNorm& op) {
  const DType wanted = op.up.dtype == DType::kFloat16 ? DType::kFloat16 : DType::kBFloat16;
  return op.residual.data == nullptr && op.x.dtype == wanted;
}

// choose(the product for rows of the stream, the product for other fp32 rows).
template <class Choose>
Kernel with_products(const AffineNorm& op, Choose choose) {
  const bool exact = rows_are_exact(op);
  const auto tensor_core = [&](auto map) {
    constexpr DType dtype = decltype(map)::value;
    using Any = TensorCoreProduct<dtype, false>;
    return exact ? choose(Type<TensorCoreProduct<dtype, true>>(), Type<Any>()) : choose(Type<Any>(), Type<Any>());
  };
  switch (op.up.dtype) {
    case DType::kBFloat16:
      return tensor_core(std::integral_constant<DType, DType::kBFloat16>());
    case DType::kFloat16:
      return tensor_core(std::integral_constant<DType, DType::kFloat16>());
    case DType::kInt8:
      return tensor_core(std::integral_constant<DType, DType::kInt8>());
    default:  // plan() has refused fp64
      return choose(Type<Fp32Product>(), Type<Fp32Product>());
  }
}

}  // namespace incline_fast::cuda
