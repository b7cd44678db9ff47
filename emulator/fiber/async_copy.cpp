#include "async_copy.h"

#include <cstring>

#include "grid.h"
#include "races.h"

namespace cuda_on_cpu {

void start_copy(void* shared, const void* global, std::size_t bytes, std::size_t bytes_to_read, Where at) {
  races::record(*current, global, bytes_to_read, races::Access::kRead, nullptr, at);
  races::record(*current, shared, bytes, races::Access::kWrite, nullptr, at);  // it may land at any time from now on
  std::memset(shared, kGarbage, bytes);
  current->copies.push_back({shared, global, bytes, bytes_to_read, false, at});
}

void commit_copies() {
  Copy end;
  end.ends_group = true;
  current->copies.push_back(end);
}

void wait_copies(int groups_left) {
  auto& copies = current->copies;
  int groups = 0;
  for (const Copy& copy : copies) groups += copy.ends_group;
  auto next = copies.begin();
  for (; groups > groups_left; ++next) {
    if (next->ends_group) {
      groups--;
      continue;
    }
    races::record(*current, next->shared, next->bytes, races::Access::kWrite, nullptr, next->place);
    std::memset(next->shared, 0, next->bytes);
    std::memcpy(next->shared, next->global, next->bytes_to_read);
  }
  copies.erase(copies.begin(), next);
}

}  // namespace cuda_on_cpu
