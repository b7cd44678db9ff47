#include "../cpu/dispatch.h"
#include "backend.h"
#include "torch_threads.h"

namespace incline_fast::backend {

const char* device() { return "cpu"; }

bool serves(const Tensor& tensor) { return tensor.is_cpu(); }

bool reads_values() { return true; }

std::int64_t max_cholesky_size() { return kMaxCholeskySize; }

void affine_norm(const AffineNorm& op, const AffineTensors&) { cpu::affine_norm(op, torch_threads()); }

void cholesky_block(const CholeskyBlock& op, const Tensor&) { cpu::cholesky_block(op, torch_threads()); }

}  // namespace incline_fast::backend
