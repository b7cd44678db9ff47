#if defined(__x86_64__)
// Headers of the language and the compiler come before the target pragma: what they define inline may be shared with
// other translation units, so it must stay within the baseline instruction set.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "isa.h"

// GCC 12 reports its own _mm512_undefined_* operands (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "affine_norm_kernel.h"
#include "cholesky_kernel.h"
#include "vec_avx512.h"

namespace incline_fast::cpu {

void affine_norm_avx512(const AffineNorm& op, const Threads& threads) {
  run_affine_norm<Avx512Float, Avx512Double>(op, threads);
}

void cholesky_block_avx512(const CholeskyBlock& op, const Threads& threads) {
  run_cholesky_block<Avx512Float, Avx512Double>(op, threads);
}

}  // namespace incline_fast::cpu
#endif
