// Schemas, and registration for the CPU; nothing else.
#include <string>

#include "../cpu/dispatch.h"
#include "ops.h"

namespace {

std::string cpu_isa() { return incline_fast::cpu::isa_name(); }

}  // namespace

STABLE_TORCH_LIBRARY(incline_fast, m) {
  incline_fast::define_ops(m);
  incline_fast::define_affine_residual(m);
  m.def("cpu_isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(incline_fast, CPU, m) {
  incline_fast::register_ops(m);
  incline_fast::register_affine_residual(m);
}

STABLE_TORCH_LIBRARY_IMPL(incline_fast, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&cpu_isa)); }
