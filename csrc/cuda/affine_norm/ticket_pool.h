// Counters that are zero between launches, without a memset in front of each.
#pragma once

namespace incline_fast::cuda {

// kTicketCount counters on `device`, which must be the current one, for the next launch on `cuda_stream`. Launches on
// one stream follow each other and share theirs. A launch that is being captured into a graph gets its own for good,
// because the graph may be replayed on another stream, beside this one's work.
//
// Throws std::runtime_error when more than 65536 streams and captured launches have asked on a device.
unsigned* tickets_for(int device, void* cuda_stream);

}  // namespace incline_fast::cuda
