// What the process has set for its calls on GPUs.
#pragma once

#include <atomic>

namespace incline_fast::cuda {

// Whether many rows may be multiplied by torch, whose rounding may depend on the number of rows: with true, every row's
// bits are those of a call with this row alone.
inline std::atomic<bool> batch_invariant = false;

// Whether launches may begin before the one ahead of them on the stream has ended (csrc/cuda/arch/dependency.h).
inline std::atomic<bool> programmatic_launch = false;

// Whether kernels with bulk copies (csrc/cuda/arch/bulk_copy.h) serve what they can; without, the others do. For
// comparisons: the bits are the same.
inline std::atomic<bool> bulk_copies = true;

inline void set_batch_invariant(bool enabled) { batch_invariant = enabled; }

inline void set_programmatic_launch(bool enabled) { programmatic_launch = enabled; }

inline void set_bulk_copies(bool enabled) { bulk_copies = enabled; }

}  // namespace incline_fast::cuda
