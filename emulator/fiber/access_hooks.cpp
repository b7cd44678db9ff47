// The calls that g++ -fsanitize=thread puts before every memory access, answered by the race detector instead of by
// ThreadSanitizer. They name the address, and the return address says where.
#include <cstdint>

#include "races.h"

namespace {

using cuda_on_cpu::races::Access;

void hook(const void* address, std::size_t bytes, Access access, const void* instruction) {
  if (cuda_on_cpu::current == nullptr) return;  // host code
  cuda_on_cpu::races::record(*cuda_on_cpu::current, address, bytes, access, instruction, {});
}

// Volatile accesses are what PTX calls strong: they may meet, and a fence beside them orders.
void strong_hook(const void* address, std::size_t bytes, cuda_on_cpu::AtomicKind kind, const void* instruction) {
  hook(address, bytes, Access::kAtomic, instruction);
  if (cuda_on_cpu::current != nullptr) cuda_on_cpu::races::order_atomic(*cuda_on_cpu::current, address, kind);
}

}  // namespace

#define HERE __builtin_return_address(0)
#define HOOKS(n)                                                                                           \
  void __tsan_read##n(const void* p) { hook(p, n, Access::kRead, HERE); }                                  \
  void __tsan_write##n(const void* p) { hook(p, n, Access::kWrite, HERE); }                                \
  void __tsan_unaligned_read##n(const void* p) { hook(p, n, Access::kRead, HERE); }                        \
  void __tsan_unaligned_write##n(const void* p) { hook(p, n, Access::kWrite, HERE); }                      \
  void __tsan_volatile_read##n(const void* p) { strong_hook(p, n, cuda_on_cpu::AtomicKind::kLoad, HERE); } \
  void __tsan_volatile_write##n(const void* p) { strong_hook(p, n, cuda_on_cpu::AtomicKind::kStore, HERE); }

extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(const void* p, std::size_t bytes) { hook(p, bytes, Access::kRead, HERE); }
void __tsan_write_range(const void* p, std::size_t bytes) { hook(p, bytes, Access::kWrite, HERE); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_init() {}
}
