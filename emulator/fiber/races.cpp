#include "races.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <string>

namespace cuda_on_cpu {

void Knowledge::join(const Knowledge& other) {
  const auto raise = [](auto& mine, const auto& theirs) {
    for (const auto& [key, value] : theirs) {
      auto& entry = mine[key];
      entry = std::max(entry, value);
    }
  };
  raise(blocks, other.blocks);
  raise(clusters, other.clusters);
  raise(threads, other.threads);
}

namespace races {
namespace {

#if defined(CUDA_ON_CPU_RACES)
constexpr bool kDetects = true;
#else
constexpr bool kDetects = false;
#endif

constexpr std::size_t kGranule = 8;   // bytes that share a cell
constexpr std::size_t kMaxReads = 4;  // readers remembered per cell; more are forgotten, oldest first

struct Record {
  std::uint8_t bytes = 0;  // a bit for each byte of the granule
  Access access = Access::kRead;
  Moment moment;
  const void* instruction = nullptr;
  Where place;
};

struct Cell {
  std::vector<Record> writes;  // and atomics: the latest for each byte
  std::vector<Record> reads;
};

std::unordered_map<std::uintptr_t, Cell> cells;
std::unordered_map<const void*, SharedKnowledge> handed_on;    // by the atomics on an address
std::unordered_map<std::uint64_t, std::uint32_t> last_phases;  // in which threads ended, without arriving

template <class Map, class Key>
std::uint32_t value_or_zero(const Map& map, Key key) {
  const auto found = map.find(key);
  return found == map.end() ? 0 : found->second;
}

bool knows(const Knowledge* known, const Moment& earlier) {
  if (known == nullptr) return false;
  if (earlier.epoch < value_or_zero(known->blocks, earlier.block)) return true;
  const std::uint64_t key = Knowledge::key(earlier.block, earlier.thread);
  if (earlier.phase < value_or_zero(known->clusters, earlier.cluster)) {
    const auto last = last_phases.find(key);
    if (last == last_phases.end() || last->second != earlier.phase) return true;
  }
  return earlier.step <= value_or_zero(known->threads, key);
}

// File and line, or an offset into the library that build.py turns into them with addr2line.
std::string place_of(const Record& record) {
  if (record.instruction == nullptr) {
    return std::string(record.place.file_name()) + ":" + std::to_string(record.place.line());
  }
  Dl_info info{};
  dladdr(record.instruction, &info);
  char text[64];
  // One byte back: a return address is that of the next instruction.
  const auto offset =
      static_cast<const char*>(record.instruction) - static_cast<const char*>(info.dli_fbase) - std::ptrdiff_t{1};
  std::snprintf(text, sizeof text, "[+0x%zx]", static_cast<std::size_t>(offset));
  return text;
}

std::string describe(const Record& record) {
  static const char* const names[] = {"read", "write", "atomic"};
  const auto thread = record.moment.thread;
  const std::string who = thread < kFirstAgent ? " thread " + std::to_string(thread) : "'s bulk copy";
  return std::string(names[static_cast<int>(record.access)]) + " by block " + std::to_string(record.moment.block) +
         who + " at " + place_of(record);
}

[[noreturn]] void report_race(const Record& earlier, const Record& now, const Block& block, const void* address) {
  const auto& blocks = block.cluster->blocks;
  const bool shared = std::ranges::any_of(
      blocks, [&](const Block* other) { return other != nullptr && lies_in_shared(*other, address, 1); });
  report(std::string("race on ") + (shared ? "shared" : "global") + " memory: " + describe(now) +
         " is not ordered after the " + describe(earlier));
  abandon_thread();
}

// Who makes an access: a thread, or a copy, which has only what its starter handed on.
struct Observer {
  const Fiber& fiber;
  const Knowledge* copy = nullptr;

  bool comes_after(const Record& earlier) const {
    return copy != nullptr ? knows(copy, earlier.moment) : is_before(earlier.moment, fiber);
  }
};

void check_and_store(Cell& cell, const Record& now, const Observer& observer, const void* address) {
  const auto conflicts = [&](const Record& earlier) {
    const bool both_atomic = earlier.access == Access::kAtomic && now.access == Access::kAtomic;
    return (earlier.bytes & now.bytes) && !both_atomic && !observer.comes_after(earlier);
  };
  for (const Record& write : cell.writes) {
    if (conflicts(write)) report_race(write, now, *observer.fiber.block, address);
  }
  if (now.access == Access::kRead) {
    std::erase_if(cell.reads,
                  [&](const Record& read) { return !(read.bytes & ~now.bytes) && observer.comes_after(read); });
    if (cell.reads.size() == kMaxReads) cell.reads.erase(cell.reads.begin());
    cell.reads.push_back(now);
    return;
  }
  for (const Record& read : cell.reads) {
    if (conflicts(read)) report_race(read, now, *observer.fiber.block, address);
  }
  const auto forget = [&](std::vector<Record>& records) {
    for (Record& record : records) record.bytes &= static_cast<std::uint8_t>(~now.bytes);
    std::erase_if(records, [](const Record& record) { return record.bytes == 0; });
  };
  forget(cell.writes);
  forget(cell.reads);
  cell.writes.push_back(now);
}

void store(const void* address, std::size_t bytes, Record record, const Observer& observer) {
  auto at = reinterpret_cast<std::uintptr_t>(address);
  const auto end = at + bytes;
  while (at < end) {
    const auto first = at % kGranule;
    const auto count = std::min<std::size_t>(kGranule - first, end - at);
    record.bytes = static_cast<std::uint8_t>(((1u << count) - 1) << first);
    check_and_store(cells[at / kGranule], record, observer, reinterpret_cast<const void*>(at));
    at += count;
  }
}

}  // namespace

SharedKnowledge joined(const SharedKnowledge& a, const SharedKnowledge& b) {
  if (a == b || b == nullptr) return a;
  if (a == nullptr) return b;
  auto result = std::make_shared<Knowledge>(*a);
  result->join(*b);
  return result;
}

Moment now(const Fiber& fiber) {
  const Block& block = *fiber.block;
  return {block.number,     fiber.number,          block.barrier_epoch,
          fiber.clock.step, block.cluster->number, fiber.in_cluster.arrivals};
}

bool is_before(const Moment& earlier, const Fiber& fiber) {
  if (!kDetects) return true;
  if (earlier.block == fiber.block->number) {
    if (earlier.thread == fiber.number || earlier.epoch < fiber.block->barrier_epoch) return true;
    const bool same_warp = earlier.thread / 32 == fiber.number / 32;
    if (same_warp && earlier.step <= fiber.clock.lanes[earlier.thread % 32]) return true;
  }
  return knows(fiber.clock.known.get(), earlier);
}

void begin_launch() {
  cells.clear();
  handed_on.clear();
  last_phases.clear();
}

// What earlier blocks did to this shared memory is past: it is another block's memory now.
void begin_block(const Block& block) {
  const auto forget = [](const char* start, std::size_t bytes) {
    if (cells.empty() || bytes == 0) return;
    const auto first = reinterpret_cast<std::uintptr_t>(start) / kGranule;
    const auto last = (reinterpret_cast<std::uintptr_t>(start) + bytes - 1) / kGranule;
    for (auto granule = first; granule <= last; granule++) cells.erase(granule);
  };
  forget(block.static_shared, block.static_bytes);
  forget(block.dynamic_shared, block.dynamic_bytes);
}

void record(Fiber& fiber, const void* address, std::size_t bytes, Access access, const void* instruction, Where place) {
  if (!kDetects) return;
  if (lies_in(address, fiber.stack, StackPool::size()) || lies_in(address, &here, sizeof here)) return;
  store(address, bytes, {0, access, now(fiber), instruction, place}, {fiber});
}

void record_copy(Fiber& starter, std::uint32_t agent, std::uint32_t step, const BulkCopy& copy) {
  if (!kDetects) return;
  const SharedKnowledge known = hand_on(starter);
  const Moment moment{starter.block->number, agent, kNever, step, starter.block->cluster->number, kNever};
  store(copy.global, copy.bytes, {0, Access::kRead, moment, nullptr, copy.place}, {starter, known.get()});
  store(copy.shared, copy.bytes, {0, Access::kWrite, moment, nullptr, copy.place}, {starter, known.get()});
}

void order_atomic(Fiber& fiber, const void* address, AtomicKind kind) {
  SharedKnowledge& here_known = handed_on[address];
  if (kind != AtomicKind::kStore) fiber.clock.seen = joined(fiber.clock.seen, here_known);
  // A read-modify-write goes on with the chain that it read; a plain store starts a new one.
  if (kind == AtomicKind::kReadModifyWrite) here_known = joined(here_known, fiber.clock.released);
  if (kind == AtomicKind::kStore) here_known = fiber.clock.released;
}

void order_fence(Fiber& fiber) {
  acquire(fiber, fiber.clock.seen);
  fiber.clock.released = hand_on(fiber);
}

SharedKnowledge hand_on(Fiber& fiber) {
  if (!kDetects) return nullptr;
  ThreadClock& clock = fiber.clock;
  auto all = std::make_shared<Knowledge>();
  if (clock.known != nullptr) *all = *clock.known;
  const std::uint32_t block = fiber.block->number;
  all->blocks[block] = fiber.block->barrier_epoch;
  all->threads[Knowledge::key(block, fiber.number)] = clock.step;
  for (std::uint32_t lane = 0; lane < 32; lane++) {
    if (clock.lanes[lane] == 0 || lane == fiber.number % 32) continue;
    auto& known = all->threads[Knowledge::key(block, (fiber.number & ~31u) | lane)];
    known = std::max(known, clock.lanes[lane]);
  }
  clock.step++;
  return all;
}

void acquire(Fiber& fiber, const SharedKnowledge& knowledge) {
  fiber.clock.known = joined(fiber.clock.known, knowledge);
}

SharedKnowledge know_of_agent(const Block& block, std::uint32_t agent, std::uint32_t step) {
  if (!kDetects) return nullptr;
  Knowledge end;
  end.threads[Knowledge::key(block.number, agent)] = step;
  return std::make_shared<Knowledge>(std::move(end));
}

void arrive_at_cluster(Fiber& fiber) {
  if (!kDetects) return;
  const Block& block = *fiber.block;
  Cluster& cluster = *block.cluster;
  std::uint32_t& epoch = cluster.arriving.blocks[block.number];
  epoch = std::max(epoch, block.barrier_epoch);
  for (std::uint32_t lane = 0; lane < 32; lane++) {
    if (fiber.clock.lanes[lane] == 0 || lane == fiber.number % 32) continue;
    std::uint32_t& step = cluster.arriving.threads[Knowledge::key(block.number, (fiber.number & ~31u) | lane)];
    step = std::max(step, fiber.clock.lanes[lane]);
  }
  const SharedKnowledge& known = fiber.clock.known;
  // Most threads know the same.
  if (known != nullptr && cluster.joined.insert(known).second) cluster.arriving.join(*known);
  fiber.in_cluster.known = known;
  fiber.in_cluster.step = fiber.clock.step;
}

// That all threads have arrived stands for what was known of each of them before.
void end_cluster_phase(Cluster& cluster) {
  if (!kDetects) return;
  Knowledge& known = cluster.arriving;
  const auto first = cluster.number * static_cast<std::uint32_t>(cluster.blocks.size());
  std::erase_if(known.threads, [&](const auto& entry) {
    const auto rank = static_cast<std::uint32_t>(entry.first >> 32) - first;
    const auto thread = static_cast<std::uint32_t>(entry.first);
    const Block* block = rank < cluster.blocks.size() ? cluster.blocks[rank] : nullptr;
    if (block == nullptr || thread >= block->fibers.size()) return false;
    const ClusterPart& part = block->fibers[thread].in_cluster;
    return part.arrivals > cluster.phase && entry.second < part.step;
  });
  known.clusters[cluster.number] = cluster.phase + 1;
  cluster.ended = std::make_shared<const Knowledge>(std::move(known));
  cluster.arriving = {};
  cluster.joined.clear();
}

void acquire_cluster(Fiber& fiber) {
  const SharedKnowledge& ended = fiber.block->cluster->ended;
  if (fiber.clock.known == fiber.in_cluster.known) {
    fiber.clock.known = ended;
  } else {
    acquire(fiber, ended);
  }
}

void end_thread(const Fiber& fiber) {
  if (kDetects) last_phases[Knowledge::key(fiber.block->number, fiber.number)] = fiber.in_cluster.arrivals;
}

void order_warp(Fiber* const* fibers, unsigned count) {
  std::array<std::uint32_t, 32> lanes{};
  SharedKnowledge known;
  for (unsigned i = 0; i < count; i++) {
    const ThreadClock& clock = fibers[i]->clock;
    for (unsigned lane = 0; lane < 32; lane++) lanes[lane] = std::max(lanes[lane], clock.lanes[lane]);
    lanes[fibers[i]->number % 32] = clock.step;
    known = joined(known, clock.known);
  }
  for (unsigned i = 0; i < count; i++) {
    fibers[i]->clock.lanes = lanes;
    fibers[i]->clock.known = known;
    fibers[i]->clock.step++;
  }
}

void order_block(Block& block) {
  SharedKnowledge known;
  for (const Fiber& fiber : block.fibers) {
    if (fiber.state == State::kAtBlockBarrier) known = joined(known, fiber.clock.known);
  }
  for (Fiber& fiber : block.fibers) {
    if (fiber.state == State::kAtBlockBarrier) fiber.clock.known = known;
  }
  block.barrier_epoch++;
}

}  // namespace races
}  // namespace cuda_on_cpu
