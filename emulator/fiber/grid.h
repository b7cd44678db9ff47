// The state of a launch, shared by the scheduler and the race detector. Kernels never see this header.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <semaphore>
#include <set>
#include <string>
#include <vector>

#include "race_clock.h"
#include "runtime.h"
#include "stack.h"

namespace cuda_on_cpu {

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kAtPhaseBarrier, kAtClusterBarrier, kDone };

struct Copy {
  void* shared = nullptr;
  const void* global = nullptr;
  std::size_t bytes = 0;
  std::size_t bytes_to_read = 0;
  bool ends_group = false;
  Where place;
};

struct Block;
struct Cluster;
struct Fiber;

struct BulkCopy {
  void* shared = nullptr;
  const void* global = nullptr;
  std::size_t bytes = 0;
  const Fiber* starter = nullptr;
  Where place;
};

struct PhaseBarrier {
  unsigned arrivals = 0;  // that a phase needs
  unsigned pending = 0;   // of them, in this phase
  unsigned phase = 0;
  std::size_t announced = 0;     // bytes that this phase awaits
  std::size_t started = 0;       // bytes of `copies`
  std::vector<BulkCopy> copies;  // under way, in this phase
  Moment initialised;
  Moment shown;             // to the copies; never, if its step is 0
  std::uint32_t agent = 0;  // for the race detector: the number of the thread that its copies are
  SharedKnowledge arrived;  // of those that arrived so far, and of the copies that landed
  SharedKnowledge ended;    // the same when the last phase ended: for those that wait

  bool has_ended(unsigned parity) const { return phase % 2 != parity; }
  bool can_end() const { return pending == 0 && announced == started; }
};

// What a thread has done at the barrier of its cluster.
struct ClusterPart {
  std::uint32_t arrivals = 0;
  std::uint32_t waits = 0;  // that are over
  Where arrival;            // the last one
  std::uint32_t step = 0;   // of the thread's clock at that
  SharedKnowledge known;    // likewise
  bool stored = false;      // to another block, since then
  Where store;
};

struct Fiber {
  Block* block = nullptr;
  unsigned number = 0;  // within the block
  Here view;
  Context context;
  char* stack = nullptr;
  State state = State::kReady;
  bool gave_way = false;
  // What it waits for.
  const char* operation = "";
  bool orders_memory = false;
  Where place;
  unsigned mask = 0;
  bool predicate = false;
  PhaseBarrier* phase_barrier = nullptr;
  const void* published = nullptr;
  std::vector<Copy> copies;
  ClusterPart in_cluster;
  ThreadClock clock;
};

struct Block {
  unsigned number = 0;  // within the grid
  std::vector<Fiber> fibers;
  unsigned live = 0;
  BarrierResult barrier;
  unsigned barrier_epoch = 1;
  std::map<const std::uint64_t*, PhaseBarrier> phase_barriers;
  Cluster* cluster = nullptr;
  std::uint32_t cluster_phases = 0;  // ends of phases that its threads have noticed
  bool stuck = false;                // until the cluster's barrier releases somebody
  // Where its static shared variables lie: the thread-local image of the library.
  char* static_shared = nullptr;
  std::size_t static_bytes = 0;
  char* dynamic_shared = nullptr;
  std::size_t dynamic_bytes = 0;
  Context scheduler;
};

// Into the shared memory of another block.
struct RemoteStore {
  Block* target = nullptr;
  void* address = nullptr;
  std::array<unsigned char, 16> value{};
  std::size_t bytes = 0;
  const Fiber* storer = nullptr;
  std::uint32_t phase = 0;  // of the cluster's barrier, at whose end it is ordered
  Where place;
};

// Blocks that are in flight together. Without clusters, each block is one of its own.
struct Cluster {
  unsigned number = 0;         // within the grid
  std::vector<Block*> blocks;  // by rank; null before their start and after their end
  unsigned started = 0;        // blocks
  unsigned gone = 0;           // blocks
  unsigned live = 0;           // threads, also those of blocks that have not started
  unsigned arrived = 0;        // of them, in this phase of the barrier
  std::uint32_t phase = 0;
  std::vector<RemoteStore> stores;   // under way
  Knowledge arriving;                // of those that arrived so far
  std::set<SharedKnowledge> joined;  // parts of it
  SharedKnowledge ended;             // the same when the last phase ended: for those that wait
};

// The fiber that runs now; null between fibers.
extern Fiber* current;

// Notes why the launch fails. The thread that runs goes on to its next switch; abandon_thread makes that now.
void report(const std::string& message);
[[noreturn]] void abandon_thread();
std::string name_of(const Fiber& fiber);
std::string name_of(Where at);
std::string name_of_current();

// Back to the scheduler; returns when the thread runs again, never if it has finished.
void leave(bool finished);

// A thread that returns may be the last one that others wait for.
void release_after_return(Fiber& fiber);

// Once in so many, drawn from the seed; never in the natural order.
bool chance(unsigned one_in);

// A number below `count`, drawn from the seed; 0 in the natural order.
std::size_t draw(std::size_t count);

inline bool lies_in(const void* address, const void* start, std::size_t bytes) {
  const auto offset = reinterpret_cast<std::uintptr_t>(address) - reinterpret_cast<std::uintptr_t>(start);
  return offset < bytes;
}

bool lies_in_shared(const Block& block, const void* start, std::size_t bytes);
bool overlaps_phase_barrier(const Block& block, const void* start, std::size_t bytes);

// Before a thread returns: fails if the cluster would still need it or its block.
void leave_cluster(Fiber& fiber);
// Shows a block the end of a phase of its cluster's barrier, if a thread waits for it.
bool notice_cluster_phase(Block& block);
bool waits_for_cluster(const Block& block);
std::string what_is_awaited(const Cluster& cluster);

// Lands copies that a thread waits for, where nothing else is missing. Says whether any phase ended.
bool land_copies(Block& block);
void report_copies_under_way(const Block& block);
std::string what_is_awaited(const Fiber& at_phase_barrier);

// What shared memory holds before it is written: NaN in every type of float, so that zero times it shows as well.
constexpr unsigned char kGarbage = 0xFF;

}  // namespace cuda_on_cpu
