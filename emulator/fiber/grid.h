// The state of a launch, shared by the scheduler and the race detector. Kernels never see this header.
#pragma once

#include <semaphore>
#include <string>
#include <vector>

#include "race_clock.h"
#include "runtime.h"
#include "stack.h"

namespace cuda_on_cpu {

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Copy {
  void* shared = nullptr;
  const void* global = nullptr;
  std::size_t bytes = 0;
  std::size_t bytes_to_read = 0;
  bool ends_group = false;
  Where place;
};

struct Block;

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
  const void* published = nullptr;
  std::vector<Copy> copies;
  ThreadClock clock;
};

struct Block {
  unsigned number = 0;  // within the grid
  std::vector<Fiber> fibers;
  unsigned live = 0;
  BarrierResult barrier;
  unsigned barrier_epoch = 1;
  // Where its static shared variables lie: the thread-local image of the library.
  char* static_shared = nullptr;
  std::size_t static_bytes = 0;
  char* dynamic_shared = nullptr;
  std::size_t dynamic_bytes = 0;
  Context scheduler;
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

constexpr unsigned char kGarbage = 0xCB;  // what shared memory holds before it is written

}  // namespace cuda_on_cpu
