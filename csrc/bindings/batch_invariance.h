// Whether many rows may be multiplied by torch, whose rounding may depend on the number of rows.
#pragma once

#include <atomic>

namespace incline_fast::cuda {

inline std::atomic<bool> batch_invariant = false;

// For the process: with true, every row's bits are those of a call with this row alone.
inline void set_batch_invariant(bool enabled) { batch_invariant = enabled; }

}  // namespace incline_fast::cuda
