// AVX-512 (F, BW, DQ, VL): sixteen fp32 or eight fp64 lanes. Interface: see vec_scalar.h.
//
// The bf16 dot-product and conversion instructions of AVX512_BF16 are not used: they take subnormals as zero.
#pragma once

#include <immintrin.h>

#include "float_types.h"

namespace incline_fast::cpu {

struct Avx512Float {
  using Scalar = float;
  using Register = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kAccumulators = 24;

  static Register zero() { return _mm512_setzero_ps(); }
  static Register broadcast(float value) { return _mm512_set1_ps(value); }
  static Register load(const float* p) { return _mm512_loadu_ps(p); }
  static Register load(const BFloat16* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static Register load_even(const BFloat16* p) { return even(_mm512_loadu_si512(p)); }
  static Register load_odd(const BFloat16* p) { return odd(_mm512_loadu_si512(p)); }
  // The numbers in the lower and upper halves of sixteen pairs.
  static Register even(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
  static Register odd(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static Register load(const Float16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Register load(const std::int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static void store(float* p, Register a) { _mm512_storeu_ps(p, a); }
  static void store(BFloat16* p, Register a) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i even_up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    const __m512i high = _mm512_mask_blend_epi32(is_nan, _mm512_srli_epi32(even_up, 16), _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(high));
  }
  static void store(Float16* p, Register a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  static Register add(Register a, Register b) { return _mm512_add_ps(a, b); }
  static Register sub(Register a, Register b) { return _mm512_sub_ps(a, b); }
  static Register mul(Register a, Register b) { return _mm512_mul_ps(a, b); }
  static Register fma(Register a, Register b, Register c) { return _mm512_fmadd_ps(a, b, c); }
  static float sum(Register a) { return _mm512_reduce_add_ps(a); }
};

struct Avx512Double {
  using Scalar = double;
  using Register = __m512d;
  static constexpr int kLanes = 8;
  static constexpr int kAccumulators = 24;

  static Register zero() { return _mm512_setzero_pd(); }
  static Register broadcast(double value) { return _mm512_set1_pd(value); }
  static Register load(const double* p) { return _mm512_loadu_pd(p); }
  static Register load(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
  static void store(double* p, Register a) { _mm512_storeu_pd(p, a); }
  static void store(float* p, Register a) { _mm256_storeu_ps(p, _mm512_cvtpd_ps(a)); }
  static Register add(Register a, Register b) { return _mm512_add_pd(a, b); }
  static Register sub(Register a, Register b) { return _mm512_sub_pd(a, b); }
  static Register mul(Register a, Register b) { return _mm512_mul_pd(a, b); }
  static Register fma(Register a, Register b, Register c) { return _mm512_fmadd_pd(a, b, c); }
  static double sum(Register a) { return _mm512_reduce_add_pd(a); }
};

}  // namespace incline_fast::cpu
