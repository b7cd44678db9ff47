#include "phase_barrier.h"

#include <algorithm>
#include <cstring>

#include "grid.h"
#include "races.h"

namespace cuda_on_cpu {
namespace {

constexpr unsigned kMost = (1u << 20) - 1;  // arrivals, and bytes, that the hardware counts in a phase
constexpr std::size_t kCopyUnit = 16;

// The barrier that the calling thread uses; it must know of its initialisation.
PhaseBarrier& find(const std::uint64_t* state, Where at) {
  auto& barriers = current->block->phase_barriers;
  const auto found = barriers.find(state);
  if (found == barriers.end()) fail("a phase barrier is used that was never initialised", at);
  if (!races::is_before(found->second.initialised, *current)) {
    fail("a phase barrier is used by a thread that is not ordered after its initialisation", at);
  }
  races::record(*current, state, sizeof *state, races::Access::kAtomic, nullptr, at);
  return found->second;
}

bool waits_at(const PhaseBarrier& barrier, const Fiber& fiber) {
  return fiber.state == State::kAtPhaseBarrier && fiber.phase_barrier == &barrier;
}

void end_phase(Block& block, PhaseBarrier& barrier) {
  for (const BulkCopy& copy : barrier.copies) std::memcpy(copy.shared, copy.global, copy.bytes);
  if (!barrier.copies.empty()) {
    barrier.arrived = races::joined(barrier.arrived, races::know_of_agent(block, barrier.agent, barrier.phase + 1));
  }
  barrier.ended = barrier.arrived;
  barrier.copies.clear();
  barrier.announced = barrier.started = 0;
  barrier.pending = barrier.arrivals;
  barrier.phase++;
  for (Fiber& fiber : block.fibers) {
    if (waits_at(barrier, fiber)) fiber.state = State::kReady;
  }
}

// After an arrival or the start of a copy. A phase with bytes ends later, in land_copies.
void end_phase_without_bytes(PhaseBarrier& barrier, Where at) {
  if (barrier.pending != 0) return;
  if (barrier.started > barrier.announced) {
    const std::string text = "a phase of a barrier has all its arrivals, which announced " +
                             std::to_string(barrier.announced) + " bytes, and copies of " +
                             std::to_string(barrier.started);
    fail(text.c_str(), at);
  }
  if (barrier.announced == 0) end_phase(*current->block, barrier);
}

// Where copies alone are missing, the arrival may have been meant for the next phase; but nothing orders it after the
// end of this one.
[[noreturn]] void fail_arrival(const PhaseBarrier& barrier, Where at) {
  if (!barrier.can_end()) fail("an arrival too many in a phase of a barrier", at);
  const std::string text =
      "race on shared memory: an arrival at a barrier is not ordered after the phase before it, whose copy, started "
      "at " +
      name_of(barrier.copies.front().place) + ", may be under way";
  fail(text.c_str(), at);
}

void check_copy(const void* shared, const void* global, std::size_t bytes, Where at) {
  const Block& block = *current->block;
  const auto bits = reinterpret_cast<std::uintptr_t>(shared) | reinterpret_cast<std::uintptr_t>(global) | bytes;
  if (bytes == 0) fail("a bulk copy of no bytes", at);
  if (bits % kCopyUnit) fail("a bulk copy: its addresses and bytes are not all multiples of 16", at);
  if (!lies_in_shared(block, shared, bytes)) fail("a bulk copy goes beyond the block's shared memory", at);
  if (lies_in_shared(block, global, 1)) fail("a bulk copy comes from shared memory", at);
  if (overlaps_phase_barrier(block, shared, bytes)) fail("a bulk copy overwrites a phase barrier", at);
}

}  // namespace

bool lies_in_shared(const Block& block, const void* start, std::size_t bytes) {
  const void* last = static_cast<const char*>(start) + bytes - 1;
  const auto both = [&](const void* memory, std::size_t size) {
    return lies_in(start, memory, size) && lies_in(last, memory, size);
  };
  return both(block.static_shared, block.static_bytes) || both(block.dynamic_shared, block.dynamic_bytes);
}

bool overlaps_phase_barrier(const Block& block, const void* start, std::size_t bytes) {
  return std::ranges::any_of(block.phase_barriers, [&](const auto& entry) {
    return lies_in(entry.first, start, bytes) || lies_in(start, entry.first, sizeof *entry.first);
  });
}

void phase_barrier_init(std::uint64_t* state, unsigned arrivals, Where at) {
  Block& block = *current->block;
  if (!lies_in_shared(block, state, sizeof *state)) fail("a phase barrier lies outside of shared memory", at);
  if (arrivals == 0 || arrivals > kMost) fail("a phase barrier takes 1 to 1048575 arrivals", at);
  if (block.phase_barriers.contains(state)) fail("a phase barrier is initialised again while it is in use", at);
  races::record(*current, state, sizeof *state, races::Access::kWrite, nullptr, at);
  const auto agent = static_cast<std::uint32_t>(races::kFirstAgent + block.phase_barriers.size());
  PhaseBarrier& barrier = block.phase_barriers[state];
  barrier.arrivals = barrier.pending = arrivals;
  barrier.initialised = races::now(*current);
  barrier.agent = agent;
}

void phase_barrier_arrive(std::uint64_t* state, unsigned announced_bytes, Where at) {
  take_turns(at);
  PhaseBarrier& barrier = find(state, at);
  if (barrier.pending == 0) fail_arrival(barrier, at);
  barrier.announced += announced_bytes;
  if (barrier.announced > kMost) fail("a phase of a barrier awaits more than 1048575 bytes", at);
  barrier.arrived = races::joined(barrier.arrived, races::hand_on(*current));
  barrier.pending--;
  end_phase_without_bytes(barrier, at);
}

void phase_barrier_wait(std::uint64_t* state, unsigned parity, Where at) {
  if (parity > 1) fail("the parity of a phase is 0 or 1", at);
  take_turns(at);
  PhaseBarrier& barrier = find(state, at);
  while (!barrier.has_ended(parity)) {
    current->state = State::kAtPhaseBarrier;
    current->operation = "wait at a phase barrier";
    current->phase_barrier = &barrier;
    current->place = at;
    leave(false);
  }
  races::acquire(*current, barrier.ended);
}

void bulk_copy(void* shared, const void* global, unsigned bytes, std::uint64_t* state, Where at) {
  take_turns(at);
  check_copy(shared, global, bytes, at);
  PhaseBarrier& barrier = find(state, at);
  if (barrier.shown.step == 0 || !races::is_before(barrier.shown, *current)) {
    fail("a copy uses a barrier that was not shown to the copies", at);
  }
  const BulkCopy copy{shared, global, bytes, current, at};
  races::record_copy(*current, barrier.agent, barrier.phase + 1, copy);
  std::memset(shared, kGarbage, bytes);
  barrier.copies.push_back(copy);
  barrier.started += bytes;
  end_phase_without_bytes(barrier, at);
}

void fence_async_proxy(Where at) {
  take_turns(at);
  for (auto& [state, barrier] : current->block->phase_barriers) {
    const bool ours = barrier.initialised.thread == current->number;
    if (ours && barrier.shown.step == 0) barrier.shown = races::now(*current);
  }
}

bool land_copies(Block& block) {
  std::vector<PhaseBarrier*> awaited;
  for (auto& [state, barrier] : block.phase_barriers) {
    const auto waits = [&](const Fiber& fiber) { return waits_at(barrier, fiber); };
    if (barrier.can_end() && std::ranges::any_of(block.fibers, waits)) awaited.push_back(&barrier);
  }
  if (awaited.empty()) return false;
  // Some, in any order of the stages; one at least.
  const std::size_t first = draw(awaited.size());
  for (std::size_t i = 0; i < awaited.size(); i++) {
    if (i == first || !chance(2)) end_phase(block, *awaited[i]);
  }
  return true;
}

void report_copies_under_way(const Block& block) {
  for (const auto& [state, barrier] : block.phase_barriers) {
    if (barrier.copies.empty()) continue;
    const BulkCopy& copy = barrier.copies.front();
    report("a block ends while a bulk copy to its shared memory may be under way: " + name_of(*copy.starter) +
           " started it at " + name_of(copy.place));
  }
}

std::string what_is_awaited(const Fiber& at_phase_barrier) {
  const PhaseBarrier& barrier = *at_phase_barrier.phase_barrier;
  const std::size_t bytes = barrier.announced - std::min(barrier.announced, barrier.started);
  return " (its phase " + std::to_string(barrier.phase) + " awaits " + std::to_string(barrier.pending) +
         " arrivals, and copies of " + std::to_string(bytes) + " bytes)";
}

}  // namespace cuda_on_cpu
