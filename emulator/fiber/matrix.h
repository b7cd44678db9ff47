// Portable twins of the tensor-core instructions. Products are exact; the sum over k runs upwards in fp64 (in int32 for
// int8), the addend comes last and is rounded once: the definition that the PTX emulator has as well, so that the two
// agree bit for bit. A GPU sums in an order and width of its own.
#pragma once

#include <bit>
#include <cstdint>

#include "warp.h"

namespace cuda_on_cpu {

struct BFloat16 {
  static constexpr unsigned kPerRegister = 2;
  using Sum = double;
  static double unpack(unsigned word, unsigned index) {
    return std::bit_cast<float>(index ? word & 0xffff0000u : word << 16);
  }
};

struct Float16 {
  static constexpr unsigned kPerRegister = 2;
  using Sum = double;
  static double unpack(unsigned word, unsigned index) {
    return std::bit_cast<_Float16>(static_cast<std::uint16_t>(word >> (16 * index)));
  }
};

struct Int8 {
  static constexpr unsigned kPerRegister = 4;
  using Sum = int;
  static int unpack(unsigned word, unsigned index) { return static_cast<std::int8_t>(word >> (8 * index)); }
};

// mma.sync.aligned.m16n8k(8 * kPerRegister).row.col: d += A B with A 16 x k, B k x 8, spread over the warp as PTX says.
template <class Element, class Accumulator>
void mma_16x8(Accumulator (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], Where at = Where::current()) {
  struct Fragments {
    unsigned a[4], b[2];
  };
  const auto lanes = all_lanes(kFullWarp, Fragments{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, "mma", at);
  if (lanes.present != kFullWarp) fail("mma needs all 32 lanes", at);
  constexpr unsigned per = Element::kPerRegister;
  for (unsigned i = 0; i < 4; i++) {
    const unsigned row = here.lane / 4 + 8 * (i / 2), column = here.lane % 4 * 2 + i % 2;
    typename Element::Sum sum = 0;
    for (unsigned k = 0; k < 8 * per; k++) {
      const unsigned half = k / (4 * per), owner = k % (4 * per) / per;
      const unsigned word_a = lanes.values[row % 8 * 4 + owner].a[row / 8 + 2 * half];
      const unsigned word_b = lanes.values[column * 4 + owner].b[half];
      sum += Element::unpack(word_a, k % per) * Element::unpack(word_b, k % per);
    }
    d[i] = static_cast<Accumulator>(sum + d[i]);
  }
}

// ldmatrix.sync.aligned.m8n8.x(count)[.trans].shared.b16: lane l names row l % 8 of matrix l / 8.
template <unsigned count, bool transposed>
void load_matrices(unsigned (&d)[count], const void* row, Where at = Where::current()) {
  if (reinterpret_cast<std::size_t>(row) % 16 && here.lane < 8 * count)
    fail("ldmatrix: a row is not 16-byte aligned", at);
  const auto rows = all_lanes(kFullWarp, row, "ldmatrix", at);
  for (unsigned matrix = 0; matrix < count; matrix++) {
    unsigned halves[2];
    for (unsigned j = 0; j < 2; j++) {
      const unsigned r = transposed ? here.lane % 4 * 2 + j : here.lane / 4;
      const unsigned c = transposed ? here.lane / 4 : here.lane % 4 * 2 + j;
      halves[j] = static_cast<const std::uint16_t*>(rows.values[matrix * 8 + r])[c];
    }
    d[matrix] = halves[0] | halves[1] << 16;
  }
}

}  // namespace cuda_on_cpu
