// Tensor-core products of one warp: D[16, 8] += A[16, 16] B[16, 8], fp32 sums.
//
// Lane l = 4 g + t holds, each word two neighbours in k:  A  rows g, g + 8 at k = 2 t, then the same at k = 2 t + 8
//                                                         B  column g at k = 2 t and 2 t + 8
//                                                         D  rows g, g, g + 8, g + 8 of columns 2 t, 2 t + 1, 2 t, 2 t
//                                                         + 1
// Source: PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type".
#pragma once

#include "../launch.h"

namespace incline_fast::cuda {

__device__ __forceinline__ void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef INCLINE_FAST_EMULATED
  cuda_on_cpu::mma_16x8<cuda_on_cpu::BFloat16>(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

__device__ __forceinline__ void mma_fp16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef INCLINE_FAST_EMULATED
  cuda_on_cpu::mma_16x8<cuda_on_cpu::Float16>(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

}  // namespace incline_fast::cuda
