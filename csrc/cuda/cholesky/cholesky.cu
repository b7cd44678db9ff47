// Cholesky factor and its inverse for matrices of up to 128 rows, one block of threads per matrix.
//
// One elimination of [A | I] gives [L^T | L^-1], in the place of A's lower triangle alone: tile column by tile column,
// of 16 x 16 elements, A is finished and written out, and from then on its place holds what there is of the right half.
// For the diagonal tile k, with P the column of tiles below it and, above it, the transposed tiles of row k of the
// inverse:
//
//   1  A_kk = L_kk L_kk^T             one warp, the ninth, alone: 16 pivots, no barrier
//   2  Q = P L_kk^-T                  a thread per row; in the place of the diagonal tile P is the identity, Q X_kk^T
//   3  E_ab <- E_ab - Q_a Q_b^T       a > k, b <= a: eight warps; E_ak was finished, and starts from zero
//
// Barriers lie between them. The time is the chain of 128 dependent pivots, not that of the arithmetic, so that what
// can run in the shadow of step 1 does: step 3 first makes the next diagonal tile, and does the rest, with all writing
// of results, while the ninth warp is at that one. On the chain of a pivot are a shuffle that hands it to all lanes,
// its reciprocal root, the scaling of the column, and the next pivot's multiply-add, which its lane does with its own
// element; the shuffles and sums of the other columns fit beside it. Of a tile: step 2, the next diagonal tile, three
// barriers. benchmarks/cholesky_model.py counts it all.
//
// A thread of the eight warps keeps one element of each of the 36 lower tiles in registers, so that all threads have
// equal work until the end. A matrix of fewer tiles takes the last of the eight: the loops over tiles are exact then.
#include <type_traits>

#include "../arch/roots.h"
#include "../leading.h"
#include "../threads.h"
#include "cholesky.h"

namespace incline_fast::cuda {

constexpr int kTile = 16;
constexpr int kTiles = static_cast<int>(kMaxCholeskyBlock) / kTile;
constexpr int kWorkers = kTile * kTile;
constexpr int kCholeskyThreads = kWorkers + 32;

template <class T>
struct MatrixView {
  T* data;
  Leading leading;
  std::int64_t row, column;  // strides in elements
};

template <class T>
struct CholeskyCall {
  MatrixView<T> source, factor, inverse;  // data is null where absent
  std::int32_t* info;
  std::int32_t first;
  int size;
};

// What one load from shared memory brings.
template <class T>
struct alignas(16) Piece {
  static constexpr int kCount = 16 / sizeof(T);
  T values[kCount];
};

template <class T>
struct Exchange {
  static constexpr int kStride = kTile + Piece<T>::kCount;  // an odd number of pieces: no bank conflicts

  alignas(16) T panel[2][kMaxCholeskyBlock][kStride];  // P, then Q, of even and of odd tile columns
  alignas(16) T column[2][kTile][kStride];             // column j of L_kk, from its diagonal on, likewise
  T tile[kTile][kTile + 1];                            // A_kk
  T pivot[kTile];                                      // l_jj^2
  T scale[kTile];                                      // 1 / l_jj
  int broken;                                          // the row whose pivot failed, or -1
};

template <class T>
__device__ __forceinline__ Piece<T> piece(const T* row, int m) {
  return *reinterpret_cast<const Piece<T>*>(row + m);
}

template <class T>
struct Matrix {
  T* data;
  std::int64_t row, column;

  __device__ T& at(int i, int c) const { return data[i * row + c * column]; }
};

template <class T>
__device__ Matrix<T> matrix_of(const MatrixView<T>& view, std::int64_t index) {
  return {view.data == nullptr ? nullptr : view.data + view.leading.offset(index), view.row, view.column};
}

// Calls f with the tile column as a constant, which indices of registers must be.
template <int k = 0, class Function>
__device__ __forceinline__ void with_constant(int wanted, const Function& f) {
  if constexpr (k < kTiles) {
    if (k == wanted) {
      f(std::integral_constant<int, k>());
    } else {
      with_constant<k + 1>(wanted, f);
    }
  }
}

// One of the 256 threads that own the elements at row y and column x of all tiles.
template <class T, bool kFactor>
struct Worker {
  static constexpr int kCount = Piece<T>::kCount;

  Exchange<T>& shared;
  const Matrix<T> factor, inverse;
  const int size, first;  // rows; the first of the tiles in use
  const int y, x;
  T e[kTiles][kTiles];  // the lower tiles

  __device__ Worker(Exchange<T>& shared, const CholeskyCall<T>& call, int first)
      : shared(shared),
        factor(matrix_of(call.factor, blockIdx.x)),
        inverse(matrix_of(call.inverse, blockIdx.x)),
        size(call.size),
        first(first),
        y(static_cast<int>(threadIdx.x) / kTile),
        x(static_cast<int>(threadIdx.x) % kTile) {}

  __device__ int row(int tile) const { return y + kTile * (tile - first); }
  __device__ int column(int tile) const { return x + kTile * (tile - first); }

  // Beyond the last row there is the identity.
  __device__ __forceinline__ void load(const Matrix<T>& source) {
#pragma unroll
    for (int a = 0; a < kTiles; ++a) {
#pragma unroll
      for (int b = 0; b <= a; ++b) {
        const bool present = b >= first && row(a) < size && (b < a || x <= y);
        e[a][b] = present ? source.at(row(a), column(b)) : a == b && x == y ? T(1) : T(0);
      }
    }
  }

  template <int k>
  __device__ __forceinline__ void give_tile() {
    shared.tile[y][x] = e[k][k];
  }

  template <int k>
  __device__ __forceinline__ void give_panel() {
    T(&panel)[kMaxCholeskyBlock][Exchange<T>::kStride] = shared.panel[k & 1];
#pragma unroll
    for (int a = k + 1; a < kTiles; ++a) panel[y + kTile * a][x] = e[a][k];
    if (inverse.data == nullptr) return;
#pragma unroll
    for (int b = 0; b < k; ++b) {
      if (b >= first) panel[x + kTile * b][y] = e[k][b];
    }
  }

  // The next diagonal tile, of which the others wait.
  template <int k>
  __device__ __forceinline__ void advance() {
    if constexpr (k + 1 < kTiles) {
      constexpr int next = k + 1;
      if constexpr (kFactor) {
#pragma unroll
        for (int m = 0; m < kTile; m += kCount) {
          const Piece<T> left = piece(shared.panel[k & 1][y + kTile * next], m);
          subtract_product(e[next][next], left, piece(shared.panel[k & 1][x + kTile * next], m));
        }
      }
      give_tile<next>();
    }
  }

  // All other tiles to the right of column k, and to its left those of the inverse.
  template <int k>
  __device__ __forceinline__ void update() {
    Piece<T> left[kTiles];
#pragma unroll
    for (int a = k + 1; a < kTiles; ++a) e[a][k] = T(0);
#pragma unroll 1
    for (int m = 0; m < kTile; m += kCount) {
#pragma unroll
      for (int a = k + 1; a < kTiles; ++a) left[a] = piece(shared.panel[k & 1][y + kTile * a], m);
#pragma unroll
      for (int b = 0; b < kTiles; ++b) {
        if (b > k ? !kFactor : inverse.data == nullptr || b < first) continue;
        const Piece<T> right = piece(shared.panel[k & 1][x + kTile * b], m);
#pragma unroll
        for (int a = max(b, k + 1); a < kTiles; ++a) {
          if (a != k + 1 || b != k + 1) subtract_product(e[a][b], left[a], right);
        }
      }
    }
  }

  // What is done beside the diagonal tile k.
  template <int k>
  __device__ __forceinline__ void proceed() {
    if constexpr (k > 0) {
      update<k - 1>();
      give_panel<k>();
    }
  }

  __device__ __forceinline__ static void subtract_product(T& sum, const Piece<T>& left, const Piece<T>& right) {
#pragma unroll
    for (int q = 0; q < kCount; ++q) sum = fused(-left.values[q], right.values[q], sum);
  }

  // Column k of L and row k of its inverse. A thread writes the same elements whatever k is, as write_zeros does.
  __device__ __forceinline__ void write(int k) const {
    const T(&panel)[kMaxCholeskyBlock][Exchange<T>::kStride] = shared.panel[k & 1];
    if (kFactor && column(k) < size) {
      for (int a = first; a < kTiles && row(a) < size; ++a) {
        const bool zero = a < k || (a == k && y < x);
        factor.at(row(a), column(k)) = zero ? T(0) : a == k ? shared.column[k & 1][x][y] : panel[y + kTile * a][x];
      }
    }
    if (inverse.data != nullptr && row(k) < size) {
      for (int b = first; b < kTiles && column(b) < size; ++b) {
        inverse.at(row(k), column(b)) = b <= k ? panel[x + kTile * b][y] : T(0);
      }
    }
  }

  __device__ void write_zeros() const {
    if (inverse.data == nullptr) return;
    for (int a = first; a < kTiles && row(a) < size; ++a) {
      for (int b = first; b < kTiles && column(b) < size; ++b) inverse.at(row(a), column(b)) = T(0);
    }
  }
};

// Step 1, of one warp, whose halves do the same: lane i has row i of the tile, and its diagonal element apart. Nothing
// branches between the pivots, and what column j + 1 needs of those before j comes before the root of pivot j: the
// compiler can keep all of it in the shadow of the root.
template <class T>
__device__ __forceinline__ void factor_tile(Exchange<T>& shared, int k) {
  constexpr bool kKept = sizeof(T) == 4;  // of pivots a lane keeps its own; in fp64 there is no register left for it
  const int lane = lane_id() % kTile;
  T row[kTile], diagonal = shared.tile[lane][lane], rest = shared.tile[lane][0];
  T pivot = T(0), scale = T(0);
#pragma unroll
  for (int j = 0; j < kTile; ++j) {
    const T current = __shfl_sync(kAllLanes, diagonal, j);
    T given[kTile], next = j + 1 < kTile ? shared.tile[lane][j + 1] : T(0);
#pragma unroll
    for (int m = 0; m < j; ++m) given[m] = __shfl_sync(kAllLanes, row[m], j + 1);
    const T inverse = inverse_root(current);
#pragma unroll
    for (int m = 0; m < j; ++m) next = fused(-row[m], given[m], next);
    row[j] = rest * inverse;
    diagonal = fused(-row[j], row[j], diagonal);
    if constexpr (kKept) {
      pivot = lane == j ? current : pivot;
      scale = lane == j ? inverse : scale;
    } else if (lane_id() == 0) {
      shared.pivot[j] = current;
      shared.scale[j] = inverse;
    }
    rest = fused(-row[j], __shfl_sync(kAllLanes, row[j], j + 1), next);
  }
  if constexpr (!kKept) {
    __syncwarp();
    pivot = shared.pivot[lane];
    scale = shared.scale[lane];
  }
  const unsigned broken = __ballot_sync(kAllLanes, !(pivot > T(0) && pivot < static_cast<T>(INFINITY)));
  if (lane_id() == 0 && broken != 0) shared.broken = k * kTile + __ffs(static_cast<int>(broken)) - 1;
  if (lane_id() >= kTile) return;
#pragma unroll
  for (int j = 0; j < kTile; ++j) shared.column[k & 1][j][lane] = lane == j ? root_from(pivot, scale) : row[j];
  if constexpr (kKept) shared.scale[lane] = scale;
}

// The same of a tile that is factored already.
template <class T>
__device__ __forceinline__ void take_tile(Exchange<T>& shared, int k) {
  const int lane = lane_id();
  if (lane >= kTile) return;
  for (int j = 0; j <= lane; ++j) shared.column[k & 1][j][lane] = shared.tile[lane][j];
  shared.scale[lane] = T(1) / shared.tile[lane][lane];
}

// Step 2, of one thread and row.
template <class T>
__device__ __forceinline__ void substitute(Exchange<T>& shared, int k, int row) {
  T v[kTile], *const stored = shared.panel[k & 1][row];
#pragma unroll
  for (int m = 0; m < kTile; ++m) v[m] = row - k * kTile == m ? T(1) : T(0);
#pragma unroll
  for (int m = 0; m < kTile && row / kTile != k; m += Piece<T>::kCount) {
    const Piece<T> some = piece(stored, m);
#pragma unroll
    for (int q = 0; q < Piece<T>::kCount; ++q) v[m + q] = some.values[q];
  }
#pragma unroll
  for (int j = 0; j < kTile; ++j) {
    v[j] *= shared.scale[j];
#pragma unroll
    for (int m = j + 1; m < kTile; ++m) v[m] = fused(-v[j], shared.column[k & 1][j][m], v[m]);
  }
#pragma unroll
  for (int m = 0; m < kTile; m += Piece<T>::kCount) {
    Piece<T> some;
#pragma unroll
    for (int q = 0; q < Piece<T>::kCount; ++q) some.values[q] = v[m + q];
    *reinterpret_cast<Piece<T>*>(stored + m) = some;
  }
}

template <class T, bool kFactor>
__global__ void __launch_bounds__(kCholeskyThreads, 1) cholesky_kernel(const __grid_constant__ CholeskyCall<T> call) {
  __shared__ Exchange<T> shared;
  const int thread = static_cast<int>(threadIdx.x), first = kTiles - (call.size + kTile - 1) / kTile;
  const bool works = thread < kWorkers, inverts = call.inverse.data != nullptr;
  Worker<T, kFactor> worker(shared, call, first);
  if (kFactor && call.info[blockIdx.x] != 0) {
    if (works) worker.write_zeros();
    return;
  }
  if (thread == 0) shared.broken = -1;
  if (works) {
    worker.load(matrix_of(call.source, blockIdx.x));
    with_constant(first, [&](auto constant) {
      worker.template give_tile<decltype(constant)::value>();
      worker.template give_panel<decltype(constant)::value>();
    });
  }
  __syncthreads();
  for (int k = first; k < kTiles; ++k) {
    if (!works) {
      if constexpr (kFactor) {
        factor_tile(shared, k);
      } else {
        take_tile(shared, k);
      }
    } else if (k > first) {
      with_constant(k, [&](auto constant) { worker.template proceed<decltype(constant)::value>(); });
      worker.write(k - 1);
    }
    __syncthreads();
    if (shared.broken >= 0) break;
    const bool below = thread >= (k + 1) * kTile;
    if (thread < kMaxCholeskyBlock && thread >= first * kTile && (below ? kFactor : inverts)) {
      substitute(shared, k, thread);
    }
    __syncthreads();
    if (works) with_constant(k, [&](auto constant) { worker.template advance<decltype(constant)::value>(); });
    __syncthreads();
  }
  if (!works) return;
  if (shared.broken < 0) {
    worker.write(kTiles - 1);
    return;
  }
  worker.write_zeros();
  if (thread == 0) call.info[blockIdx.x] = call.first + shared.broken - first * kTile + 1;
}

namespace {

template <class T>
MatrixView<T> view(const char* name, const Matrices& matrices) {
  if (matrices.data == nullptr) return {};
  const std::int64_t last = matrices.ndim - 1;
  return {static_cast<T*>(matrices.data), merge_leading(name, last - 1, matrices.sizes, matrices.strides),
          matrices.strides[last - 1], matrices.strides[last]};
}

template <class T>
void launch(const CholeskyBlock& op, void* cuda_stream) {
  const CholeskyCall<T> call = {view<T>("A", op.source),
                                view<T>("A", op.factor),
                                view<T>("inverse", op.inverse),
                                op.info,
                                static_cast<std::int32_t>(op.first),
                                static_cast<int>(op.size)};
  const dim3 grid(static_cast<unsigned>(op.count)), block(kCholeskyThreads);
  if (op.factor.data != nullptr) {
    LAUNCH((cholesky_kernel<T, true>), grid, block, 0, static_cast<cudaStream_t>(cuda_stream), call);
  } else {
    LAUNCH((cholesky_kernel<T, false>), grid, block, 0, static_cast<cudaStream_t>(cuda_stream), call);
  }
  check(cudaGetLastError(), "launch of the Cholesky kernel");
}

}  // namespace

void cholesky_block(const CholeskyBlock& op, void* cuda_stream) {
  if (op.size > kMaxCholeskyBlock) {
    throw std::invalid_argument("A has " + std::to_string(op.size) + " rows; allowed on CUDA: up to " +
                                std::to_string(kMaxCholeskyBlock));
  }
  if (op.size == 0 || op.count == 0) return;
  if (op.dtype == DType::kFloat64) {
    launch<double>(op, cuda_stream);
  } else {
    launch<float>(op, cuda_stream);
  }
}

}  // namespace incline_fast::cuda
