// The portable twin of cp.async. A copy is read and delivered when its group is waited for; until then its destination
// holds garbage, so a kernel that forgets the wait computes wrong numbers under every schedule.
#pragma once

#include "runtime.h"

namespace cuda_on_cpu {

// cp.async.cg/ca [shared], [global], bytes, bytes_to_read: what is not read is zero. Misalignment fails.
inline void async_copy(void* shared, const void* global, std::size_t bytes, std::size_t bytes_to_read,
                       Where at = Where::current()) {
  if (bytes != 4 && bytes != 8 && bytes != 16) fail("cp.async copies 4, 8 or 16 bytes", at);
  if (bytes_to_read > bytes) fail("cp.async reads more than it copies", at);
  const auto bits = reinterpret_cast<std::size_t>(shared) | reinterpret_cast<std::size_t>(global);
  if (bits % bytes) fail("cp.async: an address is not aligned to the size of the copy", at);
  start_copy(shared, global, bytes, bytes_to_read, at);
}

// cp.async.commit_group: what was started since the last commit is one group.
inline void async_commit() { commit_copies(); }

// cp.async.wait_group: returns when at most `groups_left` of the latest groups are still on their way.
template <int groups_left>
void async_wait() {
  wait_copies(groups_left);
}

}  // namespace cuda_on_cpu
