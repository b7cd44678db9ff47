// Combination and norms of one row in scratch; rows are padded to a multiple of 16 elements.
#pragma once

#include <cmath>
#include <cstdint>

namespace incline_fast::cpu {
namespace {

// beta r + alpha (z + bias) at element i of a padded row; bias may be null.
template <class V>
auto combination(const typename V::Scalar* z, const typename V::Scalar* r, const typename V::Scalar* bias,
                 typename V::Scalar alpha, typename V::Scalar beta) {
  return [=, a = V::broadcast(alpha), b = V::broadcast(beta)](std::int64_t i) {
    auto mapped = V::load(z + i);
    if (bias != nullptr) mapped = V::add(mapped, V::load(bias + i));
    return V::fma(a, mapped, V::mul(b, V::load(r + i)));
  };
}

// Sum of term(value) over a row, in one fixed order. No chain of additions is long, also at the end of the row: an
// error of this sum scales the whole row.
template <class V, class VectorTerm, class ScalarTerm>
typename V::Scalar reduce(const typename V::Scalar* row, std::int64_t size, VectorTerm vector_term,
                          ScalarTerm scalar_term) {
  typename V::Register sums[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  std::int64_t i = 0;
  for (; i + 4 * V::kLanes <= size; i += 4 * V::kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sums[j] = V::add(sums[j], vector_term(V::load(row + i + j * V::kLanes)));
  }
  for (; i + V::kLanes <= size; i += V::kLanes) sums[0] = V::add(sums[0], vector_term(V::load(row + i)));
  typename V::Scalar rest = 0;
  for (; i < size; ++i) rest += scalar_term(row[i]);
  return V::sum(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3]))) + rest;
}

template <class V>
typename V::Scalar mean(const typename V::Scalar* row, std::int64_t size) {
  const auto sum = reduce<V>(row, size, [](auto v) { return v; }, [](auto v) { return v; });
  return sum / static_cast<typename V::Scalar>(size);
}

// Mean of (row - centre)^2: the second pass of the variance, or the mean square with centre = 0.
template <class V>
typename V::Scalar mean_square(const typename V::Scalar* row, std::int64_t size, typename V::Scalar centre) {
  const auto c = V::broadcast(centre);
  const auto sum = reduce<V>(
      row, size,
      [=](auto v) {
        const auto deviation = V::sub(v, c);
        return V::mul(deviation, deviation);
      },
      [=](auto v) { return (v - centre) * (v - centre); });
  return sum / static_cast<typename V::Scalar>(size);
}

// (row - centre) rstd weight (+ norm_bias) at element i of a padded row; norm_bias may be null.
template <class V>
auto normalisation(const typename V::Scalar* row, typename V::Scalar centre, typename V::Scalar rstd,
                   const typename V::Scalar* weight, const typename V::Scalar* norm_bias) {
  return [=, c = V::broadcast(centre), s = V::broadcast(rstd)](std::int64_t i) {
    const auto normed = V::mul(V::sub(V::load(row + i), c), s);
    const auto scaled = V::mul(normed, V::load(weight + i));
    return norm_bias == nullptr ? scaled : V::add(scaled, V::load(norm_bias + i));
  };
}

}  // namespace
}  // namespace incline_fast::cpu
