// Storage types of the tensors and their scalar conversions; the vector traits convert whole registers themselves.
#pragma once

#include <cstdint>
#include <cstring>

namespace incline_fast::cpu {

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

// Internal linkage: every translation unit compiles these for its own instruction set, and the linker must not use one
// unit's in another.
namespace {

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(std::int8_t value) { return static_cast<float>(value); }
inline float widen(BFloat16 value) { return float_of(static_cast<std::uint32_t>(value.bits) << 16); }

inline float widen(Float16 value) {
  const std::uint32_t sign = (value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);  // inf, nan
  // Scaling by 2^112 moves the exponent bias from 15 to 127 and normalises subnormals, exactly.
  return float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));
}

// narrow<S>(x): round to nearest, ties to even; nan stays nan.
template <class S>
S narrow(double value) {
  return static_cast<S>(value);
}

template <>
inline BFloat16 narrow<BFloat16>(double value) {
  const auto single = static_cast<float>(value);
  const std::uint32_t bits = bits_of(single);
  if (single != single) return {0x7fc0};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

template <>
inline Float16 narrow<Float16>(double value) {
  const auto single = static_cast<float>(value);
  const std::uint32_t bits = bits_of(single);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};  // rounds to 65536 or beyond
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 leaves the subnormal's bits, rounded, in the mantissa
    const std::uint32_t shifted = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    return {static_cast<std::uint16_t>(sign | shifted)};
  }
  const std::uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23);
  return {static_cast<std::uint16_t>(sign | rounded >> 13)};
}

}  // namespace
}  // namespace incline_fast::cpu
