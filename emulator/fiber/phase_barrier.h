// The portable twins of mbarrier and of cp.async.bulk from global to shared memory. A barrier's counts are kept beside
// the block; the word in shared memory is only its name.
//
// The bytes of a copy land when the phase in which they are awaited ends, and that is as late as can be: when a thread
// waits for it and no thread of the block gets further without. Until then the target holds garbage, so a kernel that
// does not wait computes wrong numbers under every schedule.
#pragma once

#include <cstdint>

#include "runtime.h"

namespace cuda_on_cpu {

// mbarrier.init: a phase ends with its `arrivals`th arrival, or later if bytes are awaited.
void phase_barrier_init(std::uint64_t* state, unsigned arrivals, Where at = Where::current());

// mbarrier.arrive, with .expect_tx: the phase then awaits `announced_bytes` more.
void phase_barrier_arrive(std::uint64_t* state, unsigned announced_bytes, Where at = Where::current());

// mbarrier.try_wait.parity in a loop. The phase before the first counts as ended. A parity is all that the hardware
// knows of a phase: who lags two phases behind waits for the next one of that parity, here too.
void phase_barrier_wait(std::uint64_t* state, unsigned parity, Where at = Where::current());

// cp.async.bulk.shared.global.mbarrier::complete_tx::bytes, in the phase that the barrier is in.
void bulk_copy(void* shared, const void* global, unsigned bytes, std::uint64_t* state, Where at = Where::current());

// fence.proxy.async: shows the barriers that the calling thread has initialised to the copies.
void fence_async_proxy(Where at = Where::current());

}  // namespace cuda_on_cpu
