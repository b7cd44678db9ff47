// The op on torch tensors: checks its arguments, describes them to the launcher, allocates outputs.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace incline_fast {

using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

std::tuple<Tensor, Tensor> affine_rms_norm(const Tensor& x, const MaybeTensor& residual, const Tensor& weight,
                                           const MaybeTensor& down, const Tensor& up, const MaybeTensor& down_scale,
                                           const MaybeTensor& up_scale, const MaybeTensor& bias,
                                           const MaybeTensor& row_alpha, const MaybeTensor& row_beta,
                                           const MaybeTensor& row_map, double alpha, double beta, double eps,
                                           double weight_offset);

std::tuple<Tensor, Tensor> affine_layer_norm(const Tensor& x, const MaybeTensor& residual, const Tensor& weight,
                                             const MaybeTensor& norm_bias, const MaybeTensor& down, const Tensor& up,
                                             const MaybeTensor& down_scale, const MaybeTensor& up_scale,
                                             const MaybeTensor& bias, const MaybeTensor& row_alpha,
                                             const MaybeTensor& row_beta, const MaybeTensor& row_map, double alpha,
                                             double beta, double eps, double weight_offset);

// In place: `stream` holds the residual stream on entry and r' on return; `y` receives the normalised rows. With
// `add_y`, y holds a block's output on entry and is added to the stream first.
void affine_rms_norm_(Tensor y, Tensor stream, bool add_y, const Tensor& weight, const MaybeTensor& down,
                      const Tensor& up, const MaybeTensor& down_scale, const MaybeTensor& up_scale,
                      const MaybeTensor& bias, const MaybeTensor& row_alpha, const MaybeTensor& row_beta,
                      const MaybeTensor& row_map, double alpha, double beta, double eps, double weight_offset);

void affine_layer_norm_(Tensor y, Tensor stream, bool add_y, const Tensor& weight, const MaybeTensor& norm_bias,
                        const MaybeTensor& down, const Tensor& up, const MaybeTensor& down_scale,
                        const MaybeTensor& up_scale, const MaybeTensor& bias, const MaybeTensor& row_alpha,
                        const MaybeTensor& row_beta, const MaybeTensor& row_map, double alpha, double beta, double eps,
                        double weight_offset);

}  // namespace incline_fast
