// What the process has set for its calls on GPUs.
#pragma once

#include <atomic>

namespace incline_fast::cuda {

// Whether many rows may be multiplied by torch, whose rounding may depend on the number of rows: with true, every row's
// bits are those of a call with this row alone.
inline std::atomic<bool> batch_invariant = false;

// Whether launches may begin before the one ahead of them on the stream has ended (csrc/cuda/arch/dependency.h).
inline std::atomic<bool> programmatic_launch = false;

inline void set_batch_invariant(bool enabled) { batch_invariant = enabled; }

inline void set_programmatic_launch(bool enabled) { programmatic_launch = enabled; }

}  // namespace incline_fast::cuda
