// What the scheduler offers to the headers that kernels see. Implemented in scheduler.cpp, which is never instrumented.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <source_location>

namespace cuda_on_cpu {

using Where = std::source_location;

// The thread that runs now. The scheduler rewrites it at every switch; kernels only read it.
struct Here {
  uint3 thread{};
  uint3 block{};
  dim3 block_shape{};
  dim3 grid_shape{};
  unsigned lane = 0;
  void* dynamic_shared = nullptr;
};
extern Here here;

// Ends the launch with a message that names the place, the block and the thread. No other thread of the grid runs on.
[[noreturn]] void fail(const char* what, Where at);

struct BarrierResult {
  unsigned count = 0;    // threads whose predicate held
  unsigned arrived = 0;  // threads that took part
};

// Waits for every thread of the block that has not returned. All must wait at the same place.
BarrierResult block_barrier(bool predicate, Where at);

// Waits for the lanes of `mask` that have not returned; they must name the same mask at the same place. `orders_memory`
// is true for __syncwarp alone: shuffles and votes exchange values and order nothing else.
void warp_barrier(unsigned mask, const char* operation, bool orders_memory, Where at);

// Copies `bytes` from every lane of `mask` to all[lane * bytes]; returns the lanes that were there.
unsigned exchange(unsigned mask, const void* mine, std::size_t bytes, void* all, const char* operation, Where at);

// Lets other threads and blocks run first if the schedule says so; after many in a row without any progress, fails.
void give_way(Where at);

// The same, before what counts as progress.
void take_turns(Where at);

// Makes what the calling thread wrote, or knows of, visible to the grid, and the reverse.
void fence();

enum class AtomicKind { kLoad, kStore, kReadModifyWrite };

// To be called before an atomic access to [address, address + bytes).
void announce_atomic(const void* address, std::size_t bytes, AtomicKind kind, Where at);

// cp.async: the copy is delivered only by wait_copies, so a forgotten wait shows as wrong numbers.
void start_copy(void* shared, const void* global, std::size_t bytes, std::size_t bytes_to_read, Where at);
void commit_copies();
void wait_copies(int groups_left);

// In clusters of `cluster` neighbouring blocks.
void run_grid(const void* kernel, unsigned cluster, dim3 grid, dim3 block, std::size_t dynamic_bytes,
              void (*body)(const void*), const void* arguments, Where at);

}  // namespace cuda_on_cpu
