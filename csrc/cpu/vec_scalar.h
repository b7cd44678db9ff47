// Plain C++: sixteen lanes that the compiler vectorises as far as the baseline instruction set allows.
//
// A vector trait has: Scalar, Register, kLanes, kAccumulators (registers for sums that leave room for operands), and
// zero, broadcast, load, store, add, sub, mul, fma (a b + c), sum. load and store exist for the storage types that the
// instruction set converts; rows.h converts the others element by element. load_even and load_odd take every second of
// 2 kLanes bf16 numbers.
#pragma once

#include "float_types.h"

namespace incline_fast::cpu {

template <class T>
struct ScalarVec {
  using Scalar = T;
  static constexpr int kLanes = 16;
  static constexpr int kAccumulators = 1;
  struct Register {
    T lane[kLanes];
  };

  static Register broadcast(T value) {
    return map([=](int) { return value; });
  }
  static Register zero() { return broadcast(T(0)); }
  template <class S>
  static Register load(const S* p) {
    return map([=](int i) { return static_cast<T>(widen(p[i])); });
  }
  static Register load_even(const BFloat16* p) {
    return map([=](int i) { return static_cast<T>(widen(p[2 * i])); });
  }
  static Register load_odd(const BFloat16* p) { return load_even(p + 1); }
  template <class S>
  static void store(S* p, const Register& a) {
    for (int i = 0; i < kLanes; ++i) p[i] = narrow<S>(a.lane[i]);
  }
  static Register add(const Register& a, const Register& b) {
    return map([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static Register sub(const Register& a, const Register& b) {
    return map([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static Register mul(const Register& a, const Register& b) {
    return map([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static Register fma(const Register& a, const Register& b, const Register& c) {
    return map([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  static T sum(const Register& a) {
    T total = 0;
    for (int i = 0; i < kLanes; ++i) total += a.lane[i];
    return total;
  }

 private:
  template <class F>
  static Register map(F f) {
    Register r;
    for (int i = 0; i < kLanes; ++i) r.lane[i] = f(i);
    return r;
  }
};

}  // namespace incline_fast::cpu
