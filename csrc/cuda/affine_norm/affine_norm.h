// The launcher of the fused op on a GPU, for code that nvcc does not compile. It allocates nothing, and everything that
// it starts goes to `cuda_stream` of the current device.
#pragma once

#include <cstdint>

#include "../../affine_norm.h"

namespace incline_fast::cuda {

constexpr int kMaxRows = 64;  // of one launch of the decode kernels

// The counters of a launch: zero before it, and zero again when it ends. The first one has 64 bits.
enum Ticket { kProgress, kNextWork = 2, kInnerDone, kSeen, kTicketCount };

struct Workspace {
  void* data = nullptr;  // workspace_bytes(op) bytes, aligned to 16; any contents
  unsigned* tickets =
      nullptr;  // kTicketCount counters at zero, aligned to 8, which no other stream uses; they return to zero
};

std::int64_t workspace_bytes(const AffineNorm& op);

// Whether the current device has the instructions of arch/bulk_copy.h, and the shared memory that the kernel with them
// asks for.
bool has_bulk_copies();

// Whether there is a kernel for `op` that streams its operands by bulk copies: a dense map for up to 16 rows of one
// 16-bit type.
bool takes_ring(const AffineNorm& op);

// All of these throw std::invalid_argument, naming the argument, for what the kernels do not take: fp64, maps that are
// packed or not contiguous, rows that need more than kLeadingDims strides, a workspace that is missing; and
// std::runtime_error when a launch fails.
void check_maps(const AffineNorm& op);

// Carries out `op` in launches of at most kMaxRows rows. `programmatic`: on sm_90 and later each of them may begin
// before the launch ahead of it has ended, and lets the one behind it do so. No kernel that can still be running may
// write the maps then; anything else it may. `bulk_copies`: where takes_ring(op), by the kernel that uses them; for a
// device that has them.
void affine_norm(const AffineNorm& op, const Workspace& workspace, void* cuda_stream, bool programmatic = false,
                 bool bulk_copies = false);

// Likewise where `mapped` [rows, d] already holds M r, of whichever map a row has; the maps are not read.
void affine_norm_epilogue(const AffineNorm& op, const Rows& mapped, void* cuda_stream, bool programmatic = false);

}  // namespace incline_fast::cuda
