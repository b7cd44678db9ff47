// Uninitialised scratch memory on a cache-line boundary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace incline_fast::cpu {
namespace {

template <class T>
class Buffer {
 public:
  explicit Buffer(std::int64_t size)
      : data_(static_cast<T*>(::operator new(static_cast<std::size_t>(size) * sizeof(T), kAlignment))) {}
  T* get() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(T* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<T, Free> data_;
};

}  // namespace
}  // namespace incline_fast::cpu
