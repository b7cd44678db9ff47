// The launchers of csrc/cuda for ctypes: run them, or ask which launches they would make. Functions return null, or the
// message of what was thrown.
#include <dlfcn.h>

#include <exception>
#include <string>
#include <vector>

#include "cuda/affine_norm/plan.h"
#include "cuda/cholesky/cholesky.h"

using namespace incline_fast;  // NOLINT: a test's own file

namespace {

std::string message;
std::vector<cuda::Launch> launches;

template <class Function>
const char* guarded(Function function) {
  try {
    function();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

const char* name_of(cuda::Kernel kernel) {
  Dl_info info;
  return dladdr(reinterpret_cast<const void*>(kernel), &info) == 0 ? nullptr : info.dli_sname;
}

}  // namespace

extern "C" {

// One launch as the CUDA driver sees it.
struct LaunchRecord {
  const char* kernel;  // mangled, the same for g++ and nvcc
  unsigned grid[3];
  unsigned threads;
  unsigned cluster;
  long long dynamic_bytes;
  const void* parameter;
  long long parameter_bytes;
};

long long cuda_workspace_bytes(const AffineNorm* op) { return cuda::workspace_bytes(*op); }

// Bulk copies, clusters, ring_rows. Of the calling thread's device, which is asked once a thread.
const char* cuda_features(int* features) {
  return guarded([features] {
    const cuda::Features found = cuda::features();
    features[0] = found.bulk_copies, features[1] = found.clusters, features[2] = found.ring_rows;
  });
}

int cuda_ticket_count() { return cuda::kTicketCount; }

const char* cuda_plan(const AffineNorm* op, void* data, unsigned* tickets, const Rows* mapped, bool programmatic,
                      bool all_features) {
  const cuda::Features features = {all_features, all_features, 0};
  return guarded([&] {
    launches = mapped == nullptr ? cuda::plan(*op, {data, tickets}, programmatic, features)
                                 : cuda::plan_epilogue(*op, *mapped, programmatic);
  });
}

const char* cuda_run() {
  return guarded([] { cuda::run(launches, nullptr); });
}

int cuda_launch_count() { return static_cast<int>(launches.size()); }

LaunchRecord cuda_launch(int index) {
  const cuda::Launch& launch = launches[static_cast<std::size_t>(index)];
  const dim3 grid = launch.grid;
  return {name_of(launch.kernel), {grid.x, grid.y, grid.z}, static_cast<unsigned>(launch.threads),
          launch.cluster,         launch.dynamic_bytes,     &launch.call,
          sizeof(launch.call)};
}

const char* cuda_cholesky_block(const CholeskyBlock* op) {
  return guarded([&] { cuda::cholesky_block(*op, nullptr); });
}
}
