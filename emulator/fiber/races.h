// Finds data races on shared and global memory: two accesses to one byte, one of them a write, that nothing orders.
//
// Order comes from program order, __syncthreads, __syncwarp, and across blocks from a fence before an atomic that
// another thread's atomic reads before its own fence (the PTX model's release and acquire patterns). It does not depend
// on the schedule: a missing fence before a "last block finishes" ticket is found even where the values come out right.
// Accesses arrive through the calls that g++ -fsanitize=thread puts before each of them; without it nothing is
// recorded.
#pragma once

#include "grid.h"

namespace cuda_on_cpu::races {

enum class Access { kRead, kWrite, kAtomic };

void begin_launch();
void begin_block(const Block& block);

// `address` is read or written by `fiber`; `instruction` (may be null) and `place` say where in the source.
void record(Fiber& fiber, const void* address, std::size_t bytes, Access access, const void* instruction, Where place);

void order_atomic(Fiber& fiber, const void* address, AtomicKind kind);
void order_fence(Fiber& fiber);
void order_warp(Fiber* const* fibers, unsigned count);
void order_block(Block& block);

}  // namespace cuda_on_cpu::races
