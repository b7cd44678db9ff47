// Finds data races on shared and global memory: two accesses to one byte, one of them a write, that nothing orders.
//
// Order comes from program order, __syncthreads, __syncwarp, the barrier of a cluster, and across blocks from a fence
// before an atomic that another thread's atomic reads before its own fence (the PTX model's release and acquire
// patterns). It does not depend on the schedule: a missing fence before a "last block finishes" ticket is found even
// where the values come out right. Accesses arrive through the calls that g++ -fsanitize=thread puts before each of
// them; without it nothing is recorded.
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

Moment now(const Fiber& fiber);
// Whether what was done then is ordered before what the thread does now. True where nothing is detected.
bool is_before(const Moment& earlier, const Fiber& fiber);

// Release and acquire: what is known now, for others to know later.
SharedKnowledge hand_on(Fiber& fiber);
void acquire(Fiber& fiber, const SharedKnowledge& knowledge);
SharedKnowledge joined(const SharedKnowledge& a, const SharedKnowledge& b);

// A copy is a thread of its own, `agent`, that comes after what its starter did before, and before those who know of
// the `step`th end of its barrier's phases.
constexpr std::uint32_t kFirstAgent = 1024;
void record_copy(Fiber& starter, std::uint32_t agent, std::uint32_t step, const BulkCopy& copy);
SharedKnowledge know_of_agent(const Block& block, std::uint32_t agent, std::uint32_t step);

// The barrier of a cluster: an arrival, the end of a phase, a wait. A thread that has ended hands on nothing.
void arrive_at_cluster(Fiber& fiber);
void end_cluster_phase(Cluster& cluster);
void acquire_cluster(Fiber& fiber);
void end_thread(const Fiber& fiber);

void order_warp(Fiber* const* fibers, unsigned count);
void order_block(Block& block);

}  // namespace cuda_on_cpu::races
