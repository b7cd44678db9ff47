// The kernels' entry points, one per instruction set; each is compiled in its own translation unit.
#pragma once

#include "../affine_norm.h"
#include "../cholesky.h"

namespace incline_fast::cpu {

void affine_norm_scalar(const AffineNorm& op, const Threads& threads);
void cholesky_block_scalar(const CholeskyBlock& op, const Threads& threads);
#if defined(__x86_64__)
void affine_norm_avx2(const AffineNorm& op, const Threads& threads);
void cholesky_block_avx2(const CholeskyBlock& op, const Threads& threads);
bool amx_is_usable();  // whether processor and operating system have AMX; AVX-512 is checked apart
void affine_norm_amx(const AffineNorm& op, const Threads& threads);
void affine_norm_avx512(const AffineNorm& op, const Threads& threads);
void cholesky_block_avx512(const CholeskyBlock& op, const Threads& threads);
#elif defined(__aarch64__)
void affine_norm_neon(const AffineNorm& op, const Threads& threads);
void cholesky_block_neon(const CholeskyBlock& op, const Threads& threads);
#endif

}  // namespace incline_fast::cpu
