// Switching between stacks within one operating-system thread.
#pragma once

#include <cstddef>
#include <vector>

namespace cuda_on_cpu {

// A place where execution can go on: a saved stack pointer, and the stack's bounds for AddressSanitizer.
struct Context {
  void* stack_pointer = nullptr;
  const void* bottom = nullptr;
  std::size_t size = 0;
};

// Stacks with a guard page below; those given back are used again.
class StackPool {
 public:
  ~StackPool();
  char* take();
  void give_back(char* bottom);
  static std::size_t size();

 private:
  std::vector<char*> free_;
};

// A context that starts `entry` on the stack at `bottom`. `entry` must never return.
Context make_context(char* bottom, void (*entry)());

// Saves where we are into `from` and goes on at `to`. `finished` means that `from` will never be resumed.
void switch_context(Context& from, const Context& to, bool finished);

// To be called first on a fresh stack; `from` is the context that switched to it.
void arrive_on_new_stack(Context& from);

}  // namespace cuda_on_cpu
