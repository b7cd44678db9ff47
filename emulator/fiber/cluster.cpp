#include "cluster.h"

#include <algorithm>
#include <cstring>

#include "grid.h"
#include "races.h"
#include "warp.h"

namespace cuda_on_cpu {
namespace {

// .aligned: every lane of the warp that has not returned, by the same instruction.
void come_together(const char* operation, Where at) {
  const auto places = all_lanes(kFullWarp, at, operation, at);
  for (unsigned lane = 0; lane < 32; lane++) {
    if (!places.has(lane)) continue;
    const Where& other = places.values[lane];
    if (other.line() == at.line() && std::strcmp(other.file_name(), at.file_name()) == 0) continue;
    const std::string text = std::string("the lanes of a warp diverge at the cluster's barrier, lane ") +
                             std::to_string(lane) + " is at " + name_of(other);
    fail(text.c_str(), at);
  }
}

void end_phase_if_complete(Cluster& cluster) {
  if (cluster.arrived == 0 || cluster.arrived < cluster.live) return;
  races::end_cluster_phase(cluster);
  cluster.arrived = 0;
  cluster.phase++;
  for (Block* block : cluster.blocks) {
    if (block != nullptr) block->stuck = false;
  }
}

void land_stores(Block& block) {
  auto& stores = block.cluster->stores;
  const auto arrives = [&](const RemoteStore& store) {
    return store.target == &block && store.phase < block.cluster_phases;
  };
  for (const RemoteStore& store : stores) {
    if (arrives(store)) std::memcpy(store.address, store.value.data(), store.bytes);
  }
  std::erase_if(stores, arrives);
}

// Where in the target that is what `shared` is in the own block.
char* translate(const Block& own, const Block& target, const void* shared) {
  const char* address = static_cast<const char*>(shared);
  const bool is_static = lies_in(address, own.static_shared, own.static_bytes);
  return is_static ? target.static_shared + (address - own.static_shared)
                   : target.dynamic_shared + (address - own.dynamic_shared);
}

void check_store(const Block& own, const void* shared, unsigned rank, std::size_t bytes, Where at) {
  const std::size_t blocks = own.cluster->blocks.size();
  if (bytes != 4 && bytes != 8 && bytes != 16) fail("a store to another block has 4, 8 or 16 bytes", at);
  if (rank >= blocks) {
    const std::string text = "a store to block " + std::to_string(rank) + " of a cluster of " + std::to_string(blocks);
    fail(text.c_str(), at);
  }
  if (reinterpret_cast<std::uintptr_t>(shared) % bytes) {
    fail("a store to another block: the address is not aligned to the size", at);
  }
  if (!lies_in_shared(own, shared, bytes)) {
    fail("a store to another block: the address lies outside of shared memory, or goes beyond it", at);
  }
}

// Whether the others of the cluster have started is known of a first barrier, and that they have not ended of the next.
Block& find_target(const Fiber& storer, unsigned rank, Where at) {
  if (storer.in_cluster.waits == 0) {
    fail("a store to another block that may not have started: the thread has not waited at the cluster's barrier", at);
  }
  Block* target = storer.block->cluster->blocks[rank];
  if (target == nullptr) fail("a store to another block that has ended", at);
  return *target;
}

void check_end_of_thread(const ClusterPart& part) {
  if (part.arrivals != part.waits) {
    fail("a thread ends that has arrived at the cluster's barrier and has not waited", part.arrival);
  }
  if (part.stored) {
    fail("a thread ends that has not arrived at the cluster's barrier after its store to another block", part.store);
  }
}

void check_end_of_block(const Block& block) {
  for (const RemoteStore& store : block.cluster->stores) {
    if (store.target != &block) continue;
    report("a block ends before what others store to its shared memory was waited for: " + name_of(*store.storer) +
           " stored it at " + name_of(store.place));
    abandon_thread();
  }
}

}  // namespace

unsigned cluster_rank() { return current->block->number % current->block->cluster->blocks.size(); }

void cluster_arrive(Where at) {
  take_turns(at);
  ClusterPart& part = current->in_cluster;
  if (part.arrivals != part.waits) fail("a thread arrives at the cluster's barrier twice without a wait between", at);
  come_together("arrive at the cluster's barrier", at);
  races::arrive_at_cluster(*current);
  part.arrivals++;
  part.arrival = at;
  part.stored = false;
  Cluster& cluster = *current->block->cluster;
  cluster.arrived++;
  end_phase_if_complete(cluster);
}

void cluster_wait(Where at) {
  take_turns(at);
  ClusterPart& part = current->in_cluster;
  if (part.arrivals == part.waits) fail("a thread waits at the cluster's barrier without having arrived", at);
  come_together("come to wait at the cluster's barrier", at);
  while (current->block->cluster_phases == part.waits) {
    current->state = State::kAtClusterBarrier;
    current->operation = "wait at the cluster's barrier";
    current->place = at;
    leave(false);
  }
  part.waits++;
  races::acquire_cluster(*current);
}

void store_to_block(void* shared, unsigned rank, const void* value, std::size_t bytes, Where at) {
  take_turns(at);
  Fiber& self = *current;
  check_store(*self.block, shared, rank, bytes, at);
  races::record(self, value, bytes, races::Access::kRead, nullptr, at);
  if (rank == cluster_rank()) {
    races::record(self, shared, bytes, races::Access::kWrite, nullptr, at);
    std::memcpy(shared, value, bytes);
    return;
  }
  Block& target = find_target(self, rank, at);
  RemoteStore store{&target, translate(*self.block, target, shared), {}, bytes, &self, self.in_cluster.arrivals, at};
  if (overlaps_phase_barrier(target, store.address, bytes))
    fail("a store to another block overwrites a phase barrier", at);
  races::record(self, store.address, bytes, races::Access::kWrite, nullptr, at);
  std::memcpy(store.value.data(), value, bytes);
  std::memset(store.address, kGarbage, bytes);
  target.cluster->stores.push_back(store);
  self.in_cluster.stored = true;
  self.in_cluster.store = at;
}

void leave_cluster(Fiber& fiber) {
  Block& block = *fiber.block;
  Cluster& cluster = *block.cluster;
  check_end_of_thread(fiber.in_cluster);
  if (block.live == 1) check_end_of_block(block);
  races::end_thread(fiber);
  if (block.live == 1) cluster.blocks[cluster_rank()] = nullptr;
  cluster.live--;
  end_phase_if_complete(cluster);
}

bool waits_for_cluster(const Block& block) {
  return std::ranges::any_of(block.fibers, [](const Fiber& fiber) { return fiber.state == State::kAtClusterBarrier; });
}

bool notice_cluster_phase(Block& block) {
  if (block.cluster_phases == block.cluster->phase || !waits_for_cluster(block)) return false;
  block.cluster_phases = block.cluster->phase;
  land_stores(block);
  for (Fiber& fiber : block.fibers) {
    if (fiber.state == State::kAtClusterBarrier) fiber.state = State::kReady;
  }
  return true;
}

std::string what_is_awaited(const Cluster& cluster) {
  return " (its phase " + std::to_string(cluster.phase) + " awaits " + std::to_string(cluster.live - cluster.arrived) +
         " of " + std::to_string(cluster.live) + " threads)";
}

}  // namespace cuda_on_cpu
