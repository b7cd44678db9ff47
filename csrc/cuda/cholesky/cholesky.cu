// Cholesky factor and its inverse for matrices of up to 128 rows, one block of threads per matrix.
//
// One elimination of [A | I] gives [L^T | L^-1], in the place of A alone: after step j, column j of A is finished and
// written out, and from then on its place holds column j of the right half, which was zero but for its diagonal until
// now. With the pivot l_jj, column j scaled to l_ij and row j of the inverse x_jc = e_jc / l_jj (c < j), 1 / l_jj (c =
// j):
//
//   e_ic <- e_ic - l_ij l_cj    (c > j: the rest of A)          e_ic <- e_ic - l_ij x_jc    (c <= j, e_ij = 0: L^-1)
//
// A thread keeps 8 x 8 elements in registers, every 16th row and column, so that all threads have work until the end; a
// step passes column j and row j through shared memory. Two buffers taken in turn make one barrier a step enough.
#include "../leading.h"
#include "../threads.h"
#include "cholesky.h"

namespace incline_fast::cuda {

constexpr int kSide = 16;                                            // threads, in rows and in columns
constexpr int kPatch = static_cast<int>(kMaxCholeskyBlock) / kSide;  // elements of a thread, likewise

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

// Column j of what is left of A, and row j of what there is of the inverse.
template <class T>
struct Exchange {
  T column[2][kMaxCholeskyBlock];
  T row[2][kMaxCholeskyBlock];
};

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

template <class T>
__device__ void write_zeros(const Matrix<T>& matrix, int size, int y, int x) {
  for (int i = y; i < size; i += kSide) {
    for (int c = x; c < size; c += kSide) matrix.at(i, c) = T(0);
  }
}

// Steps 16 band to 16 band + 15. Returns the number of steps done before a pivot that is not positive and finite.
template <class T, bool kFactor, int band>
__device__ __forceinline__ int eliminate_band(T (&e)[kPatch][kPatch], Exchange<T>& shared, int size,
                                              const Matrix<T>& factor, const Matrix<T>& inverse) {
  const int y = static_cast<int>(threadIdx.x) / kSide, x = static_cast<int>(threadIdx.x) % kSide;
  for (int j = band * kSide; j < min(size, (band + 1) * kSide); ++j) {
    T* const column = shared.column[j % 2];
    T* const row = shared.row[j % 2];
    if (x == j % kSide) {
      for (int a = band; a < kPatch; ++a) column[y + kSide * a] = e[a][band];
    }
    if (y == j % kSide) {
      for (int b = 0; b <= band; ++b) row[x + kSide * b] = e[band][b];
    }
    __syncthreads();
    const T pivot = column[j];
    if (kFactor && !(pivot > T(0) && pivot < static_cast<T>(INFINITY))) return j;
    const T root = kFactor ? sqrt(pivot) : pivot, scale = T(1) / root;
    T left[kPatch], right[kPatch];
#pragma unroll
    for (int a = band; a < kPatch; ++a) {
      const int i = y + kSide * a;
      left[a] = i > j ? column[i] * (kFactor ? scale : T(1)) : T(0);
    }
#pragma unroll
    for (int b = 0; b < kPatch; ++b) {
      const int c = x + kSide * b;
      right[b] = c < j ? row[c] * scale : c == j ? scale : kFactor ? column[c] * scale : T(0);
    }
    if (kFactor && x == j % kSide) {
#pragma unroll
      for (int a = 0; a < kPatch; ++a) {
        const int i = y + kSide * a;
        if (i < size) factor.at(i, j) = i < j || a < band ? T(0) : i == j ? root : left[a];
      }
    }
    if (inverse.data != nullptr && y == j % kSide) {
#pragma unroll
      for (int b = 0; b < kPatch; ++b) {
        const int c = x + kSide * b;
        if (c < size) inverse.at(j, c) = c <= j ? right[b] : T(0);
      }
    }
#pragma unroll
    for (int a = band; a < kPatch; ++a) {
#pragma unroll
      for (int b = 0; b < kPatch; ++b) {
        const T before = x + kSide * b == j ? T(0) : e[a][b];
        e[a][b] = before - left[a] * right[b];
      }
    }
  }
  return size;
}

template <class T, bool kFactor, int band = 0>
__device__ __forceinline__ int eliminate(T (&e)[kPatch][kPatch], Exchange<T>& shared, int size, const Matrix<T>& factor,
                                         const Matrix<T>& inverse) {
  const int done = eliminate_band<T, kFactor, band>(e, shared, size, factor, inverse);
  if constexpr (band + 1 < kPatch) {
    // A band that breaks down stops at a step of its own, whatever the size.
    if (done == size && size > (band + 1) * kSide) {
      return eliminate<T, kFactor, band + 1>(e, shared, size, factor, inverse);
    }
  }
  return done;
}

// One block to a multiprocessor: up to 255 registers a thread hold the fp64 patches.
template <class T, bool kFactor>
__global__ void __launch_bounds__(kThreads, 1) cholesky_kernel(const __grid_constant__ CholeskyCall<T> call) {
  __shared__ Exchange<T> shared;
  const int y = static_cast<int>(threadIdx.x) / kSide, x = static_cast<int>(threadIdx.x) % kSide, size = call.size;
  const Matrix<T> source = matrix_of(call.source, blockIdx.x), factor = matrix_of(call.factor, blockIdx.x);
  const Matrix<T> inverse = matrix_of(call.inverse, blockIdx.x);
  if (kFactor && call.info[blockIdx.x] != 0) {
    if (inverse.data != nullptr) write_zeros(inverse, size, y, x);
    return;
  }
  T e[kPatch][kPatch];
#pragma unroll
  for (int a = 0; a < kPatch; ++a) {
#pragma unroll
    for (int b = 0; b < kPatch; ++b) {
      const int i = y + kSide * a, c = x + kSide * b;
      e[a][b] = i < size && c <= i ? source.at(i, c) : T(0);
    }
  }
  const int done = eliminate<T, kFactor>(e, shared, size, factor, inverse);
  if (done == size) return;
  // Every thread zeroes what it has written itself, and the rest of its elements.
  if (inverse.data != nullptr) write_zeros(inverse, size, y, x);
  if (threadIdx.x == 0) call.info[blockIdx.x] = call.first + done + 1;
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
  const dim3 grid(static_cast<unsigned>(op.count)), block(kThreads);
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
