// The edit alone, without the norm that follows it: for engines whose norms stay their own.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace incline_fast {

using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// Rows with row_map >= 0 of the residual stream r = x (+ residual): r <- row_beta r + row_alpha (M r + bias). Without a
// residual, x is the stream. With one, the residual receives the edited row and x a row of zeros, so that x + residual
// is the edited stream. Other rows are not touched. row_alpha, row_beta and row_map may be longer than x has rows.
// Of the CPU's library only: it moves rows with memcpy.
void affine_residual_(Tensor x, MaybeTensor residual, const MaybeTensor& down, const Tensor& up,
                      const MaybeTensor& down_scale, const MaybeTensor& up_scale, const MaybeTensor& bias,
                      const Tensor& row_alpha, const Tensor& row_beta, const Tensor& row_map);

}  // namespace incline_fast
