#if defined(__x86_64__)
#include "isa_prelude.h"

#pragma GCC target("avx2,fma,f16c")
#include "affine_norm_kernel.h"
#include "cholesky_kernel.h"
#include "vec_avx2.h"

namespace incline_fast::cpu {

void affine_norm_avx2(const AffineNorm& op, const Threads& threads) {
  run_affine_norm<Avx2Float, Avx2Double>(op, threads);
}

void cholesky_block_avx2(const CholeskyBlock& op, const Threads& threads) {
  run_cholesky_block<Avx2Float, Avx2Double>(op, threads);
}

}  // namespace incline_fast::cpu
#endif
