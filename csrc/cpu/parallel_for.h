// Splits work over threads, in pieces that take longer than it takes to start one on another thread.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../affine_norm.h"

namespace incline_fast::cpu {
namespace {

// A few microseconds of work, in elements touched or multiply-adds at full speed.
constexpr std::int64_t kGrainWork = 32 * 1024;

// body(begin, end) over ranges of [0, count); `work` is the cost of one item.
template <class Body>
void parallel_for(const Threads& threads, std::int64_t count, std::int64_t work, const Body& body) {
  const std::int64_t grain = std::max<std::int64_t>(1, kGrainWork / std::max<std::int64_t>(1, work));
  if (threads.count == 1 || count <= grain) return body(0, count);
  auto call = [](std::int64_t begin, std::int64_t end, void* context) {
    (*static_cast<const Body*>(context))(begin, end);
  };
  threads.parallel_for(0, count, grain, call, const_cast<Body*>(&body));
}

}  // namespace
}  // namespace incline_fast::cpu
