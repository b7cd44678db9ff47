#if defined(__aarch64__)
// Every AArch64 processor has NEON: no target pragma is needed, and all translation units are compiled with it.
#include "affine_norm_kernel.h"
#include "cholesky_kernel.h"
#include "isa.h"
#include "vec_neon.h"

namespace incline_fast::cpu {

void affine_norm_neon(const AffineNorm& op, const Threads& threads) {
  run_affine_norm<NeonFloat, NeonDouble>(op, threads);
}

void cholesky_block_neon(const CholeskyBlock& op, const Threads& threads) {
  run_cholesky_block<NeonFloat, NeonDouble>(op, threads);
}

}  // namespace incline_fast::cpu
#endif
