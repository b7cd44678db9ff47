// What the launchers need of torch's CUDA side and of the device. The test suite, which runs kernels on CPU tensors,
// links its own.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace incline_fast::cuda {

bool is_served(const torch::stable::Tensor& tensor);

// While it lives, the tensor's device is the current one.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const torch::stable::Tensor& tensor);

  // torch's current CUDA stream of that device.
  void* cuda_stream() const { return cuda_stream_; }

  // kTicketCount counters for the next launch on that CUDA stream, as Workspace takes them.
  unsigned* tickets() const;

 private:
  int device_ = -1;
  void* cuda_stream_ = nullptr;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

}  // namespace incline_fast::cuda
