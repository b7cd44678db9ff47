// After a GEMM that left M r in call.mapped: bias, strengths, residual, rounding and norm of a row, edited or not, by a
// block for every row. For equal r' the bits are those of the decode kernels.
#include "plan.h"
#include "row_norm.h"

namespace incline_fast::cuda {

// Rows of any types and width. Every thread reads back the elements of r' that it wrote itself.
__global__ void __launch_bounds__(kThreads, 2) edit_and_normalise_rows(const __grid_constant__ AffineCall call) {
  DYNAMIC_SHARED(Moments, moments);
  if (call.programmatic) allow_next_launch();
  wait_for_previous_launch();
  const std::int64_t row = call.first_row + blockIdx.x;
  const int map = map_of(call, blockIdx.x);
  const Row edited = row_of(call.edited, row), y = row_of(call.y, row), x = row_of(call.x, row);
  const Row residual = call.residual.first.data == nullptr ? Row{} : row_of(call.residual, row);
  const Row mapped = row_of(call.mapped, row);
  const int first = 4 * static_cast<int>(threadIdx.x);
  for (int begin = 0; begin < call.hidden; begin += 4 * kThreads) {  // all lanes: they share the sums of a tile
    const int k = begin + first, tile = k / kTileColumns;
    float r[4], z[4], values[4] = {};
    load_elements(x, k, call.hidden, r);
    load_elements(mapped, k, call.hidden, z);
    if (residual.data != nullptr) {
      float more[4];
      load_elements(residual, k, call.hidden, more);
      for (int i = 0; i < 4; ++i) r[i] += more[i];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (k + i >= call.hidden) continue;
      const float value = is_map(call, map) ? edit_of(call, map, row, k + i)(r[i], z[i]) : unedited(map, r[i]);
      values[i] = round_to(edited.dtype, value);
    }
    if (k < call.hidden) store_elements(edited, k, call.hidden, values);
    const Moments part = moments_of_4x4(call, tile, k, values);
    if (k % kTileColumns == 0 && tile < call.tiles) moments[tile] = part;
  }
  __syncthreads();
  const Statistics stats = statistics(call, [&](int tile) { return moments[tile]; });
  for (int k = first; k < call.hidden; k += 4 * kThreads) {
    float values[4];
    load_elements(edited, k, call.hidden, values);
    Vectors<AnyRows, 4>::request(call, k).store_normed(call, y, stats, k, values);
  }
}

constexpr int kWide = 8;    // elements that a thread loads at once: 16 bytes
constexpr int kChunks = 4;  // of kWide * kThreads elements, all requested before the first is waited for
constexpr int kMaxHeld = kChunks * kWide * kThreads;

// The moments of a tile from eight elements in each of two neighbouring lanes: the same tree of sums as in
// store_tile().
__device__ __forceinline__ float sum_of_2x8(const float (&values)[kWide]) {
  const float low = (values[0] + values[1]) + (values[2] + values[3]);
  const float high = (values[4] + values[5]) + (values[6] + values[7]);
  const float sum = low + high;
  return sum + __shfl_xor_sync(kAllLanes, sum, 1);
}

__device__ __forceinline__ Moments moments_of_2x8(const float (&values)[kWide]) {
  const float mean = sum_of_2x8(values) * (1.0f / kTileColumns);
  float squares[kWide];
  for (int i = 0; i < kWide; ++i) squares[i] = (values[i] - mean) * (values[i] - mean);
  return {mean, sum_of_2x8(squares)};
}

// r' of eight elements of an edited row; `strengths` has its alpha and beta.
__device__ __forceinline__ void edit_wide(const AffineCall& call, const Edit& strengths, int map, int k,
                                          const float (&z)[kWide], float (&values)[kWide]) {
  float bias[kWide] = {};
  if (call.bias.data != nullptr) {
    Row row = call.bias;
    row.data += map * call.bias_stride * bytes_of(row.dtype);
    load_elements(row, k, call.hidden, bias);
  }
#pragma unroll
  for (int i = 0; i < kWide; ++i) {
    const Edit edit = {strengths.alpha, strengths.beta, 1.0f, bias[i]};
    values[i] = edit(values[i], z[i]);
  }
}

// Rows of up to kMaxHeld elements that are all of one 16-bit type, as `mapped` is: r' stays in registers. With two
// blocks a multiprocessor has up to 64 KB under way.
template <class Types>
__global__ void __launch_bounds__(kThreads, 2)
    edit_and_normalise_uniform_rows(const __grid_constant__ AffineCall call) {
  __shared__ Moments moments[kMaxHeld / kTileColumns];
  if (call.programmatic) allow_next_launch();
  wait_for_previous_launch();
  const std::int64_t row = call.first_row + blockIdx.x;
  const int map = map_of(call, blockIdx.x), first = kWide * static_cast<int>(threadIdx.x);
  const Row mapped = Types::of(row_at(call.mapped, Types::offset(call.mapped, row)));
  const Row edited = Types::of(row_at(call.edited, Types::offset(call.edited, row)));
  const Row y = Types::of(row_at(call.y, Types::offset(call.y, row)));
  RawTerms<Types, kWide> terms[kChunks];
  typename Types::template Raw<kWide> products[kChunks];
  float values[kChunks][kWide] = {};
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int k = first + i * kWide * kThreads;
    if (k >= call.hidden) continue;
    terms[i] = RawTerms<Types, kWide>::request(call, Types::offset(call.x, row), Types::offset(call.residual, row), k);
    products[i] = Types::template request<kWide>(call, mapped, k);
  }
  const Edit strengths = strengths_of(call, row);
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {  // all lanes: they share the sums of a tile
    const int k = first + i * kWide * kThreads, tile = k / kTileColumns;
    if (k < call.hidden) {
      float z[kWide];
      terms[i].widen_to(call, values[i]);
      Types::widen_to(products[i], z);
      if (is_map(call, map)) {
        edit_wide(call, strengths, map, k, z, values[i]);
      } else {
        for (float& value : values[i]) value = unedited(map, value);
      }
      for (float& value : values[i]) value = round_to(edited.dtype, value);
      store_elements(edited, k, Types::limit(call), values[i]);
    }
    const Moments part = moments_of_2x8(values[i]);
    if (k % kTileColumns == 0 && tile < call.tiles) moments[tile] = part;
  }
  __syncthreads();
  const Statistics stats = statistics(call, [&](int tile) { return moments[tile]; });
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int k = first + i * kWide * kThreads;
    if (k < call.hidden) Vectors<Types, kWide>::request(call, k).store_normed(call, y, stats, k, values[i]);
  }
}

namespace {

template <DType kType>
Kernel uniform_kernel(const AffineCall& call) {
  if (call.residual.first.data != nullptr) return &edit_and_normalise_uniform_rows<UniformRows<kType, true>>;
  return &edit_and_normalise_uniform_rows<UniformRows<kType, false>>;
}

}  // namespace

Launch epilogue(const AffineCall& call, std::int64_t rows) {
  const dim3 grid(static_cast<unsigned>(rows));
  const Row& mapped = call.mapped.first;
  const bool wide = mapped.wide && call.mapped.leading.count <= 1 && call.hidden <= kMaxHeld;
  const auto serves = [&](DType type) { return wide && mapped.dtype == type && is_uniform(call, type); };
  if (serves(DType::kBFloat16)) return {uniform_kernel<DType::kBFloat16>(call), grid, 0, call};
  if (serves(DType::kFloat16)) return {uniform_kernel<DType::kFloat16>(call), grid, 0, call};
  const auto bytes = call.tiles * static_cast<std::int64_t>(sizeof(Moments));
  return {&edit_and_normalise_rows, grid, bytes, call};
}

}  // namespace incline_fast::cuda
