#if defined(__x86_64__)
#include "isa_prelude.h"

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
