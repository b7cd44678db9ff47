// Access patterns whose cost is known by hand.
#include "test_launch.h"

extern "C" {

// Every lane copies 16 bytes; warps and lanes are neighbours.
__global__ void copy_wide(const uint4* x, uint4* y) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i];
}

// Every lane reads 4 bytes, `stride` words apart.
__global__ void read_strided(const float* x, float* y, int stride) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i * stride];
}

// All blocks read the same words.
__global__ void read_again(const float* x, float* y) { y[blockIdx.x * blockDim.x + threadIdx.x] = x[threadIdx.x]; }

// Lanes read shared memory `stride` words apart.
__global__ void shared_strided(float* y, int stride) {
  __shared__ float s[1024];
  for (unsigned i = threadIdx.x; i < 1024; i += blockDim.x) s[i] = static_cast<float>(i);
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x * stride % 1024];
}

// Lanes read 16 bytes of shared memory, `stride` times 16 bytes apart.
__global__ void shared_wide(float* y, int stride) {
  __shared__ float4 s[256];
  for (unsigned i = threadIdx.x; i < 256; i += blockDim.x) s[i] = make_float4(i, i, i, i);
  __syncthreads();
  const float4 v = s[threadIdx.x * stride % 256];
  y[threadIdx.x] = v.x + v.y + v.z + v.w;
}
}
