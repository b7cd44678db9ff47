#include "torch_cuda.h"

#include <dlfcn.h>
#include <torch/headeronly/util/shim_utils.h>

#include <stdexcept>

#include "../cuda/affine_norm/ticket_pool.h"

namespace incline_fast::cuda {
namespace {

using GetStream = AOTITorchError (*)(std::int32_t device, void** cuda_stream);

// libtorch_cuda is looked up at the first use and not linked: this library can also be linked against a CPU build of
// torch, which has no libtorch_cuda.
GetStream find_get_stream() {
  void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  void* const symbol = library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream");
  if (symbol == nullptr) {
    throw std::runtime_error(
        "torch's current CUDA stream is not available: libtorch_cuda.so is not loaded, or has no "
        "aoti_torch_get_current_cuda_stream (torch >= 2.11 has it)");
  }
  return reinterpret_cast<GetStream>(symbol);
}

void* current_stream(int device) {
  static const GetStream get_stream = find_get_stream();
  void* cuda_stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get_stream(device, &cuda_stream));
  return cuda_stream;
}

}  // namespace

bool is_served(const torch::stable::Tensor& tensor) { return tensor.is_cuda(); }

OnDeviceOf::OnDeviceOf(const torch::stable::Tensor& tensor)
    : device_(tensor.get_device_index()), cuda_stream_(current_stream(device_)), guard_(device_) {}

unsigned* OnDeviceOf::tickets() const { return tickets_for(device_, cuda_stream_); }

}  // namespace incline_fast::cuda
