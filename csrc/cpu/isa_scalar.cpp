#include "affine_norm_kernel.h"
#include "cholesky_kernel.h"
#include "isa.h"
#include "vec_scalar.h"

namespace incline_fast::cpu {

void affine_norm_scalar(const AffineNorm& op, const Threads& threads) {
  run_affine_norm<ScalarVec<float>, ScalarVec<double>>(op, threads);
}

void cholesky_block_scalar(const CholeskyBlock& op, const Threads& threads) {
  run_cholesky_block<ScalarVec<float>, ScalarVec<double>>(op, threads);
}

}  // namespace incline_fast::cpu
