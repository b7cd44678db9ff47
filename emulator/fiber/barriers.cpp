// Barriers of blocks and warps: threads wait, and the one that was missing releases them.
#include <cstring>

#include "grid.h"
#include "races.h"

namespace cuda_on_cpu {
namespace {

void release_block_if_complete(Block& block) {
  const Fiber* first = nullptr;
  unsigned waiting = 0, count = 0;
  for (const Fiber& fiber : block.fibers) {
    if (fiber.state != State::kAtBlockBarrier) continue;
    if (first == nullptr) first = &fiber;
    if (fiber.place.line() != first->place.line() || std::strcmp(fiber.place.file_name(), first->place.file_name())) {
      report("divergent barrier: " + name_of(*first) + " waits at " + name_of(first->place) + ", " + name_of(fiber) +
             " at " + name_of(fiber.place));
    }
    waiting++;
    count += fiber.predicate;
  }
  if (waiting == 0 || waiting < block.live) return;
  block.barrier = {count, waiting};
  races::order_block(block);
  for (Fiber& fiber : block.fibers) {
    if (fiber.state == State::kAtBlockBarrier) fiber.state = State::kReady;
  }
}

// Releases the lanes that wait together with `fiber` once all of its mask has come.
void release_warp_if_complete(Fiber& fiber) {
  const unsigned base = fiber.number & ~31u;
  Fiber* group[32];
  unsigned count = 0;
  for (unsigned lane = 0; lane < 32; lane++) {
    if (!(fiber.mask >> lane & 1) || base + lane >= fiber.block->fibers.size()) continue;
    Fiber& other = fiber.block->fibers[base + lane];
    if (other.state == State::kDone) continue;
    if (other.state != State::kAtWarpBarrier || other.mask != fiber.mask) return;
    if (std::strcmp(other.operation, fiber.operation) != 0) return;
    group[count++] = &other;
  }
  if (fiber.orders_memory) races::order_warp(group, count);
  for (unsigned i = 0; i < count; i++) group[i]->state = State::kReady;
}

}  // namespace

void release_after_return(Fiber& fiber) {
  release_block_if_complete(*fiber.block);
  const unsigned base = fiber.number & ~31u;
  for (unsigned lane = 0; lane < 32 && base + lane < fiber.block->fibers.size(); lane++) {
    Fiber& other = fiber.block->fibers[base + lane];
    if (other.state == State::kAtWarpBarrier) release_warp_if_complete(other);
  }
}

BarrierResult block_barrier(bool predicate, Where at) {
  current->state = State::kAtBlockBarrier;
  current->operation = "__syncthreads";
  current->predicate = predicate;
  current->place = at;
  release_block_if_complete(*current->block);
  leave(false);
  return current->block->barrier;
}

void warp_barrier(unsigned mask, const char* operation, bool orders_memory, Where at) {
  if (!(mask >> here.lane & 1)) fail("a lane is not in the mask that it names", at);
  current->state = State::kAtWarpBarrier;
  current->operation = operation;
  current->orders_memory = orders_memory;
  current->mask = mask;
  current->place = at;
  release_warp_if_complete(*current);
  leave(false);
}

unsigned exchange(unsigned mask, const void* mine, std::size_t bytes, void* all, const char* operation, Where at) {
  current->published = mine;
  warp_barrier(mask, operation, false, at);
  const Block& block = *current->block;
  const unsigned base = current->number & ~31u;
  unsigned present = 0;
  for (unsigned lane = 0; lane < 32 && base + lane < block.fibers.size(); lane++) {
    const Fiber& other = block.fibers[base + lane];
    if (!(mask >> lane & 1) || other.state == State::kDone) continue;
    std::memcpy(static_cast<char*>(all) + lane * bytes, other.published, bytes);
    present |= 1u << lane;
  }
  warp_barrier(mask, operation, false, at);  // what was published must stay until all have read it
  return present;
}

}  // namespace cuda_on_cpu
