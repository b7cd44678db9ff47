// Registration for CUDA, nothing else; cpu_ops.cpp defines the schemas of all ops that CPUs have too.
#include "gpu_settings.h"
#include "ops.h"

STABLE_TORCH_LIBRARY_IMPL(incline_fast, CUDA, m) { incline_fast::register_ops(m); }

STABLE_TORCH_LIBRARY_FRAGMENT(incline_fast, m) {
  m.def("set_batch_invariant(bool enabled) -> ()");
  m.def("set_programmatic_launch(bool enabled) -> ()");
  m.def("set_bulk_copies(bool enabled) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(incline_fast, CompositeExplicitAutograd, m) {
  m.impl("set_batch_invariant", TORCH_BOX(&incline_fast::cuda::set_batch_invariant));
  m.impl("set_programmatic_launch", TORCH_BOX(&incline_fast::cuda::set_programmatic_launch));
  m.impl("set_bulk_copies", TORCH_BOX(&incline_fast::cuda::set_bulk_copies));
}
