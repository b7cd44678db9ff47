#if defined(__x86_64__)
#include <cpuid.h>

#include "isa_prelude.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace incline_fast::cpu {

// Linux lets a process use the 8 KB of tile registers of a thread only after it has asked for permission.
bool amx_is_usable() {
#if defined(__linux__)
  constexpr unsigned kBFloat16 = 1u << 22, kTile = 1u << 24;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & kTile) == 0 || (edx & kBFloat16) == 0) {
    return false;
  }
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace incline_fast::cpu

#pragma GCC target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "affine_norm_kernel.h"
#include "amx_gemm.h"

namespace incline_fast::cpu {

void affine_norm_amx(const AffineNorm& op, const Threads& threads) {
  run_affine_norm<AmxFloat, Avx512Double>(op, threads);
}

}  // namespace incline_fast::cpu
#endif
