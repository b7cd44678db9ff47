// What the kernels of one launch are told.
#pragma once

#include "../threads.h"
#include "affine_norm.h"
#include "rows.h"

namespace incline_fast::cuda {

constexpr int kTileColumns = 16;  // output columns of a product, and of one entry of the row statistics
constexpr int kTileRows = 8;      // rows that one tensor-core product takes

// Mean and sum of squared deviations of the elements of a row that lie in one tile of columns.
struct Moments {
  float mean;
  float deviations;
};

// G maps [columns, depth], row-major and without gaps.
struct MapView {
  const char* data = nullptr;
  const float* scale = nullptr;  // [G, columns], int8 maps only
  std::int64_t columns = 0;
  std::int64_t depth = 0;
  bool wide = false;  // every row begins at a multiple of 16 bytes
};

// Rows first_row to first_row + num_rows - 1 of an AffineNorm. `mapped` holds M r where a GEMM has computed it.
struct AffineCall {
  Norm norm = Norm::kRms;
  bool programmatic = false;  // the launches before and after may overlap with this one, see arch/dependency.h
  int num_rows = 0;
  int hidden = 0;
  int rank = 0;
  int num_maps = 0;
  int groups = 1;     // maps that the rows of one launch can use at most
  int tiles = 0;      // of kTileColumns output columns
  int splits = 1;     // pieces into which the depth of `down` is cut
  int stages = 0;     // slots of the ring of ring_kernel
  int per_split = 0;  // of one_cluster_kernel: 65536 / tiles of down r, rounded up
  std::int64_t first_row = 0;
  RowView x, residual, edited, y, mapped;
  Row weight, norm_bias, bias, row_alpha, row_beta;
  std::int64_t bias_stride = 0;  // from one map's bias to the next one's, in elements
  MapView down, up;
  const std::int32_t* row_map = nullptr;
  std::int64_t row_map_stride = 0;
  float alpha = 1.0f, beta = 1.0f, eps = 0.0f, weight_offset = 0.0f;
  float inverse_hidden = 1.0f;  // 1 / hidden
  float last_inverse = 1.0f;    // 1 / columns of the last tile
  // Workspace, see workspace_bytes().
  float* slots = nullptr;      // [num_rows, tiles * kTileColumns]: r', rounded
  Moments* moments = nullptr;  // [num_rows, tiles]
  float* inner = nullptr;      // [splits, num_rows, inner_pitch(rank)]: partial sums of down r, zeros from rank on
  unsigned* early = nullptr;   // see share_rows.h
  unsigned* tickets = nullptr;
};

// Whole tiles, so that the rows of `inner` can be read 16 bytes at a time.
__host__ __device__ constexpr int inner_pitch(int rank) {
  return (rank + kTileColumns - 1) / kTileColumns * kTileColumns;
}

}  // namespace incline_fast::cuda
