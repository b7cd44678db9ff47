// NEON of AArch64: four fp32 or two fp64 lanes. Interface: see vec_scalar.h.
//
// kAccumulators: of 32 registers, four hold fp32 weights and eight fp64 weights; with 24 sums of fp32 GCC 12 spills in
// the inner loop, with 20 it does not.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "float_types.h"

namespace incline_fast::cpu {

struct NeonFloat {
  using Scalar = float;
  using Register = float32x4_t;
  static constexpr int kLanes = 4;
  static constexpr int kAccumulators = 20;

  static Register zero() { return vdupq_n_f32(0.0f); }
  static Register broadcast(float value) { return vdupq_n_f32(value); }
  static Register load(const float* p) { return vld1q_f32(p); }
  static Register load(const BFloat16* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p)), 16));
  }
  static Register load_even(const BFloat16* p) { return vreinterpretq_f32_u32(vshlq_n_u32(pairs(p), 16)); }
  static Register load_odd(const BFloat16* p) {
    return vreinterpretq_f32_u32(vandq_u32(pairs(p), vdupq_n_u32(0xffff0000u)));
  }
  static Register load(const Float16* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p))));
  }
  static Register load(const std::int8_t* p) {
    std::uint32_t four;
    std::memcpy(&four, p, sizeof four);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four))))));
  }
  static void store(float* p, Register a) { vst1q_f32(p, a); }
  static void store(BFloat16* p, Register a) {
    const uint32x4_t bits = vreinterpretq_u32_f32(a);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t even_up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint16x4_t is_number = vmovn_u32(vceqq_f32(a, a));
    const uint16x4_t high = vbsl_u16(is_number, vshrn_n_u32(even_up, 16), vdup_n_u16(0x7fc0));
    vst1_u16(reinterpret_cast<std::uint16_t*>(p), high);
  }
  static void store(Float16* p, Register a) {
    vst1_u16(reinterpret_cast<std::uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(a)));
  }
  static Register add(Register a, Register b) { return vaddq_f32(a, b); }
  static Register sub(Register a, Register b) { return vsubq_f32(a, b); }
  static Register mul(Register a, Register b) { return vmulq_f32(a, b); }
  static Register fma(Register a, Register b, Register c) { return vfmaq_f32(c, a, b); }
  static float sum(Register a) { return vaddvq_f32(a); }

 private:
  static uint32x4_t pairs(const BFloat16* p) {
    return vreinterpretq_u32_u16(vld1q_u16(reinterpret_cast<const std::uint16_t*>(p)));
  }
};

struct NeonDouble {
  using Scalar = double;
  using Register = float64x2_t;
  static constexpr int kLanes = 2;
  static constexpr int kAccumulators = 16;

  static Register zero() { return vdupq_n_f64(0.0); }
  static Register broadcast(double value) { return vdupq_n_f64(value); }
  static Register load(const double* p) { return vld1q_f64(p); }
  static Register load(const float* p) { return vcvt_f64_f32(vld1_f32(p)); }
  static void store(double* p, Register a) { vst1q_f64(p, a); }
  static void store(float* p, Register a) { vst1_f32(p, vcvt_f32_f64(a)); }
  static Register add(Register a, Register b) { return vaddq_f64(a, b); }
  static Register sub(Register a, Register b) { return vsubq_f64(a, b); }
  static Register mul(Register a, Register b) { return vmulq_f64(a, b); }
  static Register fma(Register a, Register b, Register c) { return vfmaq_f64(c, a, b); }
  static double sum(Register a) { return vaddvq_f64(a); }
};

}  // namespace incline_fast::cpu
