// Fused multiply-add by one name, and reciprocal roots without a branch, so that the compiler can move what does not
// depend on a root into its shadow. CUDA's rsqrt(double) branches for subnormal numbers.
#pragma once

#include <bit>
#include <cstdint>

#include "../launch.h"

namespace incline_fast::cuda {

__device__ __forceinline__ float fused(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double fused(double a, double b, double c) { return fma(a, b, c); }

// The upper half of 1 / sqrt(x), for x that is normal.
__device__ __forceinline__ double guess_inverse_root(double x) {
#ifdef INCLINE_FAST_EMULATED
  return std::bit_cast<double>(std::bit_cast<std::uint64_t>(rsqrt(x)) & 0xffffffff00000000u);
#else
  double root;
  asm("rsqrt.approx.ftz.f64 %0, %1;" : "=d"(root) : "d"(x));
  return root;
#endif
}

// 1 / sqrt(x) for x > 0, within 2 units in the last place. With the guess y and its error e = 1 - x y^2 it is
// y (1 + e / 2 + 3 e^2 / 8 + ...).
__device__ __forceinline__ float inverse_root(float x) {
  const float guess = rsqrtf(x), error = fmaf(-x * guess, guess, 1.0f);
  return fmaf(0.5f * guess, error, guess);
}

__device__ __forceinline__ double inverse_root(double x) {
  const bool tiny = x < 0x1p-1000;
  x *= tiny ? 0x1p+200 : 1.0;
  const double guess = guess_inverse_root(x), error = fma(-x * guess, guess, 1.0);
  return fma(fma(error, 0.375, 0.5), guess * error, guess) * (tiny ? 0x1p+100 : 1.0);
}

// sqrt(x), given its reciprocal.
template <class T>
__device__ __forceinline__ T root_from(T x, T inverse) {
  const T root = x * inverse;
  return fused(fused(-root, root, x), T(0.5) * inverse, root);
}

}  // namespace incline_fast::cuda
