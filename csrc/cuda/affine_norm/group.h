// The rows of a launch that one map edits, found on the device: row_map is not known to the host.
#pragma once

#include "../arch/dependency.h"
#include "row_types.h"

namespace incline_fast::cuda {

struct Group {
  int map;
  int count;
  int rows[kMaxRows];        // within the launch
  std::int64_t x[kMaxRows];  // where the rows begin, in elements
  std::int64_t residual[kMaxRows];
  // Of the launch: bit i of word i / 32 says that row i leads (is the first one of its map) or belongs to the group.
  unsigned leaders[2];
  unsigned members[2];
  int maps[kMaxRows];
};

constexpr int kNoMap = -1;

__device__ inline int map_of(const AffineCall& call, std::int64_t row) {
  return call.row_map == nullptr ? 0 : call.row_map[(call.first_row + row) * call.row_map_stride];
}

__device__ inline bool is_map(const AffineCall& call, int map) { return map >= 0 && map < call.num_maps; }

// The map that leads `number`-th, in the order of first appearance; kNoMap if there are fewer.
__device__ inline int leading_map(const Group& group, int number) {
  for (int word = 0; word < 2; ++word) {
    for (unsigned bits = group.leaders[word]; bits != 0; bits &= bits - 1) {
      if (number-- == 0) return group.maps[32 * word + __ffs(static_cast<int>(bits)) - 1];
    }
  }
  return kNoMap;
}

// Fills `group` with the rows of the `number`-th map in use. Called by all threads; ends in a barrier. Maps that no row
// uses have no group, so nothing of them is read.
template <class Types>
__device__ inline void find_group(const AffineCall& call, int number, Group& group) {
  const int row = static_cast<int>(threadIdx.x), word = warp_id();
  const bool here = row < call.num_rows;
  const int map = here ? map_of(call, row) : kNoMap;
  if (row < kMaxRows) group.maps[row] = map;
  __syncthreads();
  if (row < kMaxRows) {
    bool leads = here && is_map(call, map);
    for (int i = 0; i < row && leads; ++i) leads = group.maps[i] != map;
    const unsigned leaders = __ballot_sync(kAllLanes, leads);
    if (lane_id() == 0) group.leaders[word] = leaders;
  }
  __syncthreads();
  const int chosen = leading_map(group, number);
  const bool member = here && chosen != kNoMap && map == chosen;
  const unsigned members = __ballot_sync(kAllLanes, member);
  if (row < kMaxRows && lane_id() == 0) group.members[word] = members;
  __syncthreads();
  if (member) {
    const unsigned below = __popc(members & ((1u << lane_id()) - 1));
    const int place = static_cast<int>(below) + (word == 0 ? 0 : __popc(group.members[0]));
    group.rows[place] = row;
    group.x[place] = Types::offset(call.x, call.first_row + row);
    group.residual[place] = Types::offset(call.residual, call.first_row + row);
  }
  if (row == 0) {
    group.map = chosen;
    group.count = __popc(group.members[0]) + __popc(group.members[1]);
  }
  __syncthreads();
}

// What is known of a group before `group` itself is filled.
struct Members {
  int map, count;
};

// Without a row_map all rows are map 0's, and nothing need be found before the map's weights are requested: `fill` has
// to be called by all threads after that. Otherwise this fills the group. What the launch before this one may have
// written - the rows, row_map, the vectors, the scales, the workspace and its counters - is touched after the one that
// fills alone.
template <class Types>
__device__ inline Members find_members(const AffineCall& call, int number, Group& group) {
  if (call.row_map == nullptr) return {0, call.num_rows};
  wait_for_previous_launch();
  find_group<Types>(call, number, group);
  return {group.map, group.count};
}

// Group 0, without a row_map: all rows. A __syncthreads() has to follow.
template <class Types>
__device__ inline void list_all_rows(const AffineCall& call, Group& group) {
  const int row = static_cast<int>(threadIdx.x);
  if (row < call.num_rows) {
    group.rows[row] = row;
    group.x[row] = Types::offset(call.x, call.first_row + row);
    group.residual[row] = Types::offset(call.residual, call.first_row + row);
  }
  if (row == 0) group.map = 0, group.count = call.num_rows;
}

template <class Types>
__device__ inline void fill(const AffineCall& call, Group& group) {
  if (call.row_map != nullptr) return;
  wait_for_previous_launch();
  list_all_rows<Types>(call, group);
  __syncthreads();
}

}  // namespace incline_fast::cuda
