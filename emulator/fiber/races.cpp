#include "races.h"

#include <dlfcn.h>

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
  raise(threads, other.threads);
}

namespace races {
namespace {

constexpr std::size_t kGranule = 8;   // bytes that share a cell
constexpr std::size_t kMaxReads = 4;  // readers remembered per cell; more are forgotten, oldest first

struct Record {
  std::uint8_t bytes = 0;  // a bit for each byte of the granule
  Access access = Access::kRead;
  std::uint32_t block = 0;
  std::uint32_t thread = 0;
  std::uint32_t epoch = 0;  // the block's barrier epoch
  std::uint32_t step = 0;   // the thread's own step
  const void* instruction = nullptr;
  Where place;
};

struct Cell {
  std::vector<Record> writes;  // and atomics: the latest for each byte
  std::vector<Record> reads;
};

std::unordered_map<std::uintptr_t, Cell> cells;
std::unordered_map<const void*, SharedKnowledge> handed_on;  // by the atomics on an address

SharedKnowledge joined(const SharedKnowledge& a, const SharedKnowledge& b) {
  if (a == b || b == nullptr) return a;
  if (a == nullptr) return b;
  auto result = std::make_shared<Knowledge>(*a);
  result->join(*b);
  return result;
}

template <class Map, class Key>
std::uint32_t value_or_zero(const Map& map, Key key) {
  const auto found = map.find(key);
  return found == map.end() ? 0 : found->second;
}

bool is_before(const Record& earlier, const Fiber& now) {
  if (earlier.block == now.block->number) {
    if (earlier.thread == now.number || earlier.epoch < now.block->barrier_epoch) return true;
    const bool same_warp = earlier.thread / 32 == now.number / 32;
    if (same_warp && earlier.step <= now.clock.lanes[earlier.thread % 32]) return true;
  }
  const Knowledge* known = now.clock.known.get();
  if (known == nullptr) return false;
  if (earlier.epoch < value_or_zero(known->blocks, earlier.block)) return true;
  return earlier.step <= value_or_zero(known->threads, Knowledge::key(earlier.block, earlier.thread));
}

bool lies_in(const void* address, const void* start, std::size_t bytes) {
  const auto offset = reinterpret_cast<std::uintptr_t>(address) - reinterpret_cast<std::uintptr_t>(start);
  return offset < bytes;
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
  return std::string(names[static_cast<int>(record.access)]) + " by block " + std::to_string(record.block) +
         " thread " + std::to_string(record.thread) + " at " + place_of(record);
}

[[noreturn]] void report_race(const Record& earlier, const Record& now, const Fiber& fiber, const void* address) {
  const Block& block = *fiber.block;
  const bool shared = lies_in(address, block.static_shared, block.static_bytes) ||
                      lies_in(address, block.dynamic_shared, block.dynamic_bytes);
  report(std::string("race on ") + (shared ? "shared" : "global") + " memory: " + describe(now) +
         " is not ordered after the " + describe(earlier));
  abandon_thread();
}

void check_and_store(Cell& cell, const Record& now, const Fiber& fiber, const void* address) {
  const auto conflicts = [&](const Record& earlier) {
    const bool both_atomic = earlier.access == Access::kAtomic && now.access == Access::kAtomic;
    return (earlier.bytes & now.bytes) && !both_atomic && !is_before(earlier, fiber);
  };
  for (const Record& write : cell.writes) {
    if (conflicts(write)) report_race(write, now, fiber, address);
  }
  if (now.access == Access::kRead) {
    std::erase_if(cell.reads, [&](const Record& read) { return !(read.bytes & ~now.bytes) && is_before(read, fiber); });
    if (cell.reads.size() == kMaxReads) cell.reads.erase(cell.reads.begin());
    cell.reads.push_back(now);
    return;
  }
  for (const Record& read : cell.reads) {
    if (conflicts(read)) report_race(read, now, fiber, address);
  }
  const auto forget = [&](std::vector<Record>& records) {
    for (Record& record : records) record.bytes &= static_cast<std::uint8_t>(~now.bytes);
    std::erase_if(records, [](const Record& record) { return record.bytes == 0; });
  };
  forget(cell.writes);
  forget(cell.reads);
  cell.writes.push_back(now);
}

}  // namespace

void begin_launch() {
  cells.clear();
  handed_on.clear();
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
#if defined(CUDA_ON_CPU_RACES)
  if (lies_in(address, fiber.stack, StackPool::size()) || lies_in(address, &here, sizeof here)) return;
  auto at = reinterpret_cast<std::uintptr_t>(address);
  const auto end = at + bytes;
  while (at < end) {
    const auto first = at % kGranule;
    const auto count = std::min<std::size_t>(kGranule - first, end - at);
    const auto mask = static_cast<std::uint8_t>(((1u << count) - 1) << first);
    const Record now{
        mask,        access, fiber.block->number, fiber.number, fiber.block->barrier_epoch, fiber.clock.step,
        instruction, place};
    check_and_store(cells[at / kGranule], now, fiber, reinterpret_cast<const void*>(at));
    at += count;
  }
#else
  (void)fiber, (void)address, (void)bytes, (void)access, (void)instruction, (void)place;
#endif
}

void order_atomic(Fiber& fiber, const void* address, AtomicKind kind) {
  SharedKnowledge& here_known = handed_on[address];
  if (kind != AtomicKind::kStore) fiber.clock.seen = joined(fiber.clock.seen, here_known);
  // A read-modify-write goes on with the chain that it read; a plain store starts a new one.
  if (kind == AtomicKind::kReadModifyWrite) here_known = joined(here_known, fiber.clock.released);
  if (kind == AtomicKind::kStore) here_known = fiber.clock.released;
}

void order_fence(Fiber& fiber) {
#if defined(CUDA_ON_CPU_RACES)
  ThreadClock& clock = fiber.clock;
  clock.known = joined(clock.known, clock.seen);
  auto all = std::make_shared<Knowledge>();
  if (clock.known != nullptr) *all = *clock.known;
  const std::uint32_t block = fiber.block->number;
  all->blocks[block] = fiber.block->barrier_epoch;
  all->threads[Knowledge::key(block, fiber.number)] = clock.step;
  for (std::uint32_t lane = 0; lane < 32; lane++) {
    if (clock.lanes[lane] != 0) all->threads[Knowledge::key(block, (fiber.number & ~31u) | lane)] = clock.lanes[lane];
  }
  clock.released = std::move(all);
  clock.step++;
#else
  (void)fiber;
#endif
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
