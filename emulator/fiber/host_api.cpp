// The few calls of the CUDA runtime that a launcher makes, for one emulated device.
#include <cuda_runtime_api.h>

#include <cstring>
#include <map>

#include "launch_limits.h"

namespace cuda_on_cpu {
namespace {

constexpr std::size_t kDefaultDynamicBytes = 48 << 10;   // more must be asked for with cudaFuncSetAttribute
constexpr std::size_t kLargestDynamicBytes = 227 << 10;  // sm_90
constexpr int kMultiprocessors = 4;                      // few, so that small tests have several waves

cudaError_t last_error = cudaSuccess;
std::map<const void*, std::size_t> dynamic_limits;

}  // namespace

std::string check_limits(const void* kernel, dim3 grid, dim3 block, std::size_t dynamic_bytes) {
  const auto shape = [](dim3 s) {
    return "(" + std::to_string(s.x) + ", " + std::to_string(s.y) + ", " + std::to_string(s.z) + ")";
  };
  const std::size_t threads = static_cast<std::size_t>(block.x) * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64)
    return "block shape " + shape(block) + ": allowed are 1 to 1024 threads";
  const bool empty = grid.x == 0 || grid.y == 0 || grid.z == 0;
  if (empty || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    return "grid shape " + shape(grid) + ": allowed are 1 to 2^31 - 1, 65535 and 65535 blocks";
  }
  const auto found = dynamic_limits.find(kernel);
  const std::size_t limit = found == dynamic_limits.end() ? kDefaultDynamicBytes : found->second;
  if (dynamic_bytes > limit) {
    return "dynamic shared memory " + std::to_string(dynamic_bytes) + " bytes: the kernel may use " +
           std::to_string(limit) + " (cudaFuncSetAttribute allows up to " + std::to_string(kLargestDynamicBytes) + ")";
  }
  return "";
}

void note_launch(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
}

}  // namespace cuda_on_cpu

extern "C" {

cudaError_t cudaPeekAtLastError() { return cuda_on_cpu::last_error; }

cudaError_t cudaGetLastError() {
  const cudaError_t error = cuda_on_cpu::last_error;
  cuda_on_cpu::last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "the emulated launch failed; cuda_on_cpu_take_error() says why";
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorNotSupported;
  if (value < 0 || static_cast<std::size_t>(value) > cuda_on_cpu::kLargestDynamicBytes) return cudaErrorInvalidValue;
  cuda_on_cpu::dynamic_limits[kernel] = static_cast<std::size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->ptxVersion = attributes->binaryVersion = 90;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = cuda_on_cpu::kMultiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(cuda_on_cpu::kLargestDynamicBytes);
      return cudaSuccess;
    default:
      return cudaErrorNotSupported;
  }
}

cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t) {
  std::memset(address, value, bytes);
  return cudaSuccess;
}
}
