// The few calls of the CUDA runtime that a launcher makes, for one emulated device.
#include <cuda_runtime_api.h>

#include <cstring>
#include <map>

#include "launch_limits.h"

namespace cuda_on_cpu {
namespace {

constexpr std::size_t kDefaultDynamicBytes = 48 << 10;   // more must be asked for with cudaFuncSetAttribute
constexpr std::size_t kLargestDynamicBytes = 227 << 10;  // sm_90
constexpr unsigned kPortableCluster = 8;                 // blocks; more must be asked for likewise
constexpr unsigned kLargestCluster = 16;
constexpr int kMultiprocessors = 4;  // few, so that small tests have several waves

cudaError_t last_error = cudaSuccess;
bool clusters_refused = false;
int memory_khz = 2'619'000, memory_bits = 5120;  // an H100's
std::map<const void*, std::size_t> dynamic_limits;
std::map<const void*, bool> larger_clusters;

std::string shape(dim3 s) {
  return "(" + std::to_string(s.x) + ", " + std::to_string(s.y) + ", " + std::to_string(s.z) + ")";
}

std::string check_cluster(const void* kernel, dim3 grid, unsigned cluster) {
  const std::string text = "cluster of " + std::to_string(cluster) + " blocks: ";
  if (cluster == 0 || cluster > kLargestCluster) return text + "allowed are 1 to " + std::to_string(kLargestCluster);
  const auto found = larger_clusters.find(kernel);
  if (cluster > kPortableCluster && (found == larger_clusters.end() || !found->second)) {
    return text + "the kernel may use " + std::to_string(kPortableCluster) +
           " (cudaFuncSetAttribute with cudaFuncAttributeNonPortableClusterSizeAllowed allows up to " +
           std::to_string(kLargestCluster) + ")";
  }
  if (grid.x % cluster != 0) return text + "the x of grid shape " + shape(grid) + " is not a multiple of it";
  return "";
}

}  // namespace

std::string check_limits(const void* kernel, dim3 grid, dim3 block, std::size_t dynamic_bytes, unsigned cluster) {
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
  return check_cluster(kernel, grid, cluster);
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
  if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    if (value != 0 && value != 1) return cudaErrorInvalidValue;
    cuda_on_cpu::larger_clusters[kernel] = value == 1;
    return cudaSuccess;
  }
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorNotSupported;
  if (value < 0 || static_cast<std::size_t>(value) > cuda_on_cpu::kLargestDynamicBytes) return cudaErrorInvalidValue;
  cuda_on_cpu::dynamic_limits[kernel] = static_cast<std::size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
  *attributes = {};
  attributes->ptxVersion = attributes->binaryVersion = 90;
  return cudaSuccess;
}

// As a part of a device that has no place for clusters.
void cuda_on_cpu_refuse_clusters(bool refused) { cuda_on_cpu::clusters_refused = refused; }

// The memory's clock and width; a width of 0 is not told.
void cuda_on_cpu_set_memory(int khz, int bits) { cuda_on_cpu::memory_khz = khz, cuda_on_cpu::memory_bits = bits; }

// One, if the launch is allowed at all.
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* kernel, const cudaLaunchConfig_t* config) {
  if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
  if (cuda_on_cpu::clusters_refused) {
    cuda_on_cpu::note_launch(cudaErrorInvalidClusterSize);
    return cudaErrorInvalidClusterSize;
  }
  dim3 cluster(1, 1, 1);
  for (unsigned i = 0; i < config->numAttrs; i++) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id != cudaLaunchAttributeClusterDimension) continue;
    cluster = dim3(attribute.val.clusterDim.x, attribute.val.clusterDim.y, attribute.val.clusterDim.z);
  }
  if (cluster.y != 1 || cluster.z != 1) return cudaErrorNotSupported;
  const std::string complaint =
      cuda_on_cpu::check_limits(kernel, config->gridDim, config->blockDim, config->dynamicSmemBytes, cluster.x);
  *clusters = complaint.empty() ? 1 : 0;
  return complaint.empty() ? cudaSuccess : cudaErrorInvalidClusterSize;
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
    case cudaDevAttrMemoryClockRate:
      *value = cuda_on_cpu::memory_khz;
      return cudaSuccess;
    case cudaDevAttrGlobalMemoryBusWidth:
      *value = cuda_on_cpu::memory_bits;
      return cuda_on_cpu::memory_bits == 0 ? cudaErrorNotSupported : cudaSuccess;
    case cudaDevAttrClusterLaunch:
      *value = 1;
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
