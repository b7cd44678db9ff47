// Which kernel serves a call: by the maps' type, by whether the rows can be multiplied as they come, and by whether all
// rows and vectors are of one kind (row_types.h).
#pragma once

#include <type_traits>

#include "plan.h"
#include "products.h"
#include "row_types.h"

namespace incline_fast::cuda {

template <class T>
struct Type {
  using type = T;
};

// Rows are exact in the tensor cores' type when they come in it and nothing is added to them.
template <DType kMap, class Choose>
Kernel with_tensor_cores(const AffineCall& call, Choose choose) {
  constexpr DType rows = kMap == DType::kFloat16 ? DType::kFloat16 : DType::kBFloat16;
  using Exact = TensorCoreProduct<kMap, true>;
  using Any = TensorCoreProduct<kMap, false>;
  const bool residual = call.residual.first.data != nullptr;
  const bool wide = call.down.data == nullptr ? call.up.wide : call.down.wide;
  if (wide && is_uniform(call, rows)) {
    if (residual) return choose(Type<UniformRows<rows, true>>(), Type<Any>(), Type<Any>());
    return choose(Type<UniformRows<rows, false>>(), Type<Exact>(), Type<Any>());
  }
  // In bf16 the three parts of a number that is exact are itself and two zeros: the same sums. In fp16 the map would be
  // split as well, and the sums be others.
  if constexpr (kMap == DType::kFloat16) {
    if (!residual && call.x.first.dtype == rows) return choose(Type<AnyRows>(), Type<Exact>(), Type<Any>());
  }
  return choose(Type<AnyRows>(), Type<Any>(), Type<Any>());
}

// choose(kind of rows, the product for rows of its type, the product for other rows, as fp32).
template <class Choose>
Kernel with_products(const AffineCall& call, DType map, Choose choose) {
  switch (map) {
    case DType::kBFloat16:
      return with_tensor_cores<DType::kBFloat16>(call, choose);
    case DType::kFloat16:
      return with_tensor_cores<DType::kFloat16>(call, choose);
    case DType::kInt8:
      return with_tensor_cores<DType::kInt8>(call, choose);
    default:  // plan() has refused fp64
      return choose(Type<AnyRows>(), Type<Fp32Product>(), Type<Fp32Product>());
  }
}

}  // namespace incline_fast::cuda
