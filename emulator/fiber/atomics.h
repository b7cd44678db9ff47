// Atomics and fences. One thread of the grid runs at a time, so a plain access is atomic; what matters here is that the
// race detector hears of it and that other threads may come first.
#pragma once

#include <cstdint>
#include <type_traits>

#include "runtime.h"

namespace cuda_on_cpu {

// Not instrumented: these accesses are announced as atomics instead.
#define CUDA_ON_CPU_ATOMIC \
  template <class T>       \
  __attribute__((no_sanitize("thread"), noinline))

CUDA_ON_CPU_ATOMIC T plain_load(const T* address) { return *address; }
CUDA_ON_CPU_ATOMIC void plain_store(T* address, T value) { *address = value; }
#undef CUDA_ON_CPU_ATOMIC

template <class T, class Update>
T read_modify_write(T* address, Update update, Where at) {
  give_way(at);
  announce_atomic(address, sizeof(T), AtomicKind::kReadModifyWrite, at);
  const T old = plain_load(address);
  plain_store<T>(address, update(old));
  return old;
}

// Twins of ld.acquire.gpu and st.release.gpu.
template <class T>
T load_acquire(const T* address, Where at = Where::current()) {
  give_way(at);
  announce_atomic(address, sizeof(T), AtomicKind::kLoad, at);
  const T value = plain_load(address);
  fence();
  return value;
}
template <class T>
void store_release(T* address, std::type_identity_t<T> value, Where at = Where::current()) {
  give_way(at);
  fence();
  announce_atomic(address, sizeof(T), AtomicKind::kStore, at);
  plain_store<T>(address, value);
}

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_ATOMIC(name, expression)                                                                 \
  template <class T>                                                                                         \
  T name(T* address, std::type_identity_t<T> value, cuda_on_cpu::Where at = cuda_on_cpu::Where::current()) { \
    return cuda_on_cpu::read_modify_write(address, [=](T old) { return static_cast<T>(expression); }, at);   \
  }
CUDA_ON_CPU_ATOMIC(atomicAdd, old + value)
CUDA_ON_CPU_ATOMIC(atomicSub, old - value)
CUDA_ON_CPU_ATOMIC(atomicMax, old < value ? value : old)
CUDA_ON_CPU_ATOMIC(atomicMin, value < old ? value : old)
CUDA_ON_CPU_ATOMIC(atomicAnd, old& value)
CUDA_ON_CPU_ATOMIC(atomicOr, old | value)
CUDA_ON_CPU_ATOMIC(atomicXor, old ^ value)
CUDA_ON_CPU_ATOMIC(atomicExch, value)
CUDA_ON_CPU_ATOMIC(atomicInc, old >= value ? T{0} : old + 1)
CUDA_ON_CPU_ATOMIC(atomicDec, old == T{0} || old > value ? value : old - 1)
#undef CUDA_ON_CPU_ATOMIC

template <class T>
T atomicCAS(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value,
            cuda_on_cpu::Where at = cuda_on_cpu::Where::current()) {
  return cuda_on_cpu::read_modify_write(address, [=](T old) { return old == compare ? value : old; }, at);
}

inline void __threadfence(cuda_on_cpu::Where at = cuda_on_cpu::Where::current()) {
  cuda_on_cpu::give_way(at);
  cuda_on_cpu::fence();
}
inline void __threadfence_system(cuda_on_cpu::Where at = cuda_on_cpu::Where::current()) { __threadfence(at); }
inline void __nanosleep(unsigned, cuda_on_cpu::Where at = cuda_on_cpu::Where::current()) { cuda_on_cpu::give_way(at); }
