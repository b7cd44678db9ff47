#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "isa.h"

namespace incline_fast::cpu {
namespace {

struct Isa {
  const char* name;
  bool available;
  void (*affine_norm)(const AffineNorm&, const Threads&);
  void (*cholesky_block)(const CholeskyBlock&, const Threads&);
};

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

const Isa& select() {
  static const Isa isas[] = {
#if defined(__x86_64__)
      {"amx", has_avx512() && amx_is_usable(), affine_norm_amx, cholesky_block_avx512},
      {"avx512", has_avx512(), affine_norm_avx512, cholesky_block_avx512},
      {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"),
       affine_norm_avx2, cholesky_block_avx2},
#elif defined(__aarch64__)
      {"neon", true, affine_norm_neon, cholesky_block_neon},
#endif
      {"scalar", true, affine_norm_scalar, cholesky_block_scalar},
  };
  const char* forced = std::getenv("INCLINE_FAST_CPU_ISA");
  std::string available;
  for (const Isa& isa : isas) {
    if (!isa.available) continue;
    if (forced == nullptr || std::string(forced) == isa.name) return isa;
    available += available.empty() ? isa.name : std::string(", ") + isa.name;
  }
  throw std::invalid_argument("INCLINE_FAST_CPU_ISA is \"" + std::string(forced) +
                              "\"; this machine and build allow: " + available);
}

const Isa& selected() {
  static const Isa& isa = select();
  return isa;
}

}  // namespace

void affine_norm(const AffineNorm& op, const Threads& threads) { selected().affine_norm(op, threads); }

void cholesky_block(const CholeskyBlock& op, const Threads& threads) { selected().cholesky_block(op, threads); }

const char* isa_name() { return selected().name; }

}  // namespace incline_fast::cpu
