// What a thread knows of the others' past. The race detector asks it whether an earlier access is ordered before now.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <unordered_map>

namespace cuda_on_cpu {

// Block number -> barrier epoch before which everything in that block is known; cluster number -> the same with phases
// of its barrier; (block, thread) -> that thread's own step up to which it is known.
struct Knowledge {
  std::unordered_map<std::uint32_t, std::uint32_t> blocks;
  std::unordered_map<std::uint32_t, std::uint32_t> clusters;
  std::unordered_map<std::uint64_t, std::uint32_t> threads;

  void join(const Knowledge& other);
  static std::uint64_t key(std::uint32_t block, std::uint32_t thread) {
    return static_cast<std::uint64_t>(block) << 32 | thread;
  }
};

constexpr std::uint32_t kNever = std::numeric_limits<std::uint32_t>::max();

// When a thread did something: its own step, in an epoch of its block and a phase of its cluster. Never is what no
// barrier of them orders.
struct Moment {
  std::uint32_t block = 0;
  std::uint32_t thread = 0;
  std::uint32_t epoch = 0;  // the block's barrier epoch
  std::uint32_t step = 0;
  std::uint32_t cluster = 0;
  std::uint32_t phase = kNever;  // how often the thread had arrived at the cluster's barrier
};

using SharedKnowledge = std::shared_ptr<const Knowledge>;

struct ThreadClock {
  std::uint32_t step = 1;                 // counts what this thread handed on: fences, warp barriers, arrivals, copies
  std::array<std::uint32_t, 32> lanes{};  // step of each lane of the own warp that a warp barrier made known
  SharedKnowledge known;                  // acquired: this thread's accesses come after it
  SharedKnowledge seen;                   // read by an atomic; a fence turns it into `known`
  SharedKnowledge released;               // what an atomic of this thread hands on: known at its last fence
};

}  // namespace cuda_on_cpu
