// Chooses, once per process, the widest instruction set that this machine has.
#pragma once

#include "../affine_norm.h"
#include "../cholesky.h"

namespace incline_fast::cpu {

void affine_norm(const AffineNorm& op, const Threads& threads);

void cholesky_block(const CholeskyBlock& op, const Threads& threads);

// "amx", "avx512", "avx2", "neon" or "scalar". The environment variable INCLINE_FAST_CPU_ISA forces one; throws
// std::invalid_argument when it names none, or one that this machine lacks.
const char* isa_name();

}  // namespace incline_fast::cpu
