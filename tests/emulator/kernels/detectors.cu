// Small kernels, right and wrong in one respect each, that show what the emulators find.
#include "test_launch.h"

extern "C" {

// ---- barriers and warps
// ----------------------------------------------------------------------------------------------

__global__ void reverse(float* x, bool with_barrier) {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];
  if (with_barrier) __syncthreads();
  x[threadIdx.x] = s[63 - threadIdx.x];
}

__global__ void divergent(float* x) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    x[threadIdx.x] = 1;
    __syncthreads();
  }
}

__global__ void absent_lane(int* x) {
  if (threadIdx.x < 16) x[threadIdx.x] = __shfl_sync(0xffffu, static_cast<int>(threadIdx.x), 20);
}

__global__ void waits_for_nobody(int* x) {
  if (threadIdx.x == 0) x[0] = __shfl_sync(0xffffffffu, 1, 0);
  __syncthreads();
}

__global__ void through_a_warp(int* x, bool with_barrier) {
  __shared__ int s[32];
  s[threadIdx.x] = x[threadIdx.x];
  if (with_barrier) __syncwarp();
  x[threadIdx.x] = s[31 - threadIdx.x];
}

// ---- blocks
// ----------------------------------------------------------------------------------------------------------

enum class Fault : int { kNone, kNoRelease, kNoAcquire, kNoBarrier };

// Every block sums its part; the last one to finish adds the parts in order and resets the counter.
__global__ void last_block_sums(const float* x, float* parts, unsigned* counter, float* total, Fault fault) {
  __shared__ float warps[2];
  __shared__ bool last;
  float sum = x[blockIdx.x * blockDim.x + threadIdx.x];
  for (int lanes = 16; lanes != 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
  if (fault != Fault::kNoBarrier) __syncthreads();
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = warps[0] + warps[1];
    if (fault != Fault::kNoRelease) __threadfence();
    last = atomicAdd(counter, 1u) == gridDim.x - 1;
    if (fault != Fault::kNoAcquire) __threadfence();
  }
  __syncthreads();
  if (!last || threadIdx.x != 0) return;
  float all = 0;
  for (unsigned i = 0; i < gridDim.x; i++) all += parts[i];
  *total = all;
  *counter = 0;
}

// Block i waits for the one before it (or after it: `backwards`). Numbers come from a ticket, so that the one before
// has started already whatever the order of blocks, and the one after has perhaps not.
__global__ void chain(unsigned* ticket, unsigned* flags, int* order, bool backwards) {
  const unsigned last = gridDim.x - 1, taken = atomicAdd(ticket, 1u), me = backwards ? last - taken : taken;
  if (me != 0) {
    while (atomicAdd(&flags[me - 1], 0u) == 0) {
    }
    __threadfence();
  }
  order[me] = me != 0 ? order[me - 1] + 1 : 1;
  __threadfence();
  atomicExch(&flags[me], 1u);
}

__global__ void no_order(int* x) { x[0] = static_cast<int>(blockIdx.x); }

__global__ void record_order(int* seen, unsigned* next) {
  seen[atomicAdd(next, 1u)] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}

// ---- memory
// ----------------------------------------------------------------------------------------------------------

__global__ void copy_four(const float* x, float* y) {
  reinterpret_cast<float4*>(y)[threadIdx.x] = reinterpret_cast<const float4*>(x)[threadIdx.x];
}

__global__ void garbage(float* y) {
  __shared__ float never_written[32];
  DYNAMIC_SHARED(float, neither);
  y[threadIdx.x] = never_written[threadIdx.x] + neither[threadIdx.x];
}

__global__ void write_dynamic(float* y, int index) {
  DYNAMIC_SHARED(float, memory);
  memory[index] = 1.0f;
  y[0] = memory[index];
}

__global__ void asynchronously(const float* x, float* y, bool wait) {
  __shared__ __align__(16) float s[128];
  copy_async(&s[threadIdx.x * 4], &x[threadIdx.x * 4]);
  commit_async();
  if (wait) wait_async();
  __syncthreads();
  for (int i = 0; i < 4; i++) y[threadIdx.x * 4 + i] = s[127 - (threadIdx.x * 4 + i)];
}

#if defined(INCLINE_FAST_EMULATED)
void run_reverse(float* x, bool with_barrier) { LAUNCH(reverse, 1, 64, 0, nullptr, x, with_barrier); }
void run_divergent(float* x) { LAUNCH(divergent, 1, 32, 0, nullptr, x); }
void run_absent_lane(int* x) { LAUNCH(absent_lane, 1, 32, 0, nullptr, x); }
void run_waits_for_nobody(int* x) { LAUNCH(waits_for_nobody, 1, 32, 0, nullptr, x); }
void run_through_a_warp(int* x, bool with_barrier) { LAUNCH(through_a_warp, 1, 32, 0, nullptr, x, with_barrier); }
void run_last_block_sums(const float* x, float* parts, unsigned* counter, float* total, int blocks, int fault) {
  LAUNCH(last_block_sums, blocks, 64, 0, nullptr, x, parts, counter, total, static_cast<Fault>(fault));
}
void run_chain(unsigned* ticket, unsigned* flags, int* order, int blocks, bool backwards) {
  LAUNCH(chain, blocks, 1, 0, nullptr, ticket, flags, order, backwards);
}
void run_no_order(int* x) { LAUNCH(no_order, 2, 1, 0, nullptr, x); }
void run_record_order(int* seen, unsigned* next, int blocks, int threads) {
  LAUNCH(record_order, blocks, threads, 0, nullptr, seen, next);
}
void run_copy_four(const float* x, float* y, int threads) { LAUNCH(copy_four, 1, threads, 0, nullptr, x, y); }
void run_garbage(float* y) { LAUNCH(garbage, 1, 32, 128, nullptr, y); }
void run_write_dynamic(float* y, int index, int bytes) { LAUNCH(write_dynamic, 1, 1, bytes, nullptr, y, index); }
void run_asynchronously(const float* x, float* y, bool wait) { LAUNCH(asynchronously, 1, 32, 0, nullptr, x, y, wait); }
#endif
}
