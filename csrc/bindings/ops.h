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

// Implementations; affine_residual_ is in the CPU's library only, because it moves rows with memcpy.
void register_affine_norm(Library& library);
void register_affine_residual(Library& library);
void register_cholesky(Library& library);

// In place: `residual` holds the residual stream on entry and r' on return; `y` receives the normalised rows. With
// `add_y`, y holds a block's output on entry and is added to the residual stream first.
void affine_rms_norm_(Tensor y, Tensor residual, bool add_y, const Tensor& weight, const MaybeTensor& down,
                      const Tensor& up, const MaybeTensor& down_scale, const MaybeTensor& up_scale,
                      const MaybeTensor& bias, const MaybeTensor& row_alpha, const MaybeTensor& row_beta,
                      const MaybeTensor& row_map, double alpha, double beta, double eps, double weight_offset);

inline void define_ops(Library& library) {
  define_affine_norm(library);
  define_cholesky(library);
}

inline void register_ops(Library& library) {
  register_affine_norm(library);
  register_cholesky(library);
}

}  // namespace incline_fast
