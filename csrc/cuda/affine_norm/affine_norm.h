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

// What a device has beyond sm_80, with the shared memory that the kernels which use it ask for.
struct Features {
  bool bulk_copies = false;  // arch/bulk_copy.h
  bool clusters = false;     // arch/cluster.h, of sixteen blocks; only with bulk copies
  // Rows up to which bulk copies are faster than torch's product and an epilogue, by benchmarks/decode_model.py.
  int ring_rows = 0;
};

// Of the current device.
Features features();

// Whether a kernel that uses the features can serve `op`: with bulk copies a dense map for up to 16 rows of one 16-bit
// type; with clusters a map of low rank, not too large, for up to 8.
bool has_kernel_with(const Features& features, const AffineNorm& op);

// All of these throw std::invalid_argument, naming the argument, for what the kernels do not take: fp64, maps that are
// packed or not contiguous, rows that need more than kLeadingDims strides, a workspace that is missing; and
// std::runtime_error when a launch fails.
void check_maps(const AffineNorm& op);

// Carries out `op` in launches of at most kMaxRows rows. `programmatic`: on sm_90 and later each of them may begin
// before the launch ahead of it has ended, and lets the one behind it do so. No kernel that can still be running may
// write the maps then; anything else it may. `features`: those that may be used, which the device must have.
void affine_norm(const AffineNorm& op, const Workspace& workspace, void* cuda_stream, bool programmatic = false,
                 const Features& features = {});

// Likewise where `mapped` [rows, d] already holds M r, of whichever map a row has; the maps are not read.
void affine_norm_epilogue(const AffineNorm& op, const Rows& mapped, void* cuda_stream, bool programmatic = false);

}  // namespace incline_fast::cuda
