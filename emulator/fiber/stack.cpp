#include "stack.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>

#if !defined(__x86_64__)
#error "the fiber emulator switches stacks in x86-64 assembly"
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the registers that a callee must keep (System V ABI), swaps stacks, and returns on the other one.
extern "C" void cuda_on_cpu_swap(void** save, void* load);
asm(R"(
.text
.type cuda_on_cpu_swap, @function
.hidden cuda_on_cpu_swap
.globl cuda_on_cpu_swap
cuda_on_cpu_swap:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_cpu_swap, .-cuda_on_cpu_swap
)");

namespace cuda_on_cpu {
namespace {
constexpr std::size_t kGuard = 4096;
constexpr std::size_t kSize = 256 << 10;  // sanitizers need large frames; untouched pages cost nothing
constexpr int kSavedRegisters = 6;
}  // namespace

std::size_t StackPool::size() { return kSize; }

StackPool::~StackPool() {
  for (char* bottom : free_) munmap(bottom - kGuard, kSize + kGuard);
}

char* StackPool::take() {
  if (!free_.empty()) {
    char* bottom = free_.back();
    free_.pop_back();
    return bottom;
  }
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* memory = mmap(nullptr, kSize + kGuard, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE) != 0) std::abort();
  return static_cast<char*>(memory) + kGuard;
}

void StackPool::give_back(char* bottom) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(bottom, kSize);  // frames of an abandoned thread were never left
#endif
  free_.push_back(bottom);
}

Context make_context(char* bottom, void (*entry)()) {
  auto** top = reinterpret_cast<void**>(bottom + kSize);
  *--top = nullptr;  // keeps the stack aligned to 16 bytes at entry, as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; i++) *--top = nullptr;
  return {top, bottom, kSize};
}

void switch_context(Context& from, const Context& to, [[maybe_unused]] bool finished) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(finished ? nullptr : &fake_stack, to.bottom, to.size);
#endif
  cuda_on_cpu_swap(&from.stack_pointer, to.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void arrive_on_new_stack([[maybe_unused]] Context& from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &from.bottom, &from.size);
#endif
}

}  // namespace cuda_on_cpu
