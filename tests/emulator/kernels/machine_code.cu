// Kernels whose machine code the gate must pass, or must not.
#include "test_launch.h"

extern "C" {

// 16-byte loads, few registers.
__global__ void __launch_bounds__(256, 4) wide(const uint4* x, uint4* y) {
  const unsigned i = blockIdx.x * 256 + threadIdx.x;
  y[i] = x[i];
}

// An array that is indexed at run time lies in local memory.
__global__ void __launch_bounds__(128) on_the_stack(const int* index, float* y) {
  float values[256];
  for (int i = 0; i < 256; i++) values[i] = y[i * 128 + threadIdx.x];
  y[threadIdx.x] = values[index[threadIdx.x] & 255];
}

// 40 KB of shared memory: at most four blocks on sm_80, where six are intended.
__global__ void __launch_bounds__(128, 6) much_shared(float* y) {
  __shared__ float s[10240];
  for (int i = threadIdx.x; i < 10240; i += 128) s[i] = y[i];
  __syncthreads();
  y[threadIdx.x] = s[10239 - threadIdx.x];
}
}
