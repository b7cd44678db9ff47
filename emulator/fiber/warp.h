// Operations of a warp: shuffles, votes, reductions, and all_lanes, on which portable twins of inline PTX can be built.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <type_traits>

#include "runtime.h"

namespace cuda_on_cpu {

constexpr unsigned kFullWarp = 0xffffffffu;

template <class T>
struct Lanes {
  std::array<T, 32> values{};
  unsigned present = 0;

  bool has(unsigned lane) const { return present >> lane & 1; }
};

// The value of every lane of `mask`, in every lane of it.
template <class T>
Lanes<T> all_lanes(unsigned mask, const T& mine, const char* operation, Where at = Where::current()) {
  static_assert(std::is_trivially_copyable_v<T>);
  Lanes<T> lanes;
  lanes.present = exchange(mask, &mine, sizeof(T), lanes.values.data(), operation, at);
  return lanes;
}

template <class T>
T shuffle(unsigned mask, T value, unsigned source, const char* operation, Where at) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  const Lanes<T> lanes = all_lanes(mask, value, operation, at);
  if (!lanes.has(source)) fail("a shuffle reads a lane that is outside its mask or has returned", at);
  return lanes.values[source];
}

template <class T, class Combine>
T reduce(unsigned mask, T value, Combine combine, const char* operation, Where at) {
  const Lanes<T> lanes = all_lanes(mask, value, operation, at);
  T result = value;
  bool first = true;
  for (unsigned lane = 0; lane < 32; lane++) {
    if (!lanes.has(lane)) continue;
    result = first ? lanes.values[lane] : static_cast<T>(combine(result, lanes.values[lane]));
    first = false;
  }
  return result;
}

}  // namespace cuda_on_cpu

inline void __syncthreads(cuda_on_cpu::Where at = cuda_on_cpu::Where::current()) {
  cuda_on_cpu::block_barrier(false, at);
}
inline int __syncthreads_count(int predicate, cuda_on_cpu::Where at = cuda_on_cpu::Where::current()) {
  return static_cast<int>(cuda_on_cpu::block_barrier(predicate != 0, at).count);
}
inline int __syncthreads_or(int predicate, cuda_on_cpu::Where at = cuda_on_cpu::Where::current()) {
  return cuda_on_cpu::block_barrier(predicate != 0, at).count != 0;
}
inline int __syncthreads_and(int predicate, cuda_on_cpu::Where at = cuda_on_cpu::Where::current()) {
  const auto result = cuda_on_cpu::block_barrier(predicate != 0, at);
  return result.count == result.arrived;
}
inline void __syncwarp(unsigned mask = cuda_on_cpu::kFullWarp, cuda_on_cpu::Where at = cuda_on_cpu::Where::current()) {
  cuda_on_cpu::warp_barrier(mask, "__syncwarp", true, at);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              cuda_on_cpu::Where at = cuda_on_cpu::Where::current()) {
  const unsigned segment = cuda_on_cpu::here.lane & ~static_cast<unsigned>(width - 1);
  return cuda_on_cpu::shuffle(mask, value, segment | static_cast<unsigned>(source & (width - 1)), "__shfl_sync", at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  cuda_on_cpu::Where at = cuda_on_cpu::Where::current()) {
  const unsigned lane = cuda_on_cpu::here.lane, source = lane ^ static_cast<unsigned>(lanes);
  const unsigned segment = ~static_cast<unsigned>(width - 1);
  const bool later = (source & segment) > (lane & segment);
  return cuda_on_cpu::shuffle(mask, value, later ? lane : source, "__shfl_xor_sync", at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   cuda_on_cpu::Where at = cuda_on_cpu::Where::current()) {
  const unsigned lane = cuda_on_cpu::here.lane, size = static_cast<unsigned>(width);
  const bool inside = (lane & (size - 1)) + delta < size;
  return cuda_on_cpu::shuffle(mask, value, inside ? lane + delta : lane, "__shfl_down_sync", at);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 cuda_on_cpu::Where at = cuda_on_cpu::Where::current()) {
  const unsigned lane = cuda_on_cpu::here.lane;
  const bool inside = (lane & static_cast<unsigned>(width - 1)) >= delta;
  return cuda_on_cpu::shuffle(mask, value, inside ? lane - delta : lane, "__shfl_up_sync", at);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, cuda_on_cpu::Where at = cuda_on_cpu::Where::current()) {
  const unsigned mine = predicate ? 1u << cuda_on_cpu::here.lane : 0u;
  return cuda_on_cpu::reduce(mask, mine, std::bit_or<unsigned>(), "__ballot_sync", at);
}
inline int __any_sync(unsigned mask, int predicate, cuda_on_cpu::Where at = cuda_on_cpu::Where::current()) {
  return cuda_on_cpu::reduce(mask, predicate != 0, std::logical_or<bool>(), "__any_sync", at);
}
inline int __all_sync(unsigned mask, int predicate, cuda_on_cpu::Where at = cuda_on_cpu::Where::current()) {
  return cuda_on_cpu::reduce(mask, predicate != 0, std::logical_and<bool>(), "__all_sync", at);
}
template <class T>
T __reduce_add_sync(unsigned mask, T value, cuda_on_cpu::Where at = cuda_on_cpu::Where::current()) {
  return static_cast<T>(
      cuda_on_cpu::reduce(mask, static_cast<unsigned>(value), std::plus<unsigned>(), "__reduce_add_sync", at));
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, cuda_on_cpu::Where at = cuda_on_cpu::Where::current()) {
  return cuda_on_cpu::reduce(mask, value, [](T a, T b) { return a < b ? b : a; }, "__reduce_max_sync", at);
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, cuda_on_cpu::Where at = cuda_on_cpu::Where::current()) {
  return cuda_on_cpu::reduce(mask, value, [](T a, T b) { return b < a ? b : a; }, "__reduce_min_sync", at);
}
