// Cholesky factors of small matrices and the inverses of the factors, without torch.
//
//   A = L L^T,   X = L^-1     A [size, size], size <= kMaxCholeskySize, and a stack of them
#pragma once

#include <cstdint>

#include "affine_norm.h"

namespace incline_fast {

constexpr std::int64_t kMaxCholeskySize = 1024;

// A strided stack of matrices; the last two dimensions are rows and columns.
struct Matrices {
  void* data = nullptr;
  std::int64_t ndim = 0;
  const std::int64_t* sizes = nullptr;
  const std::int64_t* strides = nullptr;  // in elements
};

struct CholeskyBlock {
  DType dtype = DType::kFloat32;  // kFloat32 or kFloat64, of all matrices
  std::int64_t count = 0;
  std::int64_t size = 0;
  Matrices source;   // A, or L itself when `factor` is absent; the lower triangle is read
  Matrices factor;   // L, out, with zeros above the diagonal; may be the source. Absent: the source is factored already
  Matrices inverse;  // optional: X, out, with zeros above the diagonal
  // One per matrix, with `factor`: the 1-based index of the first pivot that is not positive and finite is written
  // here, nothing otherwise. A matrix whose info is not 0, on entry or on return, gets an inverse of zeros; one whose
  // info is not 0 on entry is not touched.
  std::int32_t* info = nullptr;
  std::int64_t first = 0;  // added to the index: where the block begins in its matrix
};

}  // namespace incline_fast
