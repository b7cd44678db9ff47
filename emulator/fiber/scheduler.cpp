// Blocks, threads and the seeded order in which they run.
#include <link.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>

#include "grid.h"
#include "launch_limits.h"
#include "races.h"

namespace cuda_on_cpu {

Here here;
Fiber* current = nullptr;

namespace {

constexpr unsigned kIdleLimit = 1u << 14;  // rounds without progress before a launch counts as hanging

struct Schedule {
  std::uint64_t seed = 0;  // 0: blocks and threads in their natural order
  unsigned resident = 4;   // blocks in flight at once
};

struct Grid {
  dim3 shape, block_shape;
  std::size_t dynamic_bytes = 0;
  void (*body)(const void*) = nullptr;
  const void* arguments = nullptr;
  unsigned cluster = 1;         // blocks of one
  std::vector<unsigned> order;  // of the blocks, the clusters one after the other
  std::size_t next = 0;
  std::size_t room = 0;                  // for blocks that are not in flight
  std::map<unsigned, Cluster> clusters;  // in flight
  std::mt19937_64 random;
  unsigned idle_rounds = 0;
  bool failed = false;
};

// One block in flight: an operating-system thread that runs only while it holds the baton.
struct Worker {
  std::thread thread;
  std::binary_semaphore wake{0};
  bool finished = false;
};

Schedule schedule;
Grid grid;
std::binary_semaphore baton{0};
Worker* holder = nullptr;  // of the baton
std::string message;
std::mutex one_launch;

void pass_the_baton() {
  Worker& self = *holder;
  baton.release();
  self.wake.acquire();
}

void resume(Fiber& fiber) {
  current = &fiber;
  here = fiber.view;
  fiber.gave_way = false;
  switch_context(fiber.block->scheduler, fiber.context, false);
  current = nullptr;
}

std::string details(const Fiber& fiber) {
  char mask[32] = "";
  if (fiber.state == State::kAtWarpBarrier) std::snprintf(mask, sizeof mask, " with mask %08x", fiber.mask);
  if (fiber.state == State::kAtClusterBarrier) return what_is_awaited(*fiber.block->cluster);
  return fiber.state == State::kAtPhaseBarrier ? what_is_awaited(fiber) : mask;
}

// What the threads that are left in the block, and in others of its cluster that can do nothing, wait for, and where;
// those that wait alike together.
std::string list_waits(const Block& of) {
  std::map<std::string, std::vector<const Fiber*>> waits;
  for (const Block* block : of.cluster->blocks) {
    if (block == nullptr || (block != &of && !block->stuck)) continue;
    for (const Fiber& fiber : block->fibers) {
      if (fiber.state == State::kDone) continue;
      const std::string what = fiber.state == State::kReady ? "in a loop" : fiber.operation + details(fiber);
      waits[what + " at " + name_of(fiber.place)].push_back(&fiber);
    }
  }
  std::string text;
  for (const auto& [wait, fibers] : waits) {
    text += "\n  " + name_of(*fibers.front());
    if (fibers.size() > 1) text += " and " + std::to_string(fibers.size() - 1) + " others";
    text += ": " + wait;
  }
  return text;
}

void fiber_main() {
  arrive_on_new_stack(current->block->scheduler);
  grid.body(grid.arguments);
  leave_cluster(*current);
  current->state = State::kDone;
  current->block->live--;
  release_after_return(*current);
  leave(true);
}

// The thread-local image of this library in the calling thread: that is where `__shared__` variables lie.
void find_static_shared(Block& block) {
  [[maybe_unused]] static thread_local volatile char touched;
  touched = 1;  // the image is made on first use
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* data) {
        auto& block = *static_cast<Block*>(data);
        const auto self = reinterpret_cast<std::uintptr_t>(&here);
        bool ours = false;
        std::size_t bytes = 0;
        for (int i = 0; i < info->dlpi_phnum; i++) {
          const auto& header = info->dlpi_phdr[i];
          const std::uintptr_t start = info->dlpi_addr + header.p_vaddr;
          ours |= header.p_type == PT_LOAD && self >= start && self < start + header.p_memsz;
          if (header.p_type == PT_TLS) bytes = header.p_memsz;
        }
        if (!ours) return 0;
        block.static_shared = static_cast<char*>(info->dlpi_tls_data);
        block.static_bytes = bytes;
        return 1;
      },
      &block);
}

uint3 unravel(unsigned index, dim3 shape) {
  return {index % shape.x, index / shape.x % shape.y, index / shape.x / shape.y};
}

// The block takes its place in its cluster.
void join_cluster(Block& block) {
  const unsigned number = block.number / grid.cluster;
  const auto [found, created] = grid.clusters.try_emplace(number);
  Cluster& cluster = found->second;
  if (created) {
    cluster.number = number;
    cluster.blocks.resize(grid.cluster);
    cluster.live = grid.cluster * block.live;
  }
  cluster.blocks[block.number % grid.cluster] = &block;
  cluster.started++;
  block.cluster = &cluster;
}

void prepare_block(Block& block, unsigned number, char* dynamic, StackPool& stacks) {
  block.number = number;
  block.dynamic_shared = dynamic;
  block.dynamic_bytes = grid.dynamic_bytes;
  find_static_shared(block);
  std::memset(block.static_shared, kGarbage, block.static_bytes);
  std::memset(dynamic, kGarbage, grid.dynamic_bytes);
  const unsigned threads = grid.block_shape.x * grid.block_shape.y * grid.block_shape.z;
  block.fibers.resize(threads);
  block.live = threads;
  for (unsigned i = 0; i < threads; i++) {
    Fiber& fiber = block.fibers[i];
    fiber.block = &block;
    fiber.number = i;
    fiber.view = {
        unravel(i, grid.block_shape), unravel(number, grid.shape), grid.block_shape, grid.shape, i % 32, dynamic};
    fiber.stack = stacks.take();
    fiber.context = make_context(fiber.stack, fiber_main);
  }
  join_cluster(block);
  races::begin_block(block);
}

// Nobody runs, and nobody else can change that.
bool is_deadlocked(Block& block) {
  block.stuck = true;
  if (!waits_for_cluster(block)) return true;
  const Cluster& cluster = *block.cluster;
  return cluster.started == cluster.blocks.size() &&
         std::ranges::all_of(cluster.blocks, [](const Block* other) { return other == nullptr || other->stuck; });
}

// One turn of every thread that can run. Says whether any of them got further than giving way.
bool run_round(std::vector<Fiber*>& order) {
  if (schedule.seed != 0) std::shuffle(order.begin(), order.end(), grid.random);
  bool progress = false, ran = false;
  for (Fiber* fiber : order) {
    if (fiber->state != State::kReady) continue;
    resume(*fiber);
    ran = true;
    progress |= !fiber->gave_way;
    if (grid.failed) return false;
    if (chance(16)) pass_the_baton();
    if (grid.failed) return false;
  }
  Block& block = *order.front()->block;
  if (!progress && (land_copies(block) || notice_cluster_phase(block))) return true;
  if (!ran && is_deadlocked(block)) {
    report("deadlock: every thread that is left waits for one that cannot come" + list_waits(block));
  }
  return progress;
}

void run_block(unsigned number, char* dynamic, StackPool& stacks) {
  Block block;
  prepare_block(block, number, dynamic, stacks);
  std::vector<Fiber*> order;
  for (Fiber& fiber : block.fibers) order.push_back(&fiber);
  while (block.live != 0 && !grid.failed) {
    if (run_round(order)) {
      grid.idle_rounds = 0;
    } else if (!grid.failed) {
      if (!block.stuck && ++grid.idle_rounds > kIdleLimit) {
        report("no progress: the blocks in flight wait in a loop for something that none of them brings" +
               list_waits(block));
      }
      pass_the_baton();
    }
  }
  if (!grid.failed) report_copies_under_way(block);
  for (Fiber& fiber : block.fibers) stacks.give_back(fiber.stack);
  if (++block.cluster->gone == grid.cluster) grid.clusters.erase(block.cluster->number);
  grid.room++;
}

// Whether there is a block to start. A cluster waits until there is room for all of it.
bool await_block() {
  while (grid.next < grid.order.size() && !grid.failed) {
    if (grid.next % grid.cluster != 0) return true;
    if (grid.room >= grid.cluster) {
      grid.room -= grid.cluster;
      return true;
    }
    pass_the_baton();
  }
  return false;
}

void work(Worker& self) {
  self.wake.acquire();
  StackPool stacks;
  void* dynamic = nullptr;
  // Exactly as long as asked for, so that AddressSanitizer sees what lies beyond.
  if (posix_memalign(&dynamic, 128, std::max<std::size_t>(grid.dynamic_bytes, 1)) != 0) std::abort();
  while (await_block()) {
    run_block(grid.order[grid.next++], static_cast<char*>(dynamic), stacks);
    if (!grid.failed) pass_the_baton();
  }
  std::free(dynamic);
  self.finished = true;
  baton.release();
}

// Hands the baton round until every worker is done.
void run_workers(unsigned count) {
  std::vector<std::unique_ptr<Worker>> workers;
  for (unsigned i = 0; i < count; i++) {
    workers.push_back(std::make_unique<Worker>());
    workers.back()->thread = std::thread(work, std::ref(*workers.back()));
  }
  std::size_t turn = 0;
  while (!workers.empty()) {
    turn = schedule.seed != 0 ? grid.random() % workers.size() : turn % workers.size();
    Worker& chosen = *workers[turn];
    holder = &chosen;
    chosen.wake.release();
    baton.acquire();
    if (chosen.finished) {
      chosen.thread.join();
      workers.erase(workers.begin() + static_cast<std::ptrdiff_t>(turn));
    } else {
      turn++;
    }
  }
}

// Clusters in any order, and so the blocks of each.
void draw_order(std::size_t blocks) {
  std::vector<unsigned> clusters(blocks / grid.cluster);
  std::iota(clusters.begin(), clusters.end(), 0);
  if (schedule.seed != 0) std::shuffle(clusters.begin(), clusters.end(), grid.random);
  for (const unsigned cluster : clusters) {
    for (unsigned rank = 0; rank < grid.cluster; rank++) grid.order.push_back(cluster * grid.cluster + rank);
    if (schedule.seed != 0) std::shuffle(grid.order.end() - grid.cluster, grid.order.end(), grid.random);
  }
}

}  // namespace

bool chance(unsigned one_in) { return schedule.seed != 0 && draw(one_in) == 0; }

std::size_t draw(std::size_t count) { return schedule.seed == 0 ? 0 : grid.random() % count; }

void report(const std::string& text) {
  if (!grid.failed) message = text;  // the first error is the cause
  grid.failed = true;
}

std::string name_of(const Fiber& fiber) {
  char text[160];
  const uint3 b = fiber.view.block, t = fiber.view.thread;
  std::snprintf(text, sizeof text, "block (%u, %u, %u) thread (%u, %u, %u)", b.x, b.y, b.z, t.x, t.y, t.z);
  return text;
}

std::string name_of(Where at) { return std::string(at.file_name()) + ":" + std::to_string(at.line()); }

void leave(bool finished) { switch_context(current->context, current->block->scheduler, finished); }

void fail(const char* what, Where at) {
  report(std::string(what) + ": " + name_of_current() + " at " + name_of(at));
  abandon_thread();
}

void abandon_thread() {
  if (current != nullptr) leave(true);
  std::abort();  // a failed thread is never resumed, and host code has nowhere to go
}

std::string name_of_current() { return current == nullptr ? "host code" : name_of(*current); }

void take_turns(Where at) {
  if (schedule.seed != 0 && !chance(2)) return;
  current->place = at;
  leave(false);
}

void give_way(Where at) {
  current->gave_way = true;
  take_turns(at);
  current->gave_way = false;
}

void fence() { races::order_fence(*current); }

void announce_atomic(const void* address, std::size_t bytes, AtomicKind kind, Where at) {
  if (reinterpret_cast<std::uintptr_t>(address) % bytes) fail("an atomic is not aligned to its size", at);
  races::record(*current, address, bytes, races::Access::kAtomic, nullptr, at);
  races::order_atomic(*current, address, kind);
}

void run_grid(const void* kernel, unsigned cluster, dim3 shape, dim3 block_shape, std::size_t dynamic_bytes,
              void (*body)(const void*), const void* arguments, Where at) {
  const std::scoped_lock lock(one_launch);
  grid = Grid{};
  grid.shape = shape;
  grid.block_shape = block_shape;
  grid.dynamic_bytes = dynamic_bytes;
  grid.body = body;
  grid.arguments = arguments;
  grid.cluster = cluster;
  grid.random.seed(schedule.seed);
  const std::string complaint = check_limits(kernel, shape, block_shape, dynamic_bytes, cluster);
  if (!complaint.empty()) {
    report(complaint + " at " + name_of(at));
    note_launch(cudaErrorInvalidConfiguration);
    return;
  }
  draw_order(static_cast<std::size_t>(shape.x) * shape.y * shape.z);
  grid.room = std::min<std::size_t>(std::max(schedule.resident, cluster), grid.order.size());
  races::begin_launch();
  run_workers(static_cast<unsigned>(grid.room));
  note_launch(grid.failed ? cudaErrorLaunchFailure : cudaSuccess);
}

}  // namespace cuda_on_cpu

extern "C" {
// seed 0: natural order, each block as far as it gets; otherwise an order drawn from the seed, with blocks interleaved.
// resident: how many blocks are in flight at once, at least one cluster. 1 shows that no block waits for one that has
// not started.
void cuda_on_cpu_schedule(std::uint64_t seed, unsigned resident) { cuda_on_cpu::schedule = {seed, resident}; }

// The message of the first error since the last call, or null.
const char* cuda_on_cpu_take_error() {
  static std::string taken;
  taken.swap(cuda_on_cpu::message);
  cuda_on_cpu::message.clear();
  return taken.empty() ? nullptr : taken.c_str();
}
}
