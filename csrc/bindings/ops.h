// The ops on torch tensors. They check their arguments, describe them to the launcher and allocate outputs; a library
// registers them under the dispatch key of its device, which backend.h serves.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace incline_fast {

using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Library = torch::stable::detail::StableLibrary;

// Schemas; each is in the file of the function that implements it.
void define_affine_norm(Library& library);
void define_affine_residual(Library& library);
void define_cholesky(Library& library);

// Implementations; affine_residual_ is in the CPU's library only: it reads row_map to find the rows.
void register_affine_norm(Library& library);
void register_affine_residual(Library& library);
void register_cholesky(Library& library);

inline void define_ops(Library& library) {
  define_affine_norm(library);
  define_cholesky(library);
}

inline void register_ops(Library& library) {
  register_affine_norm(library);
  register_cholesky(library);
}

}  // namespace incline_fast
