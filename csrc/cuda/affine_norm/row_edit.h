// r' of single elements, and of one tile of columns with its moments.
#pragma once

#include "group.h"
#include "row_types.h"

namespace incline_fast::cuda {

// Sum over 16 neighbouring lanes, the same tree for every lane.
__device__ __forceinline__ float sum_of_16(float value) {
  for (int step = 1; step < kTileColumns; step *= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

__device__ __forceinline__ int columns_of(const AffineCall& call, int tile) {
  return min(kTileColumns, call.hidden - tile * kTileColumns);
}

// 1 / columns_of: without a division on the way from the product to the slots.
__device__ __forceinline__ float inverse_columns(const AffineCall& call, int tile) {
  return tile == call.tiles - 1 ? call.last_inverse : 1.0f / kTileColumns;
}

// What makes r' of r and of the map's product.
struct Edit {
  float alpha, beta, scale, bias;

  // beta r + alpha (scale z + bias), not yet rounded.
  __device__ __forceinline__ float operator()(float r, float z) const { return beta * r + alpha * (scale * z + bias); }
};

// What all elements of a row have in common; `row` counts within the call.
__device__ __forceinline__ Edit strengths_of(const AffineCall& call, std::int64_t row) {
  Edit edit = {call.alpha, call.beta, 1.0f, 0.0f};
  if (call.row_alpha.data != nullptr) edit.alpha *= load_element(call.row_alpha, row);
  if (call.row_beta.data != nullptr) edit.beta *= load_element(call.row_beta, row);
  return edit;
}

// What all rows have in common of a column of a map.
struct ColumnEdit {
  float scale = 1.0f, bias = 0.0f;

  static __device__ __forceinline__ ColumnEdit request(const AffineCall& call, int map, int column) {
    ColumnEdit edit;
    if (call.up.scale != nullptr) edit.scale = call.up.scale[map * call.up.columns + column];
    if (call.bias.data != nullptr) edit.bias = load_element(call.bias, map * call.bias_stride + column);
    return edit;
  }
};

__device__ __forceinline__ Edit edit_of(const AffineCall& call, int map, std::int64_t row, int column) {
  const ColumnEdit of_column = ColumnEdit::request(call, map, column);
  const Edit strengths = strengths_of(call, row);
  return {strengths.alpha, strengths.beta, of_column.scale, of_column.bias};
}

// r = x (+ residual), not yet added up, of elements k to k + count - 1 of the row that begins `x` and `residual`
// elements from the first ones.
template <class Types, int count>
struct RawTerms {
  typename Types::template Raw<count> x, residual;

  static __device__ __forceinline__ RawTerms request(const AffineCall& call, std::int64_t x, std::int64_t residual,
                                                     int k) {
    RawTerms raw;
    raw.x = Types::template request<count>(call, Types::of(row_at(call.x, x)), k);
    if (Types::has_residual(call)) {
      raw.residual = Types::template request<count>(call, Types::of(row_at(call.residual, residual)), k);
    }
    return raw;
  }

  __device__ __forceinline__ void widen_to(const AffineCall& call, float (&values)[count]) const {
    Types::widen_to(x, values);
    if (!Types::has_residual(call)) return;
    float more[count];
    Types::widen_to(residual, more);
    for (int i = 0; i < count; ++i) values[i] += more[i];
  }
};

// One element of a group's row: everything that its r' needs beside the product.
template <class Types>
struct Pending {
  bool valid = false;
  int row = 0;  // within the launch
  RawTerms<Types, 1> r = {};
  Edit edit = {};

  static __device__ __forceinline__ Pending request(const AffineCall& call, const Group& group, int index, int tile,
                                                    int column) {
    Pending pending;
    pending.valid = index < group.count && column < columns_of(call, tile);
    if (!pending.valid) return pending;
    const int place = tile * kTileColumns + column;
    pending.row = group.rows[index];
    pending.r = RawTerms<Types, 1>::request(call, group.x[index], group.residual[index], place);
    pending.edit = edit_of(call, group.map, call.first_row + pending.row, place);
    return pending;
  }

  __device__ __forceinline__ float edited(const AffineCall& call, float product) const {
    float summed[1];
    r.widen_to(call, summed);
    return edit(summed[0], product);
  }
};

// Writes one element of r' per lane, and per 16 lanes the moments of a row's tile. `row` counts within the launch;
// lanes that have no row or no column bring valid = false.
template <class Types>
__device__ __forceinline__ void store_tile(const AffineCall& call, int row, int tile, int column, bool valid,
                                           float value) {
  value = valid ? round_to(Types::dtype(call.edited.first), value) : 0.0f;
  const float mean = sum_of_16(value) * inverse_columns(call, tile);
  const float deviation = valid ? value - mean : 0.0f;
  const float deviations = sum_of_16(deviation * deviation);
  if (!valid) return;
  call.slots[(static_cast<std::int64_t>(row) * call.tiles + tile) * kTileColumns + column] = value;
  if (column == 0) call.moments[static_cast<std::int64_t>(row) * call.tiles + tile] = {mean, deviations};
}

// r' of a row without a map is r. A row_map entry past the last map cannot be refused without waiting for the device;
// its row becomes NaN rather than something that looks right.
__device__ __forceinline__ float unedited(int map, float r) { return map < 0 ? r : __uint_as_float(0x7fffffffu); }

// The rows that no map edits, for one tile.
template <class Types>
__device__ inline void store_unedited(const AffineCall& call, int tile) {
  if (call.row_map == nullptr) return;
  const int column = static_cast<int>(threadIdx.x) % kTileColumns, place = tile * kTileColumns + column;
  constexpr int rows_at_once = kThreads / kTileColumns;
  for (int first = 0; first < call.num_rows; first += rows_at_once) {
    const int row = first + static_cast<int>(threadIdx.x) / kTileColumns;
    const int map = row < call.num_rows ? map_of(call, row) : 0;
    const bool valid = row < call.num_rows && !is_map(call, map) && column < columns_of(call, tile);
    const std::int64_t whole = call.first_row + row;
    float summed[1] = {};
    if (valid) {
      RawTerms<Types, 1>::request(call, Types::offset(call.x, whole), Types::offset(call.residual, whole), place)
          .widen_to(call, summed);
    }
    const float value = valid ? unedited(map, summed[0]) : 0.0f;
    store_tile<Types>(call, row, tile, column, valid, value);
  }
}

}  // namespace incline_fast::cuda
